"""The step of Sec. 4.2 on the whole ResNet-34, in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import random_batch

import mmlfer

CFG = mmlfer.Config(data="-", size=32, batch_size=4, weights="none", device="cpu", momentum=0.9,
                    weight_decay=1e-3)  # fmt: skip


def make_run(method="mml", hypergrad="create_graph", batchnorm=True, seed=0):
    """A run in float64 whose meta net is away from its zeros."""
    run = mmlfer.Run(dataclasses.replace(CFG, method=method, hypergrad=hypergrad, seed=seed), 1)
    if not batchnorm:
        for module in list(run.net.backbone.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.BatchNorm2d):
                    setattr(module, name, torch.nn.Identity())
                elif isinstance(child, torch.nn.Conv2d):
                    child.weight.data *= 0.6
        backbone = list(run.net.backbone.parameters())
        run.opt.param_groups[0]["params"] = backbone
    run.net.double()
    run.table = run.table.double()
    if run.meta:
        run.meta.double()
        for p in run.meta.parameters():
            torch.nn.init.normal_(p, 0, 0.02)
    return run


def grad_psi(run, batch, val):
    outputs, tape = mmlfer.record(run.net, batch[0])
    losses = mmlfer.all_losses(outputs, batch[1], batch[2], run.table, run.form)
    omega = mmlfer.loss_weights(run.meta, outputs[0], run.cfg)
    return mmlfer.meta_test(run, batch, outputs, tape, losses, omega, val)


def val_loss_after_look_ahead(run, batch, val):
    """L^val(theta*(psi)), by first-order means alone: a backward pass and a plain step."""
    net = make_run()
    net.net.load_state_dict(run.net.state_dict())
    outputs = net.net(batch[0])
    losses = mmlfer.all_losses(outputs, batch[1], batch[2], run.table, run.form)
    (mmlfer.loss_weights(run.meta, outputs[0], run.cfg).detach() * losses).sum(1).mean().backward()
    with torch.no_grad():
        for name, p in net.net.named_parameters():
            p -= (0.001 if name.startswith("backbone") else 0.01) * p.grad
        return mmlfer.loss_emo(net.net(val[0])[1], val[1]).mean().item()


@pytest.mark.parametrize("method", ["mml", "mal2"])
def test_hypergradient_matches_finite_differences(method):
    run, batch, val = make_run(method), random_batch(4), random_batch(4, seed=1)
    gradient = torch.cat([g.flatten() for g in grad_psi(run, batch, val)])
    start = torch.nn.utils.parameters_to_vector(run.meta.parameters()).detach()
    for seed in range(2):
        direction = torch.randn(len(start), generator=torch.Generator().manual_seed(seed)).double()
        ends = []
        for eps in (1e-8, -1e-8):  # so small that no ReLU of the millions switches in between
            torch.nn.utils.vector_to_parameters(start + eps * direction, run.meta.parameters())
            ends.append(val_loss_after_look_ahead(run, batch, val))
        slope = (ends[0] - ends[1]) / 2e-8
        assert slope == pytest.approx(float(gradient @ direction), rel=1e-5)


@pytest.mark.parametrize("hypergrad", ["create_graph", "jvp"])
def test_look_ahead_leaves_parameters_and_buffers_alone(hypergrad):
    run, batch = make_run(hypergrad=hypergrad), random_batch(4)
    outputs, tape = mmlfer.record(run.net, batch[0])
    losses = mmlfer.all_losses(outputs, batch[1], batch[2], run.table, run.form)
    omega = mmlfer.loss_weights(run.meta, outputs[0], run.cfg)
    before = {k: v.clone() for k, v in run.net.state_dict().items()}
    mmlfer.meta_test(run, batch, outputs, tape, losses, omega, random_batch(4, seed=1))
    assert "forward" not in vars(run.net.backbone.conv1)
    assert all(torch.equal(v, before[k]) for k, v in run.net.state_dict().items())
    assert int(before["backbone.bn1.num_batches_tracked"]) == 1


def test_a_step_moves_running_statistics_once_and_by_training_images_alone():
    a, b = make_run(seed=0), make_run("stl", seed=0)
    mmlfer.train_step(a, random_batch(4), random_batch(4, seed=1))
    mmlfer.train_step(b, random_batch(4), None)
    moved = [(k, v) for k, v in a.net.named_buffers() if k not in ("mean", "std")]
    assert len(moved) == 108
    assert all(torch.equal(v, dict(b.net.named_buffers())[k]) for k, v in moved)


@pytest.mark.parametrize("method,count", [("mal", 1), ("mal2", 2), ("mml", 2)])
def test_psi_starts_at_weights_of_one_half(method, count):
    cfg = dataclasses.replace(CFG, method=method)
    meta = mmlfer.make_meta_net(method)
    omega = mmlfer.loss_weights(meta, torch.randn(3, 512), cfg)
    assert omega.tolist() == [[0.5 if w == "meta" else w for w in mmlfer.METHODS[method]]] * 3
    assert (omega == 0.5).sum() == 3 * count


def test_fixed_weights_are_the_methods():
    cfg = dataclasses.replace(CFG, rho=0.3, rho_am=0.7)
    expected = {"stl": [1, 0, 0], "mtl": [1, 0.3, 0], "am": [1, 0.3, 0.7]}
    for method, row in expected.items():
        cfg = dataclasses.replace(cfg, method=method)
        assert mmlfer.make_meta_net(method) is None
        omega = mmlfer.loss_weights(None, torch.zeros(1, 512, dtype=torch.float64), cfg)
        assert omega.tolist() == [row]


def test_weights_are_no_path_back_to_the_backbone():
    f = torch.randn(3, 512, requires_grad=True)
    assert torch.autograd.grad(mmlfer.loss_weights(mmlfer.make_meta_net("mml"), f, CFG).sum(), f,
                               allow_unused=True) == (None,)  # fmt: skip


@pytest.mark.parametrize("method,batchnorm", [("mml", True), ("mal", True), ("mal2", True),
                                              ("mml", False)])  # fmt: skip
def test_jvp_equals_create_graph(method, batchnorm):
    runs = {form: make_run(method, form, batchnorm) for form in ("create_graph", "jvp")}
    one, other = (
        torch.cat([g.flatten() for g in grad_psi(r, random_batch(8), random_batch(8, seed=1))])
        for r in runs.values()
    )
    assert one.norm() > 0 and (one - other).norm() < 1e-9 * one.norm()
    for step in range(3):
        for run in runs.values():
            mmlfer.train_step(run, random_batch(8, seed=step), random_batch(8, seed=9 + step))
    for part in ("net", "meta"):
        a, b = (torch.cat([p.flatten() for p in getattr(r, part).parameters()])
                for r in runs.values())
        assert torch.isfinite(a).all() and (a - b).norm() < 1e-9 * a.norm()


def test_auto_compares_both_forms_and_goes_on_with_jvp(capsys):
    run = make_run(hypergrad="auto")
    mmlfer.train_step(run, random_batch(4), random_batch(4, seed=1))
    assert run.hypergrad == "jvp"
    assert "jvp differs from create_graph by" in capsys.readouterr().out


def test_auto_falls_back_when_the_forms_differ(capsys, monkeypatch):
    run = make_run(hypergrad="auto")
    wrong = lambda *args: [torch.ones_like(p) for p in run.meta.parameters()]  # noqa: E731
    monkeypatch.setattr(mmlfer, "hypergradient_jvp", wrong)
    mmlfer.train_step(run, random_batch(4), random_batch(4, seed=1))
    assert run.hypergrad == "create_graph" and "Warning" in capsys.readouterr().err


def test_both_forms_give_the_same_log_over_an_epoch(faces_folder):
    """In float64: in float32 the rounding of theta* alone moves either form by percents, and a
    net at random weights makes more of it at each step."""
    faces = mmlfer.load_images(mmlfer.load_labels(faces_folder), faces_folder, 32)
    batches = mmlfer.Batches(faces, dataclasses.replace(CFG, batch_size=8), torch.device("cpu"))
    batches.y_au = batches.y_au.double()
    records = []
    for form in ("create_graph", "jvp"):
        run = make_run(hypergrad=form)
        steps = [mmlfer.train_step(run, batches.take(i, flip), batches.take(j, flip_j))
                 for i, flip, j, flip_j in batches.epoch(0)]  # fmt: skip
        records.append(torch.stack(steps))
    assert len(records[0]) == batches.steps == 4
    assert (records[0][:, 4:6] - records[0][0, 4:6]).abs().max() > 1e-3  # the weights moved
    assert np.allclose(*(r.numpy() for r in records), rtol=1e-6, atol=1e-9)
