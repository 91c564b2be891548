"""Which form of the hypergradient a run takes, and that it agrees with another on a batch."""

import copy
import dataclasses

import click

from mmlfer import (
    TANGENTS, InputError, Taped, all_losses, hypergradient_jvp, learning_rates, meta_test,
    meta_train, spare_buffers, torch)

LINEAR = ("AdaptiveAvgPool2d", "Flatten", "Identity")  # they act on derivatives as on values


def without_rule(net):
    """The layers that need a tangent rule and have none, as text; "" if there are none."""
    strange = [f"{name} ({type(layer).__name__})" for name, layer in net.named_modules()
               if type(layer).__name__ not in (*TANGENTS, *LINEAR)
               and (not list(layer.children()) or list(layer.parameters(recurse=False)))]
    return ", ".join(strange[:3]) + (", ..." if strange[3:] else "")


def choose_hypergrad(run, batch, val):
    """The form that --hypergrad names. auto: jvp, or general where jvp lacks a rule, if it agrees
    on this batch with create_graph (central differences where it cannot be); else create_graph."""
    form, strange = run.hypergrad, without_rule(run.net)
    if form == "jvp" and run.meta and strange:
        raise InputError(f"no tangent rule for {strange}: --hypergrad general")
    if form != "auto" or not run.meta:
        return form
    form = "general" if strange else "jvp"
    buffers, run.net.precision = spare_buffers(run.net), "float32"
    # in float32 alone: in bf16 and in a GPU's TF32, rounding makes the forms differ by some percent
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        difference, other = difference_to(run, batch, val, form)
    run.net.load_state_dict(buffers, strict=False)
    run.net.precision = run.cfg.precision
    agrees = difference < 1e-3
    if not agrees and other != "create_graph":
        raise InputError(f"--hypergrad auto: {form} differs from {other} by {difference:.1e}, and "
                         f"create_graph cannot be taken: another --arch, or --hypergrad {form}")
    chosen = form if agrees else "create_graph"
    click.echo(f"{'' if agrees else 'Warning: '}hypergradient: {form} differs from {other} by "
               f"{difference:.1e}; going on with {chosen}", err=not agrees)
    return chosen


def difference_to(run, batch, val, form):
    """How far a form is from another one on a batch, as a share of it, and what that one is."""
    taped, omega = meta_train(run, batch)
    fast = meta_test(run, taped, omega, val, form)  # first: create_graph frees the graph of both
    try:
        definition = meta_test(run, taped, omega, val, "create_graph")
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        return difference_to_differences(run, batch, val), "central differences"
    return relative(fast, definition), "create_graph"


def relative(one, other):
    """The norm of the difference of two lists of tensors, as a share of the other's norm."""
    one, other = (torch.cat([t.flatten() for t in tensors]) for tensors in (one, other))
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


def difference_to_differences(run, batch, val):
    """The losses' derivative along alpha v in the general form, against central differences of the
    losses, both in float64. Two steps are tried, because a ReLU may switch within the larger."""
    kept = []
    taped, omega = meta_train(run, batch)
    alpha, psi = learning_rates(run.net, run.opt), list(run.meta.parameters())
    hypergradient_jvp(taped, omega, val[:2], alpha, psi, along=lambda taped, direction: (
        kept.append(direction), Taped.along_in_general(taped, direction))[1])
    (x, y_emo, y_au), net = batch, copy.deepcopy(run.net).double()
    statistics = dataclasses.replace(run.statistics, table=run.statistics.table.double())
    exact = Taped(net, x, lambda *z: all_losses(*z, y_emo, y_au, statistics, run.shift), taped.seed)
    direction = {name: d.double() for name, d in kept[0].items()}
    along, theta = exact.along_in_general(direction), dict(net.named_parameters())
    length, unit = (torch.nn.utils.get_total_norm(part.values()) for part in (theta, direction))
    differences = []
    for step in (1e-7, 1e-9):
        with torch.no_grad():
            h = step * length / unit.clamp(min=1e-30)
            ends = [exact.losses_at({name: p + side * direction[name] for name, p in theta.items()})
                    for side in (h, -h)]
        differences.append(relative([along], [(ends[0] - ends[1]) / (2 * h)]))
    return min(differences)
