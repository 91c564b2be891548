#!/usr/bin/env python3
"""mmlfer: compound facial expressions with action units, by meta multi-task learning.

Li, Deng, Li and Li, "Compound Expression Recognition In-the-wild with AU-assisted Meta
Multi-task Learning", CVPR Workshops 2023. Where the paper's equations stand:

    Eq. 1   loss_au                 Eq. 7         expressions_from_aus
    Eq. 2   loss_emo                Eq. 8         loss_dm2
    Eq. 3   METHODS["mtl"]          Eq. 9         loss_am
    Eq. 5   aus_from_expressions    Eqs. 10, 11   METHODS["am"], METHODS["mml"]
    Eq. 6   loss_dm1                Eqs. 12-15    hypergradient      Eqs. 16, 17   train_step

Symbols: theta = {backbone, FE classifier, AU classifier}, psi = the meta net, f the features,
z logits, p probabilities, omega the loss weights, alpha and beta the learning rates of theta
and psi. B faces in a batch, K = 14 expressions, J = 32 AUs.
"""

import concurrent.futures
import csv
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import click
import numpy as np
import yaml
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageOps
from tqdm import tqdm


def lazy_import(name):
    """A module that loads at its first use: torch takes seconds, and `--help` needs none of it."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"no module {name!r}; install mmlfer with: pip install -e .")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


torch = lazy_import("torch")

HERE = Path(__file__).resolve().parent
EMOTIONS = (
    "happily surprised", "happily disgusted", "sadly fearful", "sadly angry", "sadly surprised",
    "sadly disgusted", "fearfully angry", "fearfully surprised", "fearfully disgusted",
    "angrily surprised", "angrily disgusted", "disgustedly surprised", "happily fearful",
    "happily sad",
)  # fmt: skip
AU_NAMES = {
    1: "inner brow raiser", 2: "outer brow raiser", 4: "brow lowerer", 5: "upper lid raiser",
    6: "cheek raiser", 7: "lid tightener", 9: "nose wrinkler", 10: "upper lip raiser",
    12: "lip corner puller", 14: "dimpler", 15: "lip corner depressor", 16: "lower lip depressor",
    17: "chin raiser", 18: "lip pucker", 19: "tongue show", 20: "lip stretcher",
    21: "neck tightener", 22: "lip funneler", 23: "lip tightener", 24: "lip pressor",
    25: "lips part", 26: "jaw drop", 27: "mouth stretch", 28: "lip suck", 29: "jaw thrust",
    30: "jaw sideways", 32: "lip bite", 33: "cheek blow", 34: "cheek puff", 35: "cheek suck",
    39: "nostril compressor", 43: "eyes closed",
}  # fmt: skip
AUS = tuple(AU_NAMES)
TRAIN, TEST, VAL = 0, 1, 2  # RAFCE_partition.txt
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SPLITS = {"train": TRAIN, "test": TEST, "val": VAL}
LABEL_FILES = ("RAFCE_emolabel.txt", "RAFCE_partition.txt", "RAFCE_AUlabel.txt")
RAFCE_TOTALS = (676, 279, 171, 230, 120, 835, 195, 603, 36, 210, 977, 177, 11, 29)
RAFCE_TEST = (126, 54, 36, 44, 25, 178, 43, 113, 6, 44, 194, 37, 1, 8)
RAFCE_SPLITS = {"train": 2709, "test": 909, "val": 931}
OBSERVED, PROTOTYPICAL = 0.2, 0.7  # Sec. 3.2: p(AU | expression) of observed, prototypical AUs
METHODS = {  # the weights of (L^emo, L^AU, L^AM): a number, a setting, or "meta": the meta net's
    "stl": (1.0, 0.0, 0.0),
    "mtl": (1.0, "rho", 0.0),  # Eq. 3
    "mal": (1.0, "meta", 0.0),
    "mal2": ("meta", "meta", 0.0),
    "am": (1.0, "rho", "rho_am"),  # Eq. 10
    "mml": (1.0, "meta", "meta"),  # Eq. 11
}


class InputError(ValueError):
    """What the user gave cannot be used; the message says where, and what to do."""


def setting(default, kind, help_):
    return dataclasses.field(default=default, metadata={"type": kind, "help": help_})


class FiniteRange(click.FloatRange):
    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is not finite", param, ctx)


COUNT, SIZE, SEED = click.IntRange(min=1), click.IntRange(32, 512), click.IntRange(0, 2**31 - 1)
RATE, SHARE = FiniteRange(min=0, min_open=True), FiniteRange(min=0)
FOLDER = click.Path(path_type=Path)


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run; every field is an option of `train`."""

    data: str = setting(None, click.Path(), "Folder laid out like RAF-CE.")
    method: str = setting("mml", click.Choice(list(METHODS)), "What is trained (Tables 2, 3).")
    stats: str = setting("wild", str, "p(AU | expression), Table 1: wild, lab or a YAML file.")
    form: str = setting("auto", click.Choice(["auto", "wild", "lab"]),
                        "Eq. 5 (wild) or Sec. 5.3 (lab); auto: lab for --stats lab, else wild.")
    weights: str = setting("auto", str, "Backbone's start: a ResNet-34 file, imagenet or none; "
                           "auto: weights/resnet34_casia.pth if it is there, else none.")
    epochs: int = setting(60, COUNT, "Passes over the training images.")
    batch_size: int = setting(16, click.IntRange(min=2), "B, training and validation alike.")
    size: int = setting(112, SIZE, "Side of the square face, pixels.")
    lr_backbone: float = setting(0.001, RATE, "alpha of the backbone.")
    lr_heads: float = setting(0.01, RATE, "alpha of the two classifiers.")
    lr_meta: float = setting(0.01, RATE, "beta, of the meta net.")
    schedule: str = setting("constant", click.Choice(["constant", "onecycle"]), "Of alpha.")
    rho: float = setting(0.1, SHARE, "Weight of L^AU in mtl and am (rho_1).")
    rho_am: float = setting(0.1, SHARE, "Weight of L^AM in am (rho_2).")
    momentum: float = setting(0.9, FiniteRange(0, 1, max_open=True), "Of theta's SGD.")
    weight_decay: float = setting(5e-4, SHARE, "Of theta's SGD.")
    hypergrad: str = setting("auto", click.Choice(["auto", "create_graph", "jvp"]),
                             "Form of psi's gradient: the definition, the faster tangent form, or "
                             "jvp if both agree at the first step.")
    seed: int = setting(0, SEED, "Of everything random.")
    device: str = setting("auto", str, "auto, cpu, cuda, cuda:1, ...")
    skip_bad_images: bool = setting(False, bool, "Go on without images that cannot be read.")


# ---------------------------------------------------------------- losses (Secs. 4, 4.1, 5.3)
# One value a sample; a batch is averaged where Eqs. 12 and 16 sum, the same step at another rate.


def loss_au(z_au, y_au):
    """Eq. 1, cross-entropy summed over the AUs. z_au, y_au (B, J) -> (B,)."""
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    return bce(z_au, y_au.to(z_au.dtype), reduction="none").sum(1)


def loss_emo(z_emo, y_emo):
    """Eq. 2, cross-entropy over the expressions. z_emo (B, K), y_emo (B,) -> (B,)."""
    return torch.nn.functional.cross_entropy(z_emo, y_emo, reduction="none")


def aus_from_expressions(p_emo, table, form):
    """q^AU: Eq. 5 (wild), or Sec. 5.3 (lab). p_emo (B, K), table (K, J) -> (B, J)."""
    if form == "wild":
        return p_emo @ torch.sigmoid(table)
    return torch.sigmoid(p_emo @ table)


def expressions_from_aus(z_au, table):
    """Eq. 7, log q^emo, stable for AUs near 0. z_au (B, J), table (K, J) -> (B, K)."""
    log_p_au = torch.nn.functional.logsigmoid(z_au)[:, None]  # (B, 1, J)
    return torch.logsumexp(log_p_au + table.log(), 2) - table.sum(1).log()


def loss_dm1(z_emo, z_au, table, form):
    """Eq. 6, AU predictions against what the expressions call for. -> (B,)."""
    q_au = aus_from_expressions(z_emo.softmax(1), table, form)
    return -(z_au.sigmoid() * q_au.log()).sum(1)


def loss_dm2(z_emo, z_au, table):
    """Eq. 8, expression predictions against what the AUs call for. -> (B,)."""
    return -(z_emo.softmax(1) * expressions_from_aus(z_au, table)).sum(1)


def loss_am(z_emo, z_au, table, form):
    """Eq. 9, the alignment loss L^AM = L^DM1 + L^DM2; lab sets every observed p to 1. -> (B,)."""
    if form == "lab":
        table = (table > 0).to(table.dtype)
    return loss_dm1(z_emo, z_au, table, form) + loss_dm2(z_emo, z_au, table)


def all_losses(outputs, y_emo, y_au, table, form):
    """L^emo, L^AU and L^AM of each sample. outputs: the base net's (f, z_emo, z_au) -> (B, 3)."""
    _, z_emo, z_au = outputs
    l_am = loss_am(z_emo, z_au, table, form)
    return torch.stack([loss_emo(z_emo, y_emo), loss_au(z_au, y_au), l_am], 1)


# ---------------------------------------------------------------- the bilevel step (Sec. 4.2)


def loss_weights(meta, f, cfg):
    """omega (B, 3) of the three losses: constants, and g(f; psi) where the method is meta.

    f is detached: the weights are coefficients of the loss, not a path by which the backbone
    can make its own loss small.
    """
    learned = iter(meta(f.detach()).sigmoid().unbind(1)) if meta else None
    columns = []
    for source in METHODS[cfg.method]:
        if source == "meta":
            columns.append(next(learned))
        else:
            value = getattr(cfg, source) if isinstance(source, str) else source
            columns.append(f.new_full((len(f),), value))
    return torch.stack(columns, 1)


def spare_buffers(net):
    """Copies of the buffers for a look-ahead pass, so that BatchNorm's own do not move."""
    return {name: b.clone() for name, b in net.named_buffers()}


def hypergradient(net, losses, omega, val, alpha, psi):
    """Eqs. 12-15: d L^val(theta*) / d psi, through theta* = theta - alpha grad_theta L^MTL.

    losses, omega (B, 3) with their graphs to theta and psi; val = (x, y_emo), the meta-test
    batch; alpha {parameter name: learning rate}; psi a list of tensors. Returns a gradient for
    each of psi and changes nothing in place: the definition.
    """
    theta = dict(net.named_parameters())
    l_mtl = (omega * losses).sum(1).mean()  # Eq. 12
    grad = torch.autograd.grad(l_mtl, list(theta.values()), create_graph=True)
    theta_star = {n: p - alpha[n] * g for (n, p), g in zip(theta.items(), grad)}  # Eq. 13
    return torch.autograd.grad(loss_val(net, theta_star, val), psi)  # Eqs. 14, 15


def loss_val(net, theta_star, val):
    """L^val = L^emo at theta*, on batch statistics; no running statistics move."""
    x, y_emo = val
    outputs = torch.func.functional_call(net, (theta_star, spare_buffers(net)), (x,))
    return loss_emo(outputs[1], y_emo).mean()


def hypergradient_jvp(net, losses, omega, val, alpha, psi, losses_along):
    """`hypergradient` without a second-order graph, equal in exact arithmetic.

    L^MTL is linear in omega, so d L^val / d omega_i = -(1/B) <alpha v, grad_theta L_i> with
    v = grad_theta* L^val: the derivative of L_i along alpha v. losses_along, {parameter name:
    direction} -> (B, 3), gives all of them by one forward-mode pass.
    """
    theta = {n: p.detach() for n, p in net.named_parameters()}
    l_mtl = (omega * losses).sum(1).mean()
    grad = torch.autograd.grad(l_mtl, list(net.parameters()), retain_graph=True)
    for (name, p), g in zip(theta.items(), grad):  # theta* takes the gradient's place
        g.mul_(-alpha[name]).add_(p).requires_grad_()
    theta_star = dict(zip(theta, grad))
    v = torch.autograd.grad(loss_val(net, theta_star, val), grad, materialize_grads=True)
    with torch.no_grad():  # torch 2.6 lets the zeros of what L^val does not need require grad
        tangent = {name: v_n.mul_(alpha[name]) for name, v_n in zip(theta, v)}
    del grad, theta_star, v
    d_losses = losses_along(tangent)
    return torch.autograd.grad(omega, psi, -d_losses / len(losses), retain_graph=True)


def record(net, x):
    """net(x), and (layer, its input, its output) of every layer with a rule in TANGENTS."""
    tape = []

    def keep(layer, inputs, y):
        tape.append((layer, inputs[0].detach(), y.detach()))

    hooks = [layer.register_forward_hook(keep) for layer in net.modules()
             if type(layer).__name__ in TANGENTS]
    try:
        return net(x), tape
    finally:
        for hook in hooks:
            hook.remove()


def tangent_conv(layer, x, y, dx, d):
    """d (W * x) = dW * x + W * dx; dx is None where the input does not depend on theta."""
    out = layer._conv_forward(x, d["weight"], None)
    return out if dx is None else out.add_(layer._conv_forward(dx, layer.weight, None))


def tangent_batch_norm(layer, x, y, dx, d):
    """Of gamma (x - mean) / sd + beta with batch statistics: the same with d gamma and d beta,
    and its Jacobian in x, which is symmetric, so that the backward kernel applies it to dx."""
    along, mean, inverse_sd = torch.native_batch_norm(
        x, d["weight"], d["bias"], None, None, True, 0, layer.eps)
    return along.add_(torch.ops.aten.native_batch_norm_backward(
        dx, x, layer.weight, None, None, mean, inverse_sd, True, layer.eps,
        [True, False, False])[0])


def tangent_relu(layer, x, y, dx, d):
    return torch.ops.aten.threshold_backward(dx, y, 0)


def tangent_max_pool(layer, x, y, dx, d):
    pool = torch.nn.functional.max_pool2d_with_indices
    _, where = pool(x, layer.kernel_size, layer.stride, layer.padding)
    return dx.flatten(2).gather(2, where.flatten(2)).view_as(y)


def tangent_linear(layer, x, y, dx, d):
    linear = torch.nn.functional.linear
    return linear(x, d["weight"], d["bias"]) + linear(dx, layer.weight)


TANGENTS = {"Conv2d": tangent_conv, "BatchNorm2d": tangent_batch_norm, "ReLU": tangent_relu,
            "MaxPool2d": tangent_max_pool, "Linear": tangent_linear}


def tangent_pass(net, tape, tangent):
    """The derivative of z_emo (B, K) and z_au (B, J) as theta moves along a tangent, at a
    recorded forward pass.

    Between the layers on the tape the net only adds and averages, which is linear: run on
    derivatives, with each layer replaced by its rule, it is its own forward-mode pass.
    """
    tape = iter(tape)

    def rule_of(name):
        def rule(dx):
            layer, x, y = next(tape)
            d = {n: tangent[f"{name}.{n}"] for n, _ in layer.named_parameters(recurse=False)}
            return TANGENTS[type(layer).__name__](layer, x, y, dx, d)

        return rule

    replaced = {n: m for n, m in net.named_modules() if type(m).__name__ in TANGENTS}
    try:
        for name, layer in replaced.items():
            layer.forward = rule_of(name)
        with torch.no_grad():
            df = net.backbone(None)
            return net.fe(df), net.au(df)
    finally:
        for layer in replaced.values():
            del layer.forward


def learning_rates(net, optimizer):
    """alpha of each named parameter, as the optimizer has it at this step."""
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rate[id(p)] for name, p in net.named_parameters()}


def meta_test(run, batch, outputs, tape, losses, omega, val):
    """psi's gradient in the form that --hypergrad names; auto compares both at its first step."""
    _, y_emo, y_au = batch
    args = (run.net, losses, omega, val[:2], learning_rates(run.net, run.opt),
            list(run.meta.parameters()))

    def losses_along(tangent):
        z = tuple(z.detach() for z in outputs[1:])
        return torch.func.jvp(
            lambda *z: all_losses((None, *z), y_emo, y_au, run.table, run.form), z,
            tangent_pass(run.net, tape, tangent))[1]

    if run.hypergrad == "jvp":
        return hypergradient_jvp(*args, losses_along)
    if run.hypergrad == "create_graph":
        return hypergradient(*args)
    tangent = hypergradient_jvp(*args, losses_along)  # first, for it leaves the graph whole
    definition = hypergradient(*args)
    a, b = (torch.cat([g.flatten() for g in form]) for form in (definition, tangent))
    difference = float((a - b).norm() / a.norm())
    run.hypergrad = "jvp" if difference < 1e-3 else "create_graph"
    note = "" if run.hypergrad == "jvp" else "Warning: "
    click.echo(f"{note}hypergradient: jvp differs from create_graph by {difference:.1e}; "
               f"going on with {run.hypergrad}", err=bool(note))
    return tangent if run.hypergrad == "jvp" else definition


def train_step(run, batch, val):
    """Fig. 3: meta-train, meta-test and base-learning; without a meta net only the last.

    The forward pass at theta serves meta-train and base-learning, for theta has not moved; it
    is the one pass a step that moves BatchNorm's running statistics. Returns (B-means) a tensor
    [L^emo, L^AU, L^AM, w^emo, w^AU, w^AM, |grad theta|, |grad psi|].
    """
    x, y_emo, y_au = batch
    outputs, tape = record(run.net, x) if run.meta else (run.net(x), None)
    losses = all_losses(outputs, y_emo, y_au, run.table, run.form)
    omega = loss_weights(run.meta, outputs[0], run.cfg)
    norm_psi = losses.new_zeros(())
    if run.meta:
        grad_psi = meta_test(run, batch, outputs, tape, losses, omega, val)
        for p, g in zip(run.meta.parameters(), grad_psi):
            p.grad = g
        norm_psi = torch.nn.utils.get_total_norm(grad_psi)
        run.opt_meta.step()  # Eq. 14
        omega = loss_weights(run.meta, outputs[0], run.cfg)  # psi hat
    run.opt.zero_grad()
    (omega.detach() * losses).sum(1).mean().backward()  # Eq. 16
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.net.parameters()])
    run.opt.step()  # Eq. 17
    means = torch.cat([losses, omega], 1).detach().mean(0)
    return torch.cat([means, torch.stack([norm, norm_psi])])


RECORD = ("L^emo", "L^AU", "L^AM", "w^emo", "w^AU", "w^AM", "gradient of theta", "gradient of psi")

# ---------------------------------------------------------------- the nets and their weights


def make_base_net(mean=(0.5,) * 3, std=(0.5,) * 3):
    """theta: ResNet-34, FE and AU classifier. x (B, 3, S, S) uint8 -> f (B, 512), z_emo, z_au.

    The normalisation belongs to the backbone's weights, so the net carries it as two buffers.
    """
    from torchvision.models import resnet34

    # torch's jvp uses torch.jit.script, which torch has deprecated
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)

    class BaseNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
            self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
            self.backbone = resnet34()
            self.backbone.fc = torch.nn.Identity()
            self.fe = torch.nn.Linear(512, len(EMOTIONS))
            self.au = torch.nn.Linear(512, len(AUS))

        def forward(self, x):
            f = self.backbone((x.to(self.mean.dtype) / 255 - self.mean) / self.std)
            return f, self.fe(f), self.au(f)

    return BaseNet()


def make_meta_net(method):
    """psi: a linear layer on f, zero at the start (weights of 0.5); None if nothing is learned."""
    outputs = METHODS[method].count("meta")
    if not outputs:
        return None
    meta = torch.nn.Linear(512, outputs)
    torch.nn.init.zeros_(meta.weight)
    torch.nn.init.zeros_(meta.bias)
    return meta


def torch_load(path):
    """A checkpoint's content, tensors and plain values alone: no code in a file is ever run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, expected a checkpoint file") from None
    except Exception as error:  # pickle's, zip's and torch's own, by the kind of damage
        why = str(error).strip().splitlines()[0][:90] if str(error).strip() else "cut short"
        raise InputError(f"{path}: not a checkpoint that can be read safely ({why})") from None


def unwrap_state_dict(content, path):
    """The bare ResNet-34 tensors of a file: wrappers, prefixes and the last layer taken off."""
    for key in ("state_dict", "model", "backbone", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a state dict, got {type(content).__name__}")
    bare = {re.sub(r"^((module|backbone|encoder)\.)+", "", str(k)): v for k, v in content.items()}
    return {k: v for k, v in bare.items() if hasattr(v, "shape") and not k.startswith("fc.")}


def load_backbone(net, path):
    """Put a ResNet-34 state dict into net.backbone, all of it or none; returns what it took."""
    given = unwrap_state_dict(torch_load(path), path)
    own = net.backbone.state_dict()
    wanted = [k for k in own if k in given or not k.endswith("num_batches_tracked")]
    wrong = [f"{k} missing" for k in wanted if k not in given]
    wrong += [f"{k} {tuple(given[k].shape)}, not {tuple(own[k].shape)}"
              for k in wanted if k in given and given[k].shape != own[k].shape]
    wrong += [f"{k} not finite" for k in wanted
              if not wrong and not (given[k].is_sparse or given[k].isfinite().all())]
    if wrong:
        raise InputError(f"{path}: not a whole ResNet-34, {len(wrong)} tensors: {'; '.join(wrong)}")
    net.backbone.load_state_dict({k: given[k].to_dense() for k in wanted}, strict=False)
    left = len(given) - len(wanted)
    return f"took {len(wanted)} tensors from {path}" + (f", left {left} others" if left else "")


def start_base_net(weights):
    """The base net at the start of a run, and a line on where its backbone comes from."""
    casia = HERE / "weights" / "resnet34_casia.pth"
    if weights == "auto" and casia.exists():
        weights = str(casia)
    if weights in ("auto", "none"):
        return make_base_net(), "from scratch. The paper starts from CASIA-WebFace: see --weights"
    if weights != "imagenet":
        net = make_base_net()
        return net, load_backbone(net, weights)
    from torchvision.models import ResNet34_Weights

    source = ResNet34_Weights.IMAGENET1K_V1
    try:
        state = source.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise InputError(f"--weights imagenet: no download of {source.url} ({error}); fetch it "
                         "elsewhere and give its path to --weights") from None
    preset = source.transforms()
    net = make_base_net(preset.mean, preset.std)
    net.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    return net, "ImageNet's, from torchvision"


def pick_device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type in ("cpu", "cuda"):
            return torch.zeros((), device=name).device
        error = "only cpu and cuda are supported"
    except (RuntimeError, AssertionError) as exception:
        error = str(exception).splitlines()[0][:120]
    raise InputError(f"--device {name}: {error}")


# ---------------------------------------------------------------- data (Sec. 3.1)


@dataclasses.dataclass(frozen=True)
class Faces:
    """Labels of N images, and once decoded the images."""

    names: list  # N file names, as the label files have them
    y_emo: np.ndarray  # (N,) 0..13
    split: np.ndarray  # (N,) TRAIN, TEST or VAL
    y_au: np.ndarray  # (N, J) 0 or 1
    images: object = None  # (N, 3, S, S) uint8 tensor

    def select(self, keep):
        """The faces at an index or mask."""
        keep = np.arange(len(self.names))[keep]
        names = [self.names[i] for i in keep]
        images = None if self.images is None else self.images[keep]
        return Faces(names, self.y_emo[keep], self.split[keep], self.y_au[keep], images)


def parse_code(top):
    """A parser of an integer 0..top."""

    def parse(text):
        if not text.isascii() or not text.isdigit() or int(text) > top:
            raise ValueError(f"expected a whole number 0..{top}, got {text!r}")
        return int(text)

    return parse


def parse_aus(text):
    """'4+L12+25' -> ((4, ''), (12, 'L'), (25, '')): number and letters; 'null' -> ()."""
    if text.lower() == "null":
        return ()
    aus = []
    for token in text.split("+"):
        match = re.fullmatch(r"([A-Za-z]*)([0-9]{1,3})([A-Za-z]*)", token)
        if not match:
            raise ValueError(f"expected AUs like 4+L12+25 or null, got {token!r} in {text!r}")
        if int(match[2]) not in AU_NAMES:
            raise ValueError(f"AU {int(match[2])} is not one of the 32 AUs of RAF-CE")
        aus.append((int(match[2]), (match[1] + match[3]).upper()))
    return tuple(aus)


def read_labels(path, parse, fields=1):
    """A label file's rows as {image name: (row number, value)}; parse takes the row's fields."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; `synth` makes stand-ins") from None
    if "\0" in text:
        raise InputError(f"{path}: not a text file; take the published one")
    rows = {}
    for number, line in enumerate(text.split("\n"), 1):
        parts = line.split()
        if not parts:
            continue
        where = f"{path}:{number}"
        if len(parts) != fields + 1:
            raise InputError(f"{where}: expected an image name and {fields} "
                             f"value{'s' * (fields > 1)}, got {len(parts)} "
                             f"field{'s' * (len(parts) > 1)}; mend this row")
        try:
            value = parse(*parts[1:])
        except ValueError as error:
            raise InputError(f"{where}: {error}; mend this row") from None
        if rows.get(parts[0], (0, value))[1] != value:
            raise InputError(f"{where}: {parts[0]} has another value in row {rows[parts[0]][0]}; "
                             "keep one of the two")
        rows[parts[0]] = (number, value)
    if not rows:
        raise InputError(f"{path}: empty; take the published one")
    return rows


def same_images(one, path_one, other, path_other):
    for name, (number, _) in one.items():
        if name not in other:
            raise InputError(f"{path_one}:{number}: {name} is not in {path_other}; "
                             "the label files must list the same images")


def load_labels(folder):
    """The three label files of a folder laid out like RAF-CE."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; ask for RAF-CE at "
                         "http://www.whdeng.cn/RAF/model2.html, or make stand-in faces: "
                         f"mmlfer synth {folder}")
    paths = [folder / name for name in LABEL_FILES]
    parsers = (parse_code(len(EMOTIONS) - 1), parse_code(2), parse_aus)
    emo, split, aus = (read_labels(path, parse) for path, parse in zip(paths, parsers))
    for other, path in ((split, paths[1]), (aus, paths[2])):
        same_images(emo, paths[0], other, path)
        same_images(other, path, emo, paths[0])
    names = list(emo)
    y_au = np.zeros((len(names), len(AUS)), np.uint8)
    for i, name in enumerate(names):
        y_au[i, [AUS.index(number) for number, _ in aus[name][1]]] = 1
    return Faces(names, np.array([emo[n][1] for n in names]),
                 np.array([split[n][1] for n in names]), y_au)


def stem(name):
    """What an image is called in every list: 0001 of 0001.jpg and 0001_aligned.png."""
    return Path(name).stem.removesuffix("_aligned")


def image_index(folder):
    """{stem: path} of the images in the places where people's copies of RAF-AU have them."""
    index = {}
    for base in (folder, folder / "RAF-AU"):
        for place in (base / "aligned" / "aligned", base / "aligned", base):
            for path in sorted(place.iterdir()) if place.is_dir() else ():
                if path.suffix.lower() in IMAGES:
                    index.setdefault(stem(path), path)
    return index


def read_image(path, size=None):
    """An image as a person sees it: upright, RGB; alpha on white. -> (S, S, 3) uint8 array."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":  # 16 bits
            image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype("u1"))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR) if size else image)


def try_read(path, size):
    """read_image, or the reason why not."""
    try:
        return read_image(path, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{path}: {error}" if str(path) not in str(error) else str(error)


def decode(paths, size, desc="decoding"):
    """Yield each path's (S, S, 3) array or the reason why not, in order, decoded on all cores."""
    bar = tqdm(total=len(paths), desc=desc, unit=" faces", disable=None, leave=False)
    with bar, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), 256):  # no more than these lie in memory
            for image in pool.map(lambda path: try_read(path, size), paths[start : start + 256]):
                bar.update()
                yield image


def load_images(faces, folder, size, skip_bad=False):
    """The faces with their images decoded once into one (N, 3, S, S) uint8 tensor."""
    index = image_index(Path(folder))
    stems = [stem(name) for name in faces.names]
    found = np.array([key in index for key in stems])
    bad = [f"{name} is nowhere below {folder}" for name, f in zip(faces.names, found) if not f]
    images = np.empty((int(found.sum()), 3, size, size), np.uint8)
    good = np.zeros(len(images), bool)
    for i, image in enumerate(decode([index[key] for key in stems if key in index], size)):
        if isinstance(image, str):
            bad.append(image)
        else:
            images[i], good[i] = image.transpose(2, 0, 1), True
    if bad and not skip_bad:
        raise InputError(f"{len(bad)} of {len(stems)} images cannot be read: {'; '.join(bad[:3])}"
                         f"{'; ...' if len(bad) > 3 else ''}. Images belong in {folder}/aligned; "
                         "--skip-bad-images goes on without them")
    if bad:
        click.echo(f"Warning: left out {len(bad)} images that cannot be read: {bad[0]}", err=True)
    found[found] = good
    return dataclasses.replace(faces.select(found), images=torch.from_numpy(images[good]))


def counts(y_emo):
    return tuple(np.bincount(y_emo, minlength=len(EMOTIONS)).tolist())


def is_rafce(faces):
    """Whether these are RAF-CE's own counts, by expression and partition."""
    splits = {name: int((faces.split == code).sum()) for name, code in SPLITS.items()}
    test = counts(faces.y_emo[faces.split == TEST])
    return (counts(faces.y_emo), test, splits) == (RAFCE_TOTALS, RAFCE_TEST, RAFCE_SPLITS)


def describe(faces, folder):
    """What was found: images by expression and partition, rows without AUs, mean active AUs."""
    lines = [f"{folder}: {len(faces.names)} images", f"  {'':24}  train   test    val"]
    by_split = [counts(faces.y_emo[faces.split == code]) for code in SPLITS.values()]
    for name, *row in zip(EMOTIONS + ("all",), *[c + (sum(c),) for c in by_split]):
        lines.append(f"  {name:24}" + "".join(f"{n:7}" for n in row))
    active = faces.y_au.sum(1)
    without = int((active == 0).sum())
    lines.append(f"  {without} rows without AUs, {active.mean():.2f} active AUs a face")
    own = "these are RAF-CE's own counts" if is_rafce(faces) else "not RAF-CE's own counts"
    return "\n".join([*lines, f"  {own}"])


def check_trainable(faces, folder, batch_size):
    for name, code in SPLITS.items():
        n, least = int((faces.split == code).sum()), 1 if code == TEST else batch_size
        if n < least:
            raise InputError(f"{folder}: {n} {name} images, expected at least {least}; "
                             f"see {LABEL_FILES[1]} (0 train, 1 test, 2 validation), --batch-size")
    active = faces.y_au[faces.split == TRAIN].sum(1).mean()
    if active < 0.1:
        raise InputError(f"{folder}/RAFCE_AUlabel.txt: {active:.3f} active AUs a training face; "
                         "the AUs were lost: take the published file")


def split_faces(y_emo, seed):
    """20 % test, a quarter of the rest validation, within each expression. -> (N,)"""
    rng = np.random.default_rng([seed, 20])
    split = np.full(len(y_emo), TRAIN)
    for k in range(len(EMOTIONS)):
        of_k = rng.permutation(np.flatnonzero(np.asarray(y_emo) == k))
        n_test = round(0.2 * len(of_k))
        split[of_k[:n_test]] = TEST
        split[of_k[n_test : n_test + round(0.25 * (len(of_k) - n_test))]] = VAL
    return split


def write_labels(folder, names, *columns):
    """Write label files in RAF-CE's form, a column of strings for each of LABEL_FILES."""
    for file, column in zip(LABEL_FILES, columns):
        rows = (f"{name} {value}\n" for name, value in zip(names, column))
        write_whole(Path(folder) / file, "".join(rows).encode())


def write_whole(path, content):
    """Write a file under a temporary name and rename it: there is never half a file."""
    path = Path(path)
    part = path.parent / f".{path.name}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if part.is_file():
            part.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror}); free some space or name "
                         "another folder, what was there is whole") from None


# ---------------------------------------------------------------- AU statistics (Sec. 3.2)


def load_stats(name):
    """Table 1, p(AU | expression), of "wild", "lab" or a YAML file. -> (K, J) float array.

    AUs below 20 % count as 0; AU 11, of the lab table alone, is no AU of RAF-CE and is dropped.
    """
    path = HERE / "stats" / f"{name}.yaml" if name in ("wild", "lab") else Path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # yaml raises many kinds for odd tags and nesting
        why = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read as YAML ({why}); --stats takes wild, lab or a "
                         "file of `mmlfer stats --out`") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected expressions with their AUs, as in stats/wild.yaml")
    unknown = [str(e) for e in content if e not in EMOTIONS]
    if unknown or len(content) < len(EMOTIONS):
        missing = ", ".join(e for e in EMOTIONS if e not in content)
        raise InputError(f"{path}: " + (f"unknown expression {unknown[0]!r}" if unknown else
                                        f"no row for {missing}") + "; see stats/wild.yaml")
    table = np.zeros((len(EMOTIONS), len(AUS)))
    for k, emotion in enumerate(EMOTIONS):
        if not isinstance(content[emotion], dict):
            raise InputError(f"{path}: {emotion}: expected AUs with fractions, like {{12: 0.58}}")
        for au, p in content[emotion].items():
            if type(au) is not int or au not in (*AUS, 11):
                raise InputError(f"{path}: {emotion}: unknown AU {au!r:.20}; the AUs are {AUS}")
            if type(p) not in (int, float) or not 0 <= p <= 1:
                raise InputError(f"{path}: {emotion}: AU {au}: expected a fraction 0..1, got "
                                 f"{str(p)[:20]!r}")
            if au != 11 and p >= OBSERVED:
                table[k, AUS.index(au)] = p
        if not table[k].any():
            raise InputError(f"{path}: {emotion}: no AU of 0.2 or more, and Eq. 7 divides by "
                             "their sum")
    return table


def best_by_aus(y_au, y_emo, table):
    """Accuracy of a perfect reader of the AUs, who knows `table` and the commonness of each
    expression: argmax_k p(k) prod_j p(y_j | k). y_au (N, J), y_emo (N,), table (K, J)."""
    p = table.clip(1e-3, 1 - 1e-3)
    log_p = y_au @ np.log(p).T + (1 - y_au.astype(float)) @ np.log(1 - p).T
    log_p += np.log(np.array(counts(y_emo)) / len(y_emo) + 1e-9)
    return float((log_p.argmax(1) == y_emo).mean())


# ---------------------------------------------------------------- stand-in faces, drawn from AUs
# Face coordinates: u, v in -1..1, u > 0 the subject's left, v > 0 downwards.

SKIN = ("#f4d4ba", "#eabe9e", "#e0ac84", "#be8862", "#8d5c3e", "#5c3a2a")
HAIR = ("#1c1614", "#3a261a", "#603e24", "#966838", "#ceaa6e", "#807c7a")
LOOK = ("jaw", "eye", "brow", "nose", "mouth", "lips", "hairline", "long")  # of a person, -1..1
FURROWS = (  # AU, depth, width, control points on the left, mirrored to the right
    (1, 0.75, 0.009, ((0.02, -0.65), (0.16, -0.71), (0.30, -0.63))),
    (1, 0.75, 0.009, ((0.02, -0.74), (0.16, -0.80), (0.30, -0.72))),
    (2, 0.75, 0.009, ((0.30, -0.63), (0.50, -0.73), (0.66, -0.60))),
    (2, 0.75, 0.009, ((0.30, -0.72), (0.50, -0.82), (0.66, -0.69))),
    (4, 1.10, 0.011, ((0.055, -0.33), (0.045, -0.50))),
    (6, 0.75, 0.012, ((0.22, -0.10), (0.42, 0.00), (0.64, -0.10))),
    (6, 0.80, 0.008, ((0.67, -0.22), (0.80, -0.30))),
    (6, 0.80, 0.008, ((0.67, -0.19), (0.80, -0.20))),
    (6, 0.80, 0.008, ((0.67, -0.15), (0.80, -0.10))),
    (7, 0.80, 0.009, ((0.25, -0.125), (0.59, -0.13))),
    (9, 1.00, 0.011, ((0.02, -0.16), (0.16, -0.21))),
    (9, 1.00, 0.011, ((0.02, -0.09), (0.16, -0.12))),
    (9, 1.00, 0.011, ((0.02, -0.02), (0.16, -0.03))),
    (10, 0.85, 0.014, ((0.20, 0.13), (0.39, 0.20), (0.43, 0.46))),
    (12, 0.85, 0.014, ((0.20, 0.17), (0.49, 0.22), (0.47, 0.41))),
    (14, 0.90, 0.014, ((0.35, 0.45), (0.36, 0.56))),
    (15, 0.90, 0.014, ((0.36, 0.62), (0.42, 0.72), (0.38, 0.82))),
    (17, 1.00, 0.014, ((0.00, 0.75), (0.10, 0.75), (0.17, 0.82))),
    (17, 1.00, 0.013, ((0.09, 0.86), (0.12, 0.88))),
    (17, 1.00, 0.013, ((0.03, 0.90), (0.06, 0.92))),
    (20, 0.90, 0.012, ((0.50, 0.42), (0.56, 0.56), (0.50, 0.70))),
    (24, 0.70, 0.010, ((0.00, 0.40), (0.25, 0.46))),
    (24, 0.70, 0.010, ((0.00, 0.62), (0.25, 0.56))),
)


def bezier(*points, n=20):
    """n points on the Bezier curve of these control points. -> (n, 2)"""
    points, t = np.array(points, float), np.linspace(0, 1, n)[:, None]
    while len(points) > 1:  # de Casteljau
        points = [(1 - t) * a + t * b for a, b in zip(points[:-1], points[1:])]
    return points[0]


def mix(a, b, share):
    """The colour at this share of the way from a to b."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))


class FaceCanvas:
    """Draws in face coordinates under a pose, at three times the size; soft shading (128: none)
    is gathered apart, blurred, and multiplied in at the end."""

    def __init__(self, size, rng):
        self.scale, self.width = 3 * size, rng.uniform(0.36, 0.41)
        self.yaw, self.roll, self.pitch = rng.normal(0, (0.16, 0.07, 0.05))
        backdrop = mix((128,) * 3, rng.integers(0, 256, 3).tolist(), 0.6)
        self.image = Image.new("RGB", (self.scale,) * 2, backdrop)
        self.shade = Image.new("L", self.image.size, 128)
        self.pen, self.soft = ImageDraw.Draw(self.image), ImageDraw.Draw(self.shade)

    def at(self, points):
        """Pixels of (n, 2) face coordinates: the head turned (yaw, pitch), tilted (roll)."""
        u, v = np.asarray(points, float).T
        bulge = np.clip(1 - u**2 - 0.5 * v**2, 0, 1)  # what stands out moves when the head turns
        x, y = self.width * (u + self.yaw * bulge), 0.44 * (v + self.pitch * bulge)
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        xy = np.stack([0.5 + cos * x - sin * y, 0.5 + sin * x + cos * y], 1) * self.scale
        return [tuple(p) for p in xy.tolist()]

    def fill(self, points, color, pen=None):
        (pen or self.pen).polygon(self.at(points), fill=color)

    def dot(self, u, v, ru, rv, color, pen=None):
        t = np.linspace(0, 2 * np.pi, 32)
        self.fill(np.stack([u + ru * np.cos(t), v + rv * np.sin(t)], 1), color, pen)

    def line(self, points, color, width, pen=None):
        """A round-ended stroke; width as a share of the picture, one number or one a point."""
        xy, pen = self.at(points), pen or self.pen
        radii = np.broadcast_to(np.asarray(width, float) * self.scale / 2, len(xy))
        for (x, y), (x2, y2), r in zip(xy, [*xy[1:], xy[-1]], radii):
            pen.line((x, y, x2, y2), fill=color, width=max(1, round(2 * r)))
            pen.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def crease(self, points, depth, width):
        if depth > 0.05:
            shade = int(128 - 95 * min(depth, 1.2))
            self.line(points, shade, width * (0.7 + depth), self.soft)

    def inside(self, outline, color):
        """A pen on a new layer of this colour, and a call that pastes it within the outline."""
        layer, mask = Image.new("RGB", self.image.size, color), Image.new("L", self.image.size, 0)
        self.fill(outline, 255, ImageDraw.Draw(mask))
        return ImageDraw.Draw(layer), lambda: self.image.paste(layer, mask=mask)


def draw_face(aus, rng, size):
    """A face with the AUs {number: (right, left) strength 0..1}, all else drawn from rng."""
    by_side = [{n: float(aus.get(n, (0, 0))[side]) for n in AUS} for side in (0, 1)]
    both = {n: (by_side[0][n] + by_side[1][n]) / 2 for n in AUS}
    canvas = FaceCanvas(size, rng)
    skin = mix(*[ImageColor.getrgb(SKIN[i]) for i in rng.integers(0, 6, 2)], rng.random())
    hair = mix(*[ImageColor.getrgb(HAIR[i]) for i in rng.integers(0, 6, 2)], rng.random() / 2)
    look = dict(zip(LOOK, rng.uniform(-1, 1, len(LOOK)).tolist()))
    jaw = 0.14 * both[26] + 0.26 * both[27] + 0.03 * both[25]
    draw_head(canvas, skin, hair, look, jaw)
    for side, a in zip((-1, 1), by_side):
        draw_eye(canvas, side, a, skin, look)
        draw_brow(canvas, side, a, hair, look)
        draw_nose(canvas, side, a, skin, look)
        for n, depth, width, points in FURROWS:
            u, v = np.array(points).T
            line = bezier(*zip(side * u, v + jaw * np.clip(4 * v - 2, 0, 1)))
            canvas.crease(line, depth * a[n], width)
    draw_mouth(canvas, by_side, both, skin, look, jaw)
    draw_fringe(canvas, hair, look)
    return expose(canvas, rng, size)


def draw_head(c, skin, hair, look, jaw):
    """Hair behind, neck, ears, and the outline of the face with its jaw."""
    long = 0.3 * (look["long"] > 0.2)
    if look["hairline"] > -0.85:
        c.dot(0, long - 0.3, 1.2, 0.95 + 1.3 * long, hair)
    c.fill([(-0.5, 0.6), (0.5, 0.6), (0.62, 1.6), (-0.62, 1.6)], mix(skin, (30, 15, 10), 0.25))
    c.dot(-1, -0.05, 0.1, 0.2, mix(skin, (90, 30, 20), 0.2))
    c.dot(1, -0.05, 0.1, 0.2, mix(skin, (90, 30, 20), 0.2))
    t = np.linspace(0, 2 * np.pi, 90)
    u, v = np.cos(t), np.sin(t)
    u *= 1 - (0.22 - 0.08 * look["jaw"]) * np.clip(v, 0, 1) ** 2
    c.fill(np.stack([u, v * np.where(v > 0, 0.98 + jaw, 1.05)], 1), skin)
    c.dot(0, 0.84 + 0.8 * jaw, 0.2, 0.09, 138, c.soft)


def draw_eye(c, side, a, skin, look):
    """The lids' opening, the eye in it, and the cheek below: AUs 5 6 7 9 12 43."""
    x, y, half = 0.42, -0.2, 0.2 + 0.02 * look["eye"]
    up = 0.075 + 0.085 * a[5] - 0.03 * a[7] - 0.015 * a[6] - 0.01 * a[9]
    low = 0.05 + 0.01 * a[5] - 0.028 * a[7] - 0.03 * a[6] - 0.01 * a[12] - 0.015 * a[9]
    up, low = np.array((up, low)) * (2 + 0.24 * look["eye"]) * (1 - 0.95 * a[43])
    near, far = (x - half, y + 0.02), (x + half, y)
    lid = bezier(near, (x - 0.6 * half, y - up), (x + half / 2, y - up), far) * (side, 1)
    bed = bezier(far, (x + half / 2, y + low), (x - half / 2, y + low), near) * (side, 1)
    x *= side
    pen, paste = c.inside(np.concatenate([lid, bed]), (238, 234, 230))
    iris = mix((60, 36, 20), (90, 130, 150), 0.9 * max(0, look["eye"]))
    for radius, color in ((0.098, mix(iris, (0, 0, 0), 0.4)), (0.085, iris), (0.042, (8, 6, 6))):
        c.dot(x, y - 0.015, radius, 0.86 * radius, color, pen)
    c.dot(x - 0.03, y - 0.045, 0.02, 0.016, (250, 250, 250), pen)
    c.line(lid, (110, 90, 84), 0.016, pen)  # the upper lid's shadow on the eye
    paste()
    c.line(lid, mix(skin, (20, 8, 6), 0.8), 0.013)
    c.line(bed, mix(skin, (60, 20, 15), 0.45), 0.006)
    c.line(lid[3:-1] - (0, 0.035 + 0.01 * a[5]), mix(skin, (60, 25, 15), 0.4), 0.006)
    c.dot(x, y - 0.06, 0.27, 0.15, 112, c.soft)
    light = 138 + int(28 * min(1, a[6] + 0.5 * a[12]))
    c.dot(1.05 * x, 0.16 - 0.05 * a[6], 0.2, 0.13, light, c.soft)


def draw_brow(c, side, a, hair, look):
    """AUs 1, 2, 4 and 9: the inner and the outer end move apart from each other."""
    frown = a[4] + 0.4 * a[9]
    inner = (0.17 - 0.07 * frown, -0.39 - 0.15 * a[1] + 0.11 * frown)
    arch = -0.49 - 0.04 * look["brow"] - 0.12 * a[2] - 0.06 * a[1] + 0.1 * a[4]
    outer = (0.71, -0.36 - 0.14 * a[2] + 0.045 * a[4] - 0.02 * a[1])
    brow = bezier(inner, (0.44, arch), outer) * (side, 1)
    thick = (0.024 + 0.008 * look["brow"]) * np.linspace(1.15, 0.35, len(brow))
    c.line(brow, mix(hair, (20, 12, 8), 0.5), thick)
    c.crease(brow + (0, 0.05), 0.3 + 0.5 * a[4], 0.03)


def draw_nose(c, side, a, skin, look):
    """A nostril, its wing and the bridge's side: AUs 9 and 10 raise them, 39 narrows."""
    v = 0.2 - 0.05 * a[9] - 0.02 * a[10]
    w = side * (0.145 + 0.025 * look["nose"]) * (1 + 0.18 * a[9] - 0.25 * a[39])
    wing = bezier((w, v - 0.1), (1.3 * w, v + 0.02), (0.75 * w, v + 0.04))
    c.dot(w / 2, v + 0.025, 0.045 * (1 - 0.5 * a[39]), 0.02, mix(skin, (25, 5, 5), 0.75))
    c.line(wing, mix(skin, (50, 15, 10), 0.5), 0.007)
    bridge = bezier((0.1 * side, -0.25), (0.06 * side, -0.05), (0.11 * side, 0.1))
    c.crease(bridge, 0.3, 0.03)
    c.dot(0, 0.12, 0.07, 0.06, 150, c.soft)
    c.dot(0, 0.26, 0.12, 0.025, 96, c.soft)


def mouth_corner(side, a, half, jaw):
    """A corner of the mouth: AU 12 up and out, 14 in, 15 down, 20 out."""
    u = half + 0.1 * a[12] + 0.03 * a[14] + 0.12 * a[20] + 0.01 * a[15]
    v = 0.52 + 0.35 * jaw - 0.15 * a[12] + 0.12 * a[15] + 0.02 * a[20] - 0.03 * a[14]
    return u * side, v


def draw_mouth(c, by_side, a, skin, look, jaw):
    """Lips and what they open on: AUs 10 12 15-18 20 22-28 (a: the mean of both sides)."""
    half = 0.3 + 0.03 * look["mouth"] - 0.1 * a[18] - 0.05 * a[22] - 0.04 * a[23] - 0.03 * a[27]
    right, left = (mouth_corner(s, one, half, jaw) for s, one in zip((-1, 1), by_side))
    thin = 1 - 0.6 * a[24] - 0.3 * a[20] - 0.35 * a[23] - 0.8 * a[28] - 0.15 * a[12]
    thin = max(thin, 0.12) * (1 + 0.25 * look["lips"] + 0.35 * a[18] + 0.5 * a[22])
    gap = 0.05 * a[25] + 0.85 * jaw + 0.04 * a[22]
    is_open, arch = gap > 0, 0.05 * a[10]
    top = 0.5 - 0.085 * a[10] - (0.03 * a[12] + 0.02 * a[16]) * a[25]
    bottom = top + gap + (0.02 + 0.145 * a[16] + 0.06 * a[12]) * is_open - 0.05 * a[17]
    bottom = max(bottom, top)
    upper, lower = 0.085 * thin, 0.115 * thin + 0.055 * a[16] * (not is_open)
    (r, _), (w, _) = right, left

    def across(sides, middle):
        """A lip's edge from corner to corner, by the heights at 0.6 and at 0.25 of the way out."""
        return bezier(right, (0.6 * r, sides), (0.25 * r, middle), (0, middle), (0.25 * w, middle),
                      (0.6 * w, sides), left, n=21)

    inner_top = across(top - arch, top)
    inner_low = across(bottom, bottom) if is_open else inner_top
    low = inner_low[10, 1]
    cupid = bezier(right, (0.55 * r, top - 1.3 * upper - arch), (-0.05, top - 2.4 * upper),
                   (0, top - 0.6 * upper), (0.05, top - 2.4 * upper),
                   (0.55 * w, top - 1.3 * upper - arch), left, n=21)
    outer_low = bezier(right, (0.6 * r, low + 1.5 * lower), (0, low + 1.9 * lower),
                       (0.6 * w, low + 1.5 * lower), left, n=21)
    lip = mix(skin, (170, 50, 60), 0.5 + 0.15 * look["lips"])
    c.fill(np.concatenate([cupid, outer_low[::-1]]), lip)
    c.fill(np.concatenate([inner_top, outer_low[::-1]]), mix(lip, (255, 220, 210), 0.12))
    c.dot(0, low + 2.2 * lower + 0.02, 0.2, 0.035, 92, c.soft)
    if is_open:
        draw_teeth(c, inner_top, inner_low, a)
    else:
        c.line(inner_top, mix(lip, (30, 5, 5), 0.65), 0.009)
        c.crease(bezier((-0.24, 0.66), (0, 0.8), (0.24, 0.66)), a[16], 0.016)


def draw_teeth(c, inner_top, inner_low, a):
    """The open mouth: darkness, the tongue, teeth above and, with AU 16, below."""
    pen, paste = c.inside(np.concatenate([inner_top, inner_low[::-1]]), (62, 14, 18))
    top, low = inner_top[10, 1], inner_low[10, 1]
    c.dot(0, low + 0.02 - 0.05 * a[19], 0.2, 0.11, (190, 84, 88), pen)
    teeth = min(0.055 + 0.05 * a[10] + 0.03 * a[12], 0.6 * (low - top))
    c.dot(0, top, 0.33, teeth, (240, 236, 226), pen)
    if a[16]:
        c.dot(0, low, 0.24, 0.03 + 0.05 * a[16], (232, 226, 214), pen)
    paste()


def draw_fringe(c, hair, look):
    v = -0.86 - 0.1 * look["hairline"]
    parting = (-0.4 * look["long"], v - 0.12)
    fringe = bezier((-1.08, -0.1), (-0.95, v), parting, (0.95, v), (1.08, -0.1))
    crown = bezier((1.08, -0.1), (1.35, -1.7), (-1.35, -1.7), (-1.08, -0.1))
    if look["hairline"] > -0.85:  # else bald
        c.fill(np.concatenate([fringe, crown]), hair)


def expose(c, rng, size):
    """The picture taken: shading, light from a side, the colour of it, the camera's noise."""
    shade = c.shade.filter(ImageFilter.GaussianBlur(c.scale / 150))
    pixels, shade = (np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), float)
                     for image in (c.image, shade))
    x, y = np.meshgrid(*[np.linspace(-1, 1, size)] * 2)
    angle, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.32)
    light = 1 + contrast * (np.cos(angle) * x + np.sin(angle) * y) + rng.normal(0, 0.1)
    light *= 1 + 0.62 * (shade / 128 - 1)
    pixels *= light[..., None] * (1 + rng.normal(0, 0.04, 3))
    pixels += rng.normal(0, rng.uniform(1, 5), (size, size, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def strengths(aus, rng):
    """{AU: (right, left)} of parsed AU tokens: a side moves its half of the face alone."""
    moved = {}
    for number, letters in aus:
        amount, one = rng.uniform(0.6, 1.15), letters.strip("TB")
        moved[number] = (amount * (one != "L"), amount * (one != "R"))
    return moved


def write_face(job):
    """Draw one row's face into its file; the row's own seed makes it the same at any time."""
    path, aus, size, seed = job
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    draw_face(strengths(parse_aus(aus), rng), rng, size).save(buffer, "JPEG", quality=92)
    Path(path).write_bytes(buffer.getvalue())


def draw_labels(n, table, seed):
    """Labels of n stand-ins: expressions in RAF-CE's proportions, AUs by the statistics, sides
    for some, 1 row in 100 null. -> names, y_emo, AU strings"""
    rng = np.random.default_rng([seed, 1])
    y_emo = rng.choice(len(EMOTIONS), n, p=np.array(RAFCE_TOTALS) / sum(RAFCE_TOTALS))
    active = (rng.random((n, len(AUS))) < table[y_emo]) & (rng.random((n, 1)) > 0.01)
    aus = []
    for row in active:
        sides = rng.choice(["", "L", "R"], len(AUS), p=[0.9, 0.05, 0.05])
        aus.append("+".join(f"{s}{au}" for s, au in zip(sides[row], np.array(AUS)[row])) or "null")
    return [f"{i:04d}.jpg" for i in range(1, n + 1)], y_emo, aus


def synthesize(out, n, stats, labels, size, seed):
    """Write stand-in faces in RAF-CE's own layout, for drawn labels or for those of a folder."""
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: not empty; name a new folder")
    if labels:
        load_labels(labels)  # complains
        names = list(read_labels(Path(labels) / LABEL_FILES[0], str))
        aus = {k: v for k, (_, v) in read_labels(Path(labels) / LABEL_FILES[2], str).items()}
        aus = [aus[name] for name in names]
    else:
        names, y_emo, aus = draw_labels(n, load_stats(stats), seed)
    (out / "aligned").mkdir(parents=True, exist_ok=True)
    jobs = [(str(out / "aligned" / f"{stem(name)}_aligned.jpg"), row, size, [seed, 2, i])
            for i, (name, row) in enumerate(zip(names, aus))]
    with concurrent.futures.ProcessPoolExecutor(
        min(os.cpu_count(), 1 + len(jobs) // 200), multiprocessing.get_context("spawn")
    ) as pool:
        done = pool.map(write_face, jobs, chunksize=16)
        list(tqdm(done, "drawing", len(jobs), unit=" faces", disable=None, leave=False))
    if labels:
        for file in LABEL_FILES:
            shutil.copyfile(Path(labels) / file, out / file)
    else:
        write_labels(out, names, y_emo, split_faces(y_emo, seed), aus)


# ---------------------------------------------------------------- metrics (Sec. 5.3)


def confusion_matrix(truth, pred):
    """Counts of truth (rows) by prediction (columns). (N,), (N,) -> (K, K)"""
    k = len(EMOTIONS)
    return np.bincount(np.asarray(truth) * k + np.asarray(pred), minlength=k * k).reshape(k, k)


def ratio(top, bottom):
    """top / bottom, None where it is undefined."""
    return float(top / bottom) if bottom else None


def mean_defined(values):
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined else None


def expression_f1(confusion):
    """F1 of each expression, None of those without an image."""
    n, called = confusion.sum(1), confusion.sum(0)
    return [2 * r / (a + b) if a else None for r, a, b in zip(confusion.diagonal(), n, called)]


def expression_metrics(confusion):
    """Acc., Diag. (mean of the diagonal's rates) and macro F1 of a (K, K) confusion matrix.

    Expressions without an image are left out of both means; their rate is None.
    """
    right, n = confusion.diagonal(), confusion.sum(1)
    rates = [ratio(*pair) for pair in zip(right, n)]
    return {"n": int(n.sum()), "accuracy": ratio(right.sum(), n.sum()), "diag": mean_defined(rates),
            "macro_f1": mean_defined(expression_f1(confusion)),
            "per_class": dict(zip(EMOTIONS, rates)), "confusion": confusion.tolist()}


def au_metrics(y_au, active):
    """F1 of each AU over (N, J) truth and predictions; None where an AU is in neither."""
    both, total = (y_au * active).sum(0), y_au.sum(0) + active.sum(0)
    f1 = {str(au): ratio(2 * b, t) for au, b, t in zip(AUS, both.astype(int), total.astype(int))}
    return {"au_f1": f1, "au_f1_macro": mean_defined(f1.values())}


def as_batch(images):
    """x (N, 3, S, S) uint8 of N arrays (S, S, 3)."""
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def predict_faces(net, images, batch=64):
    """p_emo (N, K) and p_au (N, J) of (N, 3, S, S) images, as arrays; BatchNorm in test mode."""
    device = next(net.parameters()).device
    net.eval()
    with torch.no_grad():
        outputs = [net(part.to(device))[1:] for part in images.split(batch)]
    net.train()
    p_emo, p_au = (torch.cat(z) for z in zip(*outputs))
    return p_emo.softmax(1).cpu().numpy(), p_au.sigmoid().cpu().numpy()


def trains_aus(method):
    return METHODS[method][1] != 0


def evaluate(net, faces, method):
    """All numbers of a net on some faces, and its predictions ("pred").

    The AU classifier of stl is untrained: no AU F1.
    """
    p_emo, p_au = predict_faces(net, faces.images)
    pred = p_emo.argmax(1)
    numbers = expression_metrics(confusion_matrix(faces.y_emo, pred))
    aus = {"au_f1": dict.fromkeys(map(str, AUS)), "au_f1_macro": None}
    if trains_aus(method):
        aus = au_metrics(faces.y_au, p_au > 0.5)
    return {**numbers, **aus, "pred": pred.tolist()}


def percent(value):
    return "     -" if value is None else f"{100 * value:6.2f}"


def report(numbers):
    """The numbers as text: Table 2's row on end, AU F1, the confusion matrix."""
    confusion = np.array(numbers["confusion"])
    lines = [f"{'expression':24}{'images':>7}{'right %':>9}{'F1 %':>9}"]
    rows = zip(numbers["per_class"].items(), confusion.sum(1), expression_f1(confusion))
    for (name, rate), n, f1 in rows:
        lines.append(f"{name:24}{n:7}{percent(rate):>9}{percent(f1):>9}")
    for name, key in (("Acc.", "accuracy"), ("Diag.", "diag"), ("macro F1", "macro_f1")):
        lines.append(f"{name:24}{numbers['n']:7}{percent(numbers[key]):>9}")
    lines.append("\nAU F1 % (AUs neither present nor predicted are left out)")
    for au, f1 in numbers["au_f1"].items():
        if f1 is not None:
            lines.append(f"AU {au:>2} {AU_NAMES[int(au)]:25}{percent(f1):>9}")
    lines.append(f"{'macro':31}{percent(numbers['au_f1_macro']):>9}")
    lines.append("\nconfusion: true expressions down, predicted across, in the order above")
    lines += ["".join(f"{n:5}" for n in row) for row in confusion.tolist()]
    return "\n".join(lines)


# ---------------------------------------------------------------- training


class Run:
    """What training moves: the nets, their optimisers, the schedule, and where it stands."""

    def __init__(self, cfg, steps, weights=None):
        self.cfg, self.steps = cfg, steps  # steps of an epoch
        self.hypergrad = cfg.hypergrad
        self.device = pick_device(cfg.device)
        self.form = cfg.form if cfg.form != "auto" else "lab" if cfg.stats == "lab" else "wild"
        self.table = torch.tensor(load_stats(cfg.stats), dtype=torch.float32, device=self.device)
        torch.manual_seed(cfg.seed)
        self.net, self.origin = start_base_net(weights or cfg.weights)
        self.net.to(self.device, memory_format=torch.channels_last)
        self.meta = make_meta_net(cfg.method)
        heads = [*self.net.fe.parameters(), *self.net.au.parameters()]
        groups = [{"params": list(self.net.backbone.parameters()), "lr": cfg.lr_backbone},
                  {"params": heads, "lr": cfg.lr_heads}]
        self.opt = torch.optim.SGD(groups, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
        self.opt_meta = None
        if self.meta:
            self.meta.to(self.device)
            self.opt_meta = torch.optim.SGD(self.meta.parameters(), lr=cfg.lr_meta)
        self.scheduler = None
        if cfg.schedule == "onecycle":
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
                self.opt, [cfg.lr_backbone, cfg.lr_heads], cfg.epochs * steps, cycle_momentum=False)
        self.epoch, self.step, self.elapsed, self.log = 0, 0, 0.0, []
        self.record = torch.zeros(steps, len(RECORD), device=self.device)

    def parts(self):
        named = {"opt": self.opt, "opt_meta": self.opt_meta, "scheduler": self.scheduler}
        return {name: part for name, part in named.items() if part}

    def state(self):
        """Everything that a resumed run needs."""
        parts = {name: part.state_dict() for name, part in self.parts().items()}
        return {**inference_state(self), **parts, "step": self.step, "elapsed": self.elapsed,
                "log": self.log, "hypergrad": self.hypergrad, "record": self.record.cpu()}

    def restore(self, state):
        """Go on where a checkpoint stands."""
        if "record" not in state or len(state["record"]) != self.steps:
            raise InputError(f"the run's last.pt does not fit: {self.steps} steps an epoch now; "
                             "its training images or the file have changed since")
        nets = {"net": self.net, "meta": self.meta} if self.meta else {"net": self.net}
        for name, part in {**nets, **self.parts()}.items():
            part.load_state_dict(state[name])
        for name in ("epoch", "step", "elapsed", "log", "hypergrad"):
            setattr(self, name, state[name])
        self.record.copy_(state["record"])


FORMAT = "mmlfer checkpoint 1"


def inference_state(run):
    """What prediction needs: nets, options, vocabulary."""
    return {"format": FORMAT, "config": dataclasses.asdict(run.cfg), "emotions": list(EMOTIONS),
            "aus": list(AUS), "table": run.table.cpu(), "epoch": run.epoch,
            "net": run.net.state_dict(), "meta": run.meta.state_dict() if run.meta else {}}


def read_checkpoint(path):
    """A checkpoint of this program, checked, as a dict."""
    state = torch_load(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of mmlfer; give best.pt or last.pt of a run")
    if state.get("emotions") != list(EMOTIONS) or state.get("aus") != list(AUS):
        raise InputError(f"{path}: made for other expressions or AUs than RAF-CE's 14 and 32")
    try:
        cfg = Config(**state["config"])
        known = cfg.method in METHODS and cfg.size in range(32, 513) and Path(cfg.data)
        if not known or not isinstance(state["net"], dict):
            raise TypeError
    except (KeyError, TypeError):
        raise InputError(f"{path}: of another version of mmlfer, or damaged") from None
    return state


def load_net(path, device="auto"):
    """The base net of a checkpoint file, in test mode on a device, and the checkpoint."""
    state = read_checkpoint(path)
    net = make_base_net()
    try:
        net.load_state_dict(state["net"])
    except RuntimeError as error:
        raise InputError(f"{path}: {str(error).splitlines()[-1].strip()[:200]}") from None
    return net.to(pick_device(device)).eval(), state


def save_checkpoint(state, path):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getbuffer())


class Batches:
    """The faces on the training device, and every epoch's batches from the seed alone.

    A training epoch is a permutation cut into whole batches (the last, smaller one is dropped:
    other faces each epoch); validation batches for the meta-test run through permutations of
    the validation faces. Each sample is flipped with probability 1/2.
    """

    def __init__(self, faces, cfg, device):
        self.seed, self.size = cfg.seed, cfg.batch_size
        self.rows = [np.flatnonzero(faces.split == code) for code in (TRAIN, VAL)]
        self.steps = len(self.rows[0]) // self.size
        self.images = faces.images.to(device)
        self.y_emo = torch.from_numpy(faces.y_emo).to(device)
        self.y_au = torch.from_numpy(faces.y_au).to(device).float()

    def epoch(self, epoch):
        """(training batch, validation batch) for each step of an epoch, as index and flip."""
        rng, n = np.random.default_rng([self.seed, 3, epoch]), self.steps * self.size
        plan = []
        for rows in self.rows:
            index = np.concatenate([rng.permutation(rows) for _ in range(-(-n // len(rows)))])[:n]
            flip = rng.random(n) < 0.5
            for array in (index, flip):
                plan.append(torch.from_numpy(array).to(self.images.device).split(self.size))
        return list(zip(*plan))

    def take(self, index, flip):
        """x (B, 3, S, S), y_emo (B,), y_au (B, J) of an index; flips keep labels."""
        x = self.images[index]
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
        return x.contiguous(memory_format=torch.channels_last), self.y_emo[index], self.y_au[index]


class Interrupts:
    """Ctrl-C and SIGTERM let the step finish; `number` is then the signal's."""

    def __enter__(self):
        self.number = 0
        self.before = {s: signal.signal(s, self.note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number, frame):
        self.number = number

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def check_finite(run, upto):
    """Stop at the first step whose losses or gradients are not finite: before a checkpoint."""
    bad = ~torch.isfinite(run.record[:upto].cpu())
    if bad.any():
        step, column = map(int, bad.nonzero()[0])
        raise InputError(
            f"epoch {run.epoch + 1}, step {step + 1}: {RECORD[column]} is not finite. The last "
            "checkpoint is as it was; start anew (--overwrite) with lower --lr-backbone, "
            "--lr-heads or --lr-meta")


def train_epoch(run, batches, interrupts, out):
    """The rest of one epoch; returns early, its checkpoint written, when interrupted."""
    fetch = 1 if run.device.type == "cpu" else 50  # each fetch waits for the device
    plan, start = batches.epoch(run.epoch), time.perf_counter() - run.elapsed
    bar = tqdm(total=run.steps, initial=run.step, desc=f"epoch {run.epoch + 1}/{run.cfg.epochs}",
               unit=" steps", disable=None, leave=False)
    with bar:
        for i in range(run.step, run.steps):
            index, flip, val_index, val_flip = plan[i]
            val = batches.take(val_index, val_flip) if run.meta else None
            run.record[i] = train_step(run, batches.take(index, flip), val)
            if run.scheduler:
                run.scheduler.step()
            run.step = i + 1
            if run.step % fetch == 0 or run.step == run.steps or interrupts.number:
                check_finite(run, run.step)
                means = run.record[: run.step].mean(0).tolist()
                bar.set_postfix({k: f"{v:.3f}" for k, v in zip(RECORD[:6], means) if v})
            bar.update()
            if interrupts.number and run.step < run.steps:
                run.elapsed = time.perf_counter() - start
                save_checkpoint(run.state(), out / "last.pt")
                return
    run.elapsed = time.perf_counter() - start


def log_row(run, val):
    """One epoch's row of log.csv."""
    l_emo, l_au, l_am, _, w_au, w_am, *_ = run.record.mean(0).tolist()
    return {"epoch": run.epoch, "train_loss_emo": l_emo, "train_loss_au": l_au,
            "train_loss_am": l_am, "w_au": w_au, "w_am": w_am, "val_acc": val["accuracy"],
            "val_diag": val["diag"], "lr": run.opt.param_groups[0]["lr"],
            "seconds": round(run.elapsed, 3),
            "images_per_second": round(run.steps * run.cfg.batch_size / run.elapsed, 2)}


def write_rows(rows, columns, path):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def train_epochs(run, batches, faces, out):
    """All epochs still to do, each with its log row and checkpoints."""
    val = faces.select(faces.split == VAL)
    with Interrupts() as interrupts:
        while run.epoch < run.cfg.epochs:
            train_epoch(run, batches, interrupts, out)
            if run.step == run.steps:
                numbers = evaluate(run.net, val, run.cfg.method)
                best = max((row["val_acc"] for row in run.log), default=-1.0)
                run.epoch += 1
                run.log.append(log_row(run, numbers))
                run.step, run.elapsed = 0, 0.0
                if numbers["accuracy"] > best:
                    save_checkpoint(inference_state(run), out / "best.pt")
                write_rows(run.log, run.log[0], out / "log.csv")
                save_checkpoint(run.state(), out / "last.pt")
                click.echo("epoch {epoch}: L^emo {train_loss_emo:.3f}, L^AU {train_loss_au:.3f}, "
                           "L^AM {train_loss_am:.3f}, w^AU {w_au:.3f}, w^AM {w_am:.3f}, val Acc. "
                           "{val_acc:.4f}, Diag. {val_diag:.4f}, {seconds:.1f} s"
                           .format(**run.log[-1]))
            if interrupts.number:
                click.echo(f"stopped; {out}/last.pt is written, go on with: "
                           f"mmlfer train --out {shlex.quote(str(out))} --resume", err=True)
                sys.exit(128 + interrupts.number)


def versions():
    import torchvision

    return {"python": platform.python_version(), "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__), "numpy": np.__version__,
            "source_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}


def test_run(run, faces, out):
    """Read the test set, once: of the best epoch by validation and of the last. -> test.json"""
    test = faces.select(faces.split == TEST)
    result = {"method": run.cfg.method, "stats": run.cfg.stats, "form": run.form,
              "seed": run.cfg.seed, "data": run.cfg.data, "rafce": is_rafce(faces),
              "names": test.names, "truth": test.y_emo.tolist()}
    last_epoch, last = run.epoch, evaluate(run.net, test, run.cfg.method)
    net, state = load_net(out / "best.pt", run.cfg.device)
    result["best"] = {"epoch": state["epoch"], **evaluate(net, test, run.cfg.method)}
    result["last"] = {"epoch": last_epoch, **last}
    write_whole(out / "test.json", (json.dumps(result) + "\n").encode())
    return result


RUN_FILES = ("last.pt", "best.pt", "log.csv", "test.json", "config.yaml")


def check_folder(out, resume=False, overwrite=False,
                 hint="--resume goes on with it, --overwrite replaces it"):
    """Refuse to write over another run; True if there is one to go on with."""
    if not resume and not overwrite and any((out / name).exists() for name in RUN_FILES):
        raise InputError(f"{out}: holds a run; {hint}")
    return resume and (out / "last.pt").exists()


def saved_config(out, given):
    """The options of the run in a folder; given ones that differ are refused, but for where the
    data lie and the device."""
    if (out / "test.json").exists():  # complete: no need to load torch
        try:
            content = yaml.safe_load((out / "config.yaml").read_text())
            saved = {field.name: content[field.name] for field in dataclasses.fields(Config)}
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            raise InputError(f"{out}/config.yaml: not the options of a run") from None
    else:
        saved = read_checkpoint(out / "last.pt")["config"]
    for name, value in given.items():
        if value != saved[name] and name not in ("data", "device"):
            raise InputError(f"{out}: its run has --{name.replace('_', '-')} {saved[name]}, not "
                             f"{value}; a resumed run keeps its options")
    moved = {name: given[name] for name in ("data", "device") if name in given}
    return Config(**{**saved, **moved})


def fit(cfg, out, resumed=False):
    """Train as cfg says into a folder, or go on there, and test; returns test.json's content."""
    faces = load_labels(cfg.data)
    click.echo(describe(faces, cfg.data))
    check_trainable(faces, cfg.data, cfg.batch_size)
    load_stats(cfg.stats)
    device = pick_device(cfg.device)
    faces = load_images(faces, cfg.data, cfg.size, cfg.skip_bad_images)
    check_trainable(faces, cfg.data, cfg.batch_size)
    batches = Batches(faces, cfg, device)
    run = Run(cfg, batches.steps, "none" if resumed else None)
    if resumed:
        run.restore(read_checkpoint(out / "last.pt"))
        click.echo(f"going on after epoch {run.epoch}, step {run.step} of {run.steps}")
    else:
        click.echo(f"backbone: {run.origin}")
        for name in RUN_FILES:
            (out / name).unlink(missing_ok=True)
        config = {**dataclasses.asdict(cfg), "steps_per_epoch": batches.steps, **versions()}
        text = yaml.safe_dump(config, sort_keys=False, width=100)
        write_whole(out / "config.yaml", text.encode())
    train_epochs(run, batches, faces, out)
    result = test_run(run, faces, out)
    for name in ("best", "last"):
        numbers = result[name]
        click.echo(f"test, {name} (epoch {numbers['epoch']}): Acc. {percent(numbers['accuracy'])}, "
                   f"Diag. {percent(numbers['diag'])}, {numbers['n']} images; {out}/{name}.pt")
    return result


# ---------------------------------------------------------------- RAF-CE from its sources

BASIC = ("surprised", "fearful", "disgusted", "happy", "sad", "angry")  # RAF-ML's columns
ADVERBS = {"happily": "happy", "sadly": "sad", "fearfully": "fearful", "angrily": "angry",
           "disgustedly": "disgusted"}  # fmt: skip
PAIRS = {frozenset((BASIC.index(ADVERBS[adverb]), BASIC.index(basic))): k
         for k, (adverb, basic) in enumerate(name.split() for name in EMOTIONS)}


def compound(p):
    """The compound expression of six basic probabilities, 0..13, or None if it is none of the 14.

    The two most probable; of ties the first pair in column order that is one of the 14.
    """
    second = sorted(p)[-2]
    for pair in itertools.combinations(range(len(p)), 2):
        rest = [q for i, q in enumerate(p) if i not in pair]
        if min(p[i] for i in pair) == second and max(rest) <= second and frozenset(pair) in PAIRS:
            return PAIRS[frozenset(pair)]
    return None


def parse_distribution(*texts):
    p = tuple(map(float, texts))
    if not all(0 <= q <= 1 for q in p):
        raise ValueError(f"expected six probabilities 0..1, got {' '.join(texts)}")
    return p


def find_file(name, *folders):
    """The first of these folders' files of this name, or None."""
    return next((f / name for f in folders if (f / name).is_file()), None)


def needed_file(name, given, inner):
    path = find_file(name, given / inner, given)
    if path is None:
        raise InputError(f"{given}: no {name} there; give the folder as it is distributed")
    return path


def build_rafce(raf_ml, raf_au, out, seed, copy):
    """Make RAF-CE in `out`; returns what to say of it."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: not empty; name a new folder")
    ml = read_labels(needed_file("distribution.txt", raf_ml, "EmoLabel"), parse_distribution, 6)
    au_path = needed_file("RAFAU_label.txt", raf_au, "RAF-AU")
    au = read_labels(au_path, str)
    shared = [name for name in au if name in ml]
    y_emo = {name: compound(ml[name][1]) for name in shared}
    names = [name for name in shared if y_emo[name] is not None]
    if len({stem(name) for name in names}) < len(names):
        raise InputError(f"{au_path}: two rows of one image under different endings; keep one")
    for name in names:
        try:
            parse_aus(au[name][1])
        except ValueError as error:
            raise InputError(f"{au_path}:{au[name][0]}: {error}; mend this row") from None
    if not names:
        raise InputError(f"{au_path}: no image of it with a compound expression is in {raf_ml}")
    official = find_file(LABEL_FILES[1], raf_ml, raf_au, raf_ml / "EmoLabel")
    if official:
        rows = read_labels(official, parse_code(2))
        same_images({n: au[n] for n in names}, au_path, rows, official)
        split = [rows[name][1] for name in names]
    else:
        split = split_faces([y_emo[name] for name in names], seed)
    index = {**image_index(raf_ml / "Image"), **image_index(raf_ml), **image_index(raf_au)}
    found = [(index[stem(n)], stem(n)) for n in names if stem(n) in index]
    write_labels(out, names, [y_emo[n] for n in names], split, [au[n][1] for n in names])
    (out / "aligned").mkdir()
    for source, key in found:
        target = out / "aligned" / f"{key}_aligned{source.suffix}"
        shutil.copyfile(source, target) if copy else target.symlink_to(source.resolve())
    return (f"{len(ml)} images in RAF-ML, {len(au)} in RAF-AU, {len(shared)} in both\n"
            f"discarded {len(shared) - len(names)} whose two most probable emotions make none of "
            f"the 14\nkept {len(names)}, {len(names) - len(found)} of them without an image file\n"
            f"partition: {official or f'drawn, seed {seed}'}")


# ---------------------------------------------------------------- AU analysis (Sec. 3.2, Table 1)


def au_frequencies(faces):
    """p(AU | expression), NaN for expressions without images. -> (K, J)"""
    with np.errstate(invalid="ignore"):
        return np.stack([faces.y_au[faces.y_emo == k].sum(0) / (faces.y_emo == k).sum()
                         for k in range(len(EMOTIONS))])


def au_sums(p):
    """Mean activated AUs over expressions: prototypical, variant and observed. p (K, J)"""
    p = p[~np.isnan(p).any(1)]
    observed = np.where(p >= OBSERVED, p, 0).sum(1)
    prototypical = np.where(p >= PROTOTYPICAL, p, 0).sum(1)
    return [float(x.mean()) for x in (prototypical, observed - prototypical, observed)]


def table_1(p, n, there):
    """Table 1 in Markdown: p (K, J) of n images each, and, starred, what to compare with."""
    rows = [(f"{e} ({c})", row) for e, c, row in zip(EMOTIONS, n, p)]
    if there is not None:
        starred = [(f"{e}*", row) for e, row in zip(EMOTIONS, there)]
        rows = [row for pair in zip(rows, starred) for row in pair]
    columns = [j for j in range(len(AUS)) if any(row[j] >= OBSERVED for _, row in rows)]
    def cell(value):
        if not value >= OBSERVED:
            return ""
        return f"**{100 * value:.0f}**" if value >= PROTOTYPICAL else f"{100 * value:.0f}"

    return markdown(["expression (images)", *(f"AU {AUS[j]}" for j in columns)],
                    [[name, *(cell(row[j]) for j in columns)] for name, row in rows])


def observations(p, there):
    """The paper's three observations as numbers, here and there."""
    def some(table):
        return {AUS[j] for j in np.flatnonzero((table >= OBSERVED).any(0))}

    def numbers(name, table):
        of = {au: int((table[:, AUS.index(au)] >= OBSERVED).sum()) for au in (12, 25)}
        sums = "{:.2f} prototypical + {:.2f} variant = {:.2f} observed".format(*au_sums(table))
        return (f"{name}: {len(some(table))} observed AUs; AU 12 in {of[12]} and AU 25 in {of[25]} "
                f"expressions; mean activated AUs {sums}")

    lines = [numbers("here", p)]
    if there is not None:
        for name, aus in (("here", some(p) - some(there)), ("there", some(there) - some(p))):
            lines.append(f"observed {name} only: AU {', '.join(map(str, sorted(aus))) or 'none'}")
        lines.append(numbers("there", there))
    few = (p >= OBSERVED).sum(1) == 0
    if few.any():
        lines.append("no observed AU, and so not for --stats: " +
                     ", ".join(e for e, f in zip(EMOTIONS, few) if f))
    return "\n".join(lines)


def write_stats(p, n, source, path):
    """YAML that --stats reads: the observed AUs of each expression as fractions."""
    lines = [f"# p(AU active | compound expression) of {source}, {sum(n)} images, by mmlfer stats.",
             "# Fractions by AU number; AUs below 0.20 count as 0 and are left out."]
    for emotion, count, row in zip(EMOTIONS, n, p):
        cells = ", ".join(f"{au}: {x:.4f}" for au, x in zip(AUS, row) if x >= OBSERVED)
        lines.append(f"{emotion}: {{{cells}}}  # {count} images")
    write_whole(path, ("\n".join(lines) + "\n").encode())


# ---------------------------------------------------------------- Tables 2 and 3

PAPER = {  # Acc. / Diag. by method and statistics
    ("stl", ""): (51.49, 28.12), ("mtl", ""): (53.25, 29.58), ("mal", ""): (52.37, 30.73),
    ("am", "lab"): (54.12, 30.15), ("am", "wild"): (53.36, 28.02),
    ("mml", "lab"): (55.01, 30.85), ("mml", "wild"): (55.23, 31.68),
}  # fmt: skip
COMPARED = ("stl", "mtl", "mal", "mal2", "am")  # each with mml, of the same form where it has one


def mcnemar(b, c):
    """Exact two-sided p of b images that only one model has right and c that only the other."""
    n = b + c
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n)


def read_run(path):
    """A test.json, checked, and its (method, statistics if they matter)."""
    try:
        run = json.loads(path.read_text())
        best = run["best"]
        whole = (len(best["pred"]) == len(run["truth"]) == len(run["names"]) == best["n"]
                 and set(best["per_class"]) == set(EMOTIONS) and len(best["confusion"]) == 14
                 and best["accuracy"] + best["diag"] >= 0 and run["seed"] >= 0
                 and isinstance(run["rafce"], bool))
        if not whole:
            raise ValueError("numbers that do not fit each other")
        stats = Path(run["stats"]).name if METHODS[run["method"]][2] else ""
        if stats and run["form"] != ("lab" if stats == "lab" else "wild"):
            stats += f", {run['form']} form"
        return run, (run["method"], stats)
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not a run's test.json ({error!r:.80}); take it away") from None


def read_runs(folder):
    """{(method, statistics): {seed: test.json}} of the finished runs below a folder."""
    runs, first = {}, None
    for path in sorted(Path(folder).rglob("test.json")):
        run, key = read_run(path)
        first = first or (run, path)
        if (run["names"], run["truth"]) != (first[0]["names"], first[0]["truth"]):
            raise InputError(f"{path}: other test images than {first[1]}; one table takes one data "
                             "set, name the folder of its runs alone")
        if run["seed"] in runs.setdefault(key, {}):
            raise InputError(f"{path}: {' '.join(key).strip()} with seed {run['seed']} stands "
                             f"below {folder} twice; take one away")
        runs[key][run["seed"]] = run
    if not runs:
        raise InputError(f"{folder}: no test.json below it; `train` writes one at its end")
    return {key: runs[key] for key in sorted(runs, key=lambda k: (list(METHODS).index(k[0]), k[1]))}


def spread(values):
    """Mean and standard deviation over seeds, in percent, as text."""
    values = [100 * v for v in values if v is not None]
    if not values:
        return "-"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if values[1:] else "")


def best_of(seeds, key):
    return [run["best"][key] for run in seeds.values()]


def markdown(header, rows):
    return "\n".join(["| " + " | ".join(map(str, r)) + " |"
                      for r in [header, ["---"] * len(header), *rows]])


def table_2(runs):
    rows = []
    for k, emotion in enumerate(EMOTIONS):
        n = sum(next(iter(next(iter(runs.values())).values()))["best"]["confusion"][k])
        rows.append([emotion, n, *(spread([run["best"]["per_class"][emotion] for run in s.values()])
                                   for s in runs.values())])
    for name, key in (("Acc.", "accuracy"), ("Diag.", "diag")):
        rows.append([f"**{name}**", "", *(spread(best_of(s, key)) for s in runs.values())])
    return markdown(["expression", "images", *(" ".join(k).strip() for k in runs)], rows)


def table_3(runs, rafce):
    rows = []
    for key, seeds in runs.items():
        paper = "{} / {}".format(*PAPER[key]) if key in PAPER else ""
        rows.append([" ".join(key).strip(), len(seeds), spread(best_of(seeds, "accuracy")),
                     spread(best_of(seeds, "diag")), *([paper] if rafce else [])])
    header = ["method", "seeds", "Acc.", "Diag.", *(["paper's Acc. / Diag."] if rafce else [])]
    return markdown(header, rows)


def compare(one, other):
    """A row of the paired comparison of two methods' runs, by the seeds that both have."""
    gains, tests = [], []
    for seed in sorted(set(one) & set(other)):
        a, b = one[seed], other[seed]
        right_a, right_b = (np.equal(r["best"]["pred"], r["truth"]) for r in (a, b))
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        gains.append(a["best"]["accuracy"] - b["best"]["accuracy"])
        tests.append((only_a, only_b, mcnemar(only_a, only_b)))
    agree = all(g > 0 for g in gains) or all(g < 0 for g in gains)
    signal_ = agree and all(p < 0.05 for *_, p in tests)
    return [spread(gains), ", ".join(f"{a}:{b} p" + (f"={p:.3f}" if p >= 0.0005 else "<0.001")
                                     for a, b, p in tests),
            "signal" if signal_ else "within noise"]


def comparisons(runs):
    rows = []
    for key in [k for k in runs if k[0] == "mml"]:
        for other in [k for k in runs if k[0] in COMPARED and k[1] in ("", key[1])]:
            if set(runs[key]) & set(runs[other]):
                name = f"{' '.join(key)} - {' '.join(other).strip()}"
                rows.append([name, *compare(runs[key], runs[other])])
    header = ["pair", "Acc. gained", "McNemar, by seed", "signal: every seed p < 0.05, one sign"]
    return markdown(header, rows) if rows else "No pair of methods with a seed in common."


def results(folder):
    """Tables 2 and 3 of the runs below a folder and the paired tests, as Markdown."""
    runs = read_runs(folder)
    every = [run for seeds in runs.values() for run in seeds.values()]
    rafce, n = all(run["rafce"] for run in every), every[0]["best"]["n"]
    data = ("RAF-CE" if rafce else "Not RAF-CE (by its counts), and so not the paper's columns")
    return f"""# Test results

{data}: {n} test images. Percent, of each run's best epoch by validation; mean ± standard deviation
over seeds.

## Table 2: each expression

{table_2(runs)}

## Table 3: methods

{table_3(runs, rafce)}

## Paired comparisons over the same test images

McNemar's exact test: images that only the first : only the second of a pair has right.

{comparisons(runs)}
"""


# ---------------------------------------------------------------- figures (Figs. 2, 4, 5)


def pyplot():
    """Matplotlib without a screen."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("figures need matplotlib: pip install -e '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_figure(plt, figure, path):
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png", dpi=150)
    except ValueError as error:
        raise InputError(f"{path}: {error}; name it like figure.png") from None
    plt.close(figure)
    write_whole(path, buffer.getvalue())


def plot_stats(p, there, path):
    """Fig. 2's content: expression x AU, here above and there below (where given)."""
    plt = pyplot()
    tables = [("here", p)] + ([("there", there)] if there is not None else [])
    columns = [j for j in range(len(AUS)) if any((t[:, j] >= OBSERVED).any() for _, t in tables)]
    figure, axes = plt.subplots(len(tables), 1, figsize=(8.5, 4.6 * len(tables)), squeeze=False,
                                layout="constrained")
    for axis, (name, table) in zip(axes[:, 0], tables):
        shown = np.where(table >= OBSERVED, 100 * table, np.nan)[:, columns]
        picture = axis.imshow(shown, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(columns)), [f"AU {AUS[j]}" for j in columns], rotation=60)
        axis.set_yticks(range(len(EMOTIONS)), EMOTIONS)
        axis.set_title(f"{name}: observed AUs (20 % or more)")
        for (k, j), value in np.ndenumerate(shown):
            if value == value:
                axis.text(j, k, f"{value:.0f}", ha="center", va="center", fontsize=7,
                          color="black" if value > 60 else "white")
        figure.colorbar(picture, ax=axis, label="p(AU | expression), %")
    save_figure(plt, figure, path)


def plot_curves(log, steps, path):
    """Fig. 5: accuracy over iterations, and the mean weights of each epoch."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    x = [int(row["epoch"]) * steps for row in log]
    for key, name in (("val_acc", "Acc."), ("val_diag", "Diag.")):
        left.plot(x, [100 * float(row[key]) for row in log], ".-", label=f"validation {name}")
    left.set(xlabel="iteration", ylabel="%", title="(a) accuracy", ylim=(0, 100))
    for key, name in (("w_au", r"$\omega^{AU}$"), ("w_am", r"$\omega^{AM}$")):
        right.plot(x, [float(row[key]) for row in log], ".-", label=f"mean {name}")
    right.set(xlabel="iteration", ylabel="weight", title="(b) weights, mean of each epoch",
              ylim=(-0.02, 1.02))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(plt, figure, path)


def plot_confusion(numbers, path):
    """The confusion matrix, each row as shares of its images, with counts."""
    plt = pyplot()
    confusion = np.array(numbers["confusion"])
    n = confusion.sum(1)
    figure, axis = plt.subplots(figsize=(8.5, 7.5), layout="constrained")
    share = 100 * confusion / np.maximum(n, 1)[:, None]
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(n)), EMOTIONS, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(n)), [f"{e} ({c})" for e, c in zip(EMOTIONS, n)])
    for (k, j), count in np.ndenumerate(confusion):
        if count:
            axis.text(j, k, count, ha="center", va="center", fontsize=8,
                      color="white" if share[k, j] > 50 else "black")
    axis.set(xlabel="predicted", ylabel="true (images)", title=f"test, Acc. "
             f"{100 * numbers['accuracy']:.2f} %, Diag. {100 * numbers['diag']:.2f} %")
    figure.colorbar(picture, ax=axis, label="% of the row", shrink=0.8)
    save_figure(plt, figure, path)


def gradcam(net, x, k=None):
    """Grad-CAM of the last residual stage for expression k, (B,), or the predicted one.

    a_c = mean over space of d z_k / d A_c, map = ReLU(sum_c a_c A_c), scaled to a maximum of 1.
    x (B, 3, S, S) -> maps (B, S, S), z_emo (B, K), z_au (B, J). Hooks are taken off again.
    """
    stage = []
    hook = net.backbone.layer4.register_forward_hook(lambda m, i, output: stage.append(output))
    try:
        _, z_emo, z_au = net(x)
    finally:
        hook.remove()
    k = z_emo.argmax(1) if k is None else k
    gradient = torch.autograd.grad(z_emo.gather(1, k[:, None]).sum(), stage)[0]  # (B, C, h, w)
    maps = (gradient.mean((2, 3), keepdim=True) * stage[0]).sum(1, keepdim=True).relu()
    maps = torch.nn.functional.interpolate(maps, x.shape[-2:], mode="bilinear")[:, 0].detach()
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return maps, z_emo.detach(), z_au.detach()


def known_truths(paths, data):
    """The labelled expression of each image that lies in the data set, else None."""
    try:
        faces = load_labels(data)
    except InputError:
        return [None] * len(paths)
    places = {p.resolve(): key for key, p in image_index(Path(data)).items()}
    labels = {stem(name): k for name, k in zip(faces.names, faces.y_emo)}
    truths = [labels.get(places.get(Path(path).resolve())) for path in paths]
    return [None if k is None else EMOTIONS[k] for k in truths]


def plot_gradcam(ckpts, paths, out, device):
    """Fig. 4: a row an image; the face, then each checkpoint's attention, prediction and AUs."""
    plt = pyplot()
    if len(paths) > 100:
        raise InputError(f"{len(paths)} images are too many for one figure; give at most 100")
    figure, axes = plt.subplots(len(paths), 1 + len(ckpts), squeeze=False, layout="constrained",
                                figsize=(2.9 * (1 + len(ckpts)), 3.3 * len(paths)))
    for axis in axes.flat:
        axis.axis("off")
    for column, ckpt in enumerate(ckpts, 1):
        net, state = load_net(ckpt, device)
        size, name = state["config"]["size"], f"{state['config']['method']} ({ckpt})"
        images = list(decode(paths, size))
        bad = [image for image in images if isinstance(image, str)]
        if bad:
            raise InputError(f"cannot be read as an image: {bad[0]}")
        x = as_batch(images).to(next(net.parameters()).device)
        maps, z_emo, z_au = (t.cpu() for t in gradcam(net, x))
        truths = known_truths(paths, state["config"]["data"])
        for row, path in enumerate(paths):
            axes[row, 0].imshow(images[row])
            true = truths[row] or "unknown"
            axes[row, 0].set_title(f"{Path(path).name}\ntrue: {true}", fontsize=8)
            axes[row, column].imshow(images[row])
            axes[row, column].imshow(maps[row], cmap="jet", alpha=0.45, vmin=0, vmax=1)
            p, aus = z_emo[row].softmax(0), [a for a, z in zip(AUS, z_au[row]) if z > 0]
            seen = " ".join(map(str, aus)) or "none"
            if not trains_aus(state["config"]["method"]):
                seen = "not trained"
            title = f"{EMOTIONS[int(p.argmax())]}, {100 * float(p.max()):.0f} %\nAUs: {seen}"
            axes[row, column].set_title((f"{name}\n" if row == 0 else "") + title, fontsize=8)
    save_figure(plt, figure, out)


# ---------------------------------------------------------------- predictions on one's own faces


def list_images(paths):
    """The images among these paths and in these folders, in order."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no images ({', '.join(IMAGES)}) there")
    return found


def predict_paths(ckpt, paths, top, device, batch=64):
    """Yield (path, result or the reason why not) for each image; result is what --json prints."""
    net, state = load_net(ckpt, device)
    trained_aus = trains_aus(state["config"]["method"])
    images = decode(paths, state["config"]["size"], "predicting")
    for chunk in iter(lambda: list(itertools.islice(zip(paths, images), batch)), []):
        good = [image for _, image in chunk if not isinstance(image, str)]
        if good:
            p = zip(*predict_faces(net, as_batch(good)))
        for path, image in chunk:
            if isinstance(image, str):
                yield path, image
                continue
            p_emo, p_au = next(p)
            best = np.argsort(-p_emo)[:top]
            yield path, {
                "image": str(path).encode(errors="replace").decode(),
                "expressions": [{"name": EMOTIONS[k], "p": float(p_emo[k])} for k in best],
                "aus": [{"au": au, "name": AU_NAMES[au], "p": float(q)}
                        for au, q in zip(AUS, p_au) if q > 0.5] if trained_aus else None,
            }


# ---------------------------------------------------------------- command line


class Program(click.Group):
    """Says what was wrong with the input in one line, once, for every command."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (InputError, OSError) as error:
            raise click.ClickException(" ".join(str(error).split())) from None
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            sys.exit(128 + signal.SIGINT)

    def list_commands(self, ctx):
        return list(self.commands)


@click.group(cls=Program, context_settings={"show_default": True})
def main():
    """Compound facial expressions with action units, by meta multi-task learning."""


def config_options(command):
    """An option for each field of Config."""
    for field in reversed(dataclasses.fields(Config)):
        kind = {"is_flag": True} if field.type is bool else {"type": field.metadata["type"]}
        command = click.option("--" + field.name.replace("_", "-"), default=field.default,
                               help=field.metadata["help"], **kind)(command)
    return command


device_option = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
json_option = click.option("--json", "as_json", is_flag=True,
                           help="Print JSON and nothing else on standard output.")
skip_option = click.option("--skip-bad-images", "skip_bad", is_flag=True,
                           help="Go on without images that cannot be read.")


@main.command()
@config_options
@click.option("--out", type=FOLDER, help="Folder of the run.  [default: runs/METHOD]")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, if there is one, as it "
              "was started; given options must be its own, but for --data and --device.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.pass_context
def train(ctx, out, resume, overwrite, **options):
    """Train on a folder laid out like RAF-CE, and test.

    Writes OUT/config.yaml, log.csv (a row an epoch), last.pt, best.pt (by validation accuracy)
    and, at the end, test.json.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other.")
    out = out or Path("runs") / options["method"]
    for name in ("data", "stats", "weights"):  # paths hold wherever the run is resumed from
        if options[name] and Path(options[name]).exists():
            options[name] = str(Path(options[name]).resolve())
    resumed = check_folder(out, resume, overwrite)
    if resumed:
        explicit = click.core.ParameterSource.COMMANDLINE
        given = {k: v for k, v in options.items() if ctx.get_parameter_source(k) == explicit}
        cfg = saved_config(out, given)
        if (out / "test.json").exists():
            click.echo(f"{out}: complete, nothing to do")
            return
    elif not options["data"]:
        raise click.UsageError("Missing option '--data'.")
    else:
        cfg = Config(**options)
    fit(cfg, out, resumed)


@main.command("eval")
@click.option("--ckpt", required=True, type=FOLDER, help="best.pt or last.pt.")
@click.option("--data", type=click.Path(), help="Folder laid out like RAF-CE.  "
              "[default: what the checkpoint was trained on]")
@click.option("--split", default="test", type=click.Choice(list(SPLITS)), help="Which images.")
@json_option
@device_option
@skip_option
def eval_command(ckpt, data, split, as_json, device, skip_bad):
    """A checkpoint's row of Table 2: Acc., Diag., each expression, AU F1, confusion."""
    net, state = load_net(ckpt, device)
    data = data or state["config"]["data"]
    everything = load_labels(data)
    faces = everything.select(everything.split == SPLITS[split])
    faces = load_images(faces, data, state["config"]["size"], skip_bad)
    if not faces.names:
        raise InputError(f"{data}: no {split} images; see {LABEL_FILES[1]}")
    numbers = evaluate(net, faces, state["config"]["method"])
    del numbers["pred"]
    click.echo(json.dumps(numbers) if as_json else
               f"{describe(everything, data)}\n\n{report(numbers)}")


@main.command()
@click.argument("out", type=FOLDER)
@click.option("--n", default=1400, type=COUNT, help="How many faces.")
@click.option("--stats", default="wild", help="p(AU | expression): wild, lab or a YAML file.")
@click.option("--labels", type=click.Path(), help="Draw a face for each row of the label files "
              "in this folder instead, and copy them.")
@click.option("--size", default=112, type=SIZE, help="Side of a face, pixels.")
@click.option("--seed", default=0, type=SEED, help="Of everything random.")
def synth(out, n, stats, labels, size, seed):
    """Write stand-in faces, drawn from AUs, in RAF-CE's own layout to the folder OUT."""
    synthesize(out, n, stats, labels, size, seed)
    click.echo(describe(load_labels(out), out))


DEMO_FACES = 1400
DEMO = {"stats": "lab", "size": 48, "schedule": "onecycle", "lr_backbone": 0.005, "epochs": 3}


@main.command()
@click.option("--out", default="runs/demo", type=FOLDER, help="Folder.")
@device_option
def demo(out, device):
    """Draw stand-in faces, train on them with mml and evaluate: minutes on a laptop."""
    started, data = time.perf_counter(), out / "faces"
    check_folder(out, hint="give another --out, or `mmlfer train --resume --out` it")
    synthesize(data, DEMO_FACES, DEMO["stats"], None, DEMO["size"], 0)
    numbers = fit(Config(data=str(data.resolve()), device=device, **DEMO), out)["best"]
    click.echo("\n" + report(numbers))
    faces = load_labels(data)
    test = faces.select(faces.split == TEST)
    commonest = max(counts(test.y_emo)) / len(test.y_emo)
    perfect = best_by_aus(test.y_au, test.y_emo, load_stats(DEMO["stats"]))
    click.echo(f"""
On these {numbers['n']} stand-in test faces, in {time.perf_counter() - started:.0f} s:
  accuracy of this model               {percent(numbers['accuracy'])} %
  of always the commonest expression   {percent(commonest)} %
  of a perfect reader of the AUs       {percent(perfect)} %
Pictures: {data}/aligned; numbers: {out}/log.csv, {out}/test.json; checkpoint: {out}/best.pt.
With RAF-CE: mmlfer train --data ./rafce --weights weights/resnet34_casia.pth""")


@main.command()
@click.option("--raf-ml", required=True, type=FOLDER, help="RAF-ML (EmoLabel/distribution.txt).")
@click.option("--raf-au", required=True, type=FOLDER, help="RAF-AU (RAFAU_label.txt, aligned/).")
@click.option("--out", default="rafce", type=FOLDER, help="New folder.")
@click.option("--seed", default=0, type=SEED, help="Of a partition drawn here.")
@click.option("--copy", is_flag=True, help="Copy the images; else they are linked.")
def build(raf_ml, raf_au, out, seed, copy):
    """Make RAF-CE from RAF-ML and RAF-AU (Sec. 3.1).

    An official RAFCE_partition.txt beside either is used if it is there.
    """
    click.echo(build_rafce(raf_ml, raf_au, out, seed, copy))
    click.echo(describe(load_labels(out), out))


@main.command("stats")
@click.option("--data", required=True, type=FOLDER, help="Folder with the three label files.")
@click.option("--split", default="all", type=click.Choice(["all", *SPLITS]), help="Which images.")
@click.option("--out", type=FOLDER, help="Write YAML that --stats takes.")
@click.option("--against", help="Compare with wild, lab or a YAML file.")
@click.option("--plot", type=FOLDER, help="Write a heat map, e.g. stats.png (extra `plot`).")
def stats_command(data, split, out, against, plot):
    """The AU analysis (Sec. 3.2): Table 1 for these labels, and the observations as numbers."""
    faces = load_labels(data)
    there = load_stats(against) if against else None
    faces = faces if split == "all" else faces.select(faces.split == SPLITS[split])
    if not faces.names:
        raise InputError(f"{data}/{LABEL_FILES[1]}: no {split} images")
    click.echo(describe(faces, data), err=True)
    p, n = au_frequencies(faces), counts(faces.y_emo)
    click.echo(table_1(p, n, there))
    click.echo("\n" + observations(p, there))
    if out:
        write_stats(p, n, f"{Path(data).name} ({split})", out)
    if plot:
        plot_stats(p, there, plot)


@main.command()
@click.argument("runs", type=FOLDER)
@click.option("--out", default="results.md", type=FOLDER, help="Markdown file.")
def table(runs, out):
    """Tables 2 and 3 of every finished run below the folder RUNS, with paired tests."""
    text = results(runs)
    write_whole(out, text.encode())
    click.echo(text)


@main.command()
@click.argument("run", type=FOLDER)
def plot(run):
    """Fig. 5 and the confusion matrix of a run: RUN/curves.png and RUN/confusion.png."""
    try:
        log = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
        config = yaml.safe_load((run / "config.yaml").read_text())
        numbers = json.loads((run / "test.json").read_text())["best"]
        plot_curves(log, int(config["steps_per_epoch"]), run / "curves.png")
        plot_confusion(numbers, run / "confusion.png")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{run}: not a finished run of `train` ({why})") from None
    click.echo(f"{run}/curves.png\n{run}/confusion.png")


@main.command("gradcam")
@click.option("--ckpt", "ckpts", required=True, multiple=True, type=FOLDER,
              help="Checkpoint; give it twice to compare two.")
@click.option("--out", required=True, type=FOLDER, help="Figure to write, e.g. gradcam.png.")
@click.argument("images", nargs=-1, required=True, type=FOLDER)
@device_option
def gradcam_command(ckpts, out, images, device):
    """Fig. 4: where each checkpoint looks in these images, what it predicts and the AUs it sees."""
    plot_gradcam(ckpts, images, out, device)
    click.echo(out)


@main.command()
@click.option("--ckpt", required=True, type=FOLDER, help="best.pt of a run.")
@click.argument("paths", nargs=-1, required=True, type=FOLDER)
@click.option("--top", default=3, type=click.IntRange(1, len(EMOTIONS)), help="Expressions a face.")
@json_option
@click.option("--csv", "csv_path", type=FOLDER, help="Write all to this file too, a row a face.")
@device_option
def predict(ckpt, paths, top, as_json, csv_path, device):
    """Expressions and active AUs of aligned face crops: images, or folders of them.

    Images that cannot be read are named and skipped, and the exit code is then 1.
    """
    good, bad = [], 0
    for _, result in predict_paths(ckpt, list_images(paths), top, device):
        if isinstance(result, str):
            bad += 1
            click.echo(f"Warning: skipped {result}", err=True)
            continue
        good.append(result)
        if not as_json:
            click.echo(prediction_line(result))
    if as_json:
        click.echo(json.dumps(good))
    if csv_path:
        write_predictions(good, top, csv_path)
    if bad:
        sys.exit(1)


def prediction_line(result):
    expressions = ", ".join(f"{e['name']} {100 * e['p']:.1f} %" for e in result["expressions"])
    aus = ("not trained" if result["aus"] is None else
           ", ".join(f"{a['au']} {a['name']}" for a in result["aus"]) or "none")
    return f"{result['image']}: {expressions}; AUs: {aus}"


def write_predictions(predictions, top, path):
    rows = []
    for result in predictions:
        row = {"image": result["image"]}
        for i, e in enumerate(result["expressions"], 1):
            row |= {f"expression_{i}": e["name"], f"p_{i}": round(e["p"], 6)}
        rows.append(row | {"aus": "+".join(str(a["au"]) for a in result["aus"] or ())})
    names = [f"{c}_{i}" for i in range(1, top + 1) for c in ("expression", "p")]
    write_rows(rows, ["image", *names, "aus"], path)


BENCH = {"forward": "mtl", "plain": "mtl", "create_graph": "mml", "jvp": "mml"}


def bench_call(name, batch_size, size, device):
    """A call that does one of BENCH's steps on random faces, and waits for the device."""
    cfg = Config(method=BENCH[name], weights="none", size=size, device=device,
                 hypergrad=name if name == "jvp" else "create_graph")
    run, rng = Run(cfg, 1), np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (2 * batch_size, 3, size, size), np.uint8))
    x, x_val = images.to(run.device).to(memory_format=torch.channels_last).split(batch_size)
    y_emo = torch.from_numpy(rng.integers(0, len(EMOTIONS), batch_size)).to(run.device)
    y_au = torch.from_numpy(rng.random((batch_size, len(AUS))) < 0.1).to(run.device).float()

    def call():
        if name == "forward":
            with torch.no_grad():
                run.net(x)
        else:
            train_step(run, (x, y_emo, y_au), (x_val, y_emo, y_au))
        if run.device.type == "cuda":
            torch.cuda.synchronize()

    return call


def bench_peak(name, batch_size, size, device):
    """Peak memory in MB of this process (of the GPU, on one) after two steps."""
    call = bench_call(name, batch_size, size, device)
    call(), call()
    if pick_device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@main.command()
@click.option("--batch-size", default=16, type=click.IntRange(min=2), help="B.")
@click.option("--size", default=112, type=SIZE, help="Side of a face, pixels.")
@click.option("--rounds", default=5, type=COUNT, help="Timed rounds; medians are reported.")
@json_option
@device_option
def bench(batch_size, size, rounds, as_json, device):
    """Time a forward pass, a plain MTL step and both forms of the bilevel step, interleaved."""
    with concurrent.futures.ProcessPoolExecutor(  # first, for a child starts at its parent's peak
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        peak = {name: pool.submit(bench_peak, name, batch_size, size, device).result()
                for name in BENCH}
    calls = {name: bench_call(name, batch_size, size, device) for name in BENCH}
    seconds = {name: [] for name in BENCH}
    for round_ in tqdm(range(rounds + 1), "timing", disable=None, leave=False):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] += [time.perf_counter() - start] if round_ else []  # the first warms up
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    rows = {name: {"seconds": t, "per_forward": t / median["forward"],
                   "per_plain": t / median["plain"], "images_per_second": batch_size / t,
                   "peak_mb": peak[name]} for name, t in median.items()}
    click.echo(json.dumps(rows) if as_json else bench_table(rows, batch_size, size, device))


def bench_table(rows, batch_size, size, device):
    device, v = pick_device(device), versions()
    hardware = (torch.cuda.get_device_name(device) if device.type == "cuda" else
                f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    lines = [f"batch {batch_size}, {size}x{size}, {hardware}, torch {v['torch']}",
             f"{'':14}{'seconds':>9}{'/forward':>10}{'/plain':>8}{'images/s':>10}{'peak MB':>9}"]
    for name, row in rows.items():
        lines.append("{:14}{:9.3f}{:10.2f}{:8.2f}{:10.1f}{:9.0f}".format(name, *row.values()))
    steps = RAFCE_SPLITS["train"] // batch_size
    for name in ("plain", "create_graph", "jvp"):
        hours = 60 * steps * rows[name]["seconds"] / 3600
        lines.append(f"60 epochs of RAF-CE's {steps} steps, {name}: {hours:.2f} h (computed)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
