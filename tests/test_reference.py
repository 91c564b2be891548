"""The whole training, restated plainly and slowly, against the program's own loop.

Nothing of mmlfer is used by the reference: label files are split by hand, images opened by PIL,
the losses written as the paper's equations, the hypergradient taken by create_graph, SGD and the
one-cycle schedule by their formulas. Float64, the real ResNets at 32x32, up to two epochs of two
steps; 11 training faces in batches of 4, so that three are left over, and 7 validation faces, so
that the second batch begins another permutation.
"""

import copy
import csv
import dataclasses
import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, invoke, run_of, use_thin_backbones
from reference import AUS, EMOTIONS, Net, read_folder

import mmlfer
from mmlfer_commands import _rafce, _stats, train

TRAIN, TEST, VAL = 0, 1, 2
OPTIONS = {"size": 32, "batch_size": 4, "epochs": 2, "weights": "none", "device": "cpu", "seed": 11,
           "lr_backbone": 0.003, "lr_heads": 0.02, "lr_meta": 0.3, "momentum": 0.8, "weight_decay": 0.03,
           "rho": 0.3, "rho_am": 0.7, "stats": "wild", "form": "auto", "schedule": "constant",
           "hypergrad": "jvp", "psi": 0.05, "weight_max": 1.0, "arch": "resnet18"}
CASES = {  # psi: the spread of the meta net's parameters at the start
    "stl": {"method": "stl"},
    "mtl": {"method": "mtl", "schedule": "onecycle"},
    "mal": {"method": "mal", "epochs": 1},
    "mal2": {"method": "mal2", "weight_max": 4.0, "schedule": "onecycle", "hypergrad": "create_graph"},
    "am": {"method": "am", "schedule": "onecycle"},
    "am-lab": {"method": "am", "form": "lab"},
    "mml": {"method": "mml", "psi": 0.0, "epochs": 1},
    "mml-gaps": {"method": "mml", "labels": "hard", "gaps": True, "epochs": 1},
    "mal2-gaps": {"method": "mal2", "labels": "hard", "gaps": True, "epochs": 1, "weight_max": 4.0, "hypergrad": "create_graph"},
    "mml-soft": {"method": "mml", "labels": "soft", "gaps": True, "schedule": "onecycle"},
    "mml-adjust": {"method": "mml", "logit_adjust": 0.7, "select": "diag", "schedule": "onecycle"},
    "mal2-soft-adjust": {"method": "mal2", "labels": "soft", "gaps": True, "logit_adjust": 1.0, "epochs": 1,
                         "hypergrad": "create_graph"},
    "mml-lab": {"method": "mml", "stats": "lab", "schedule": "onecycle", "arch": "resnet34"},
}

pytestmark = pytest.mark.usefixtures("real_resnet18")


# ---------------------------------------------------------------- the program, in float64


def run_program_loop(options, data, out):
    """Run the program's own training loop; only this function knows how it is called.

    Residual branches start at a fifth of their scale: otherwise rounding grows ten times per step,
    because with batches of 4 the last BatchNorm is over 4 numbers. Checkpoints are kept in memory.
    """
    saved, torch_float = {}, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        cfg = mmlfer.Config(data=str(data), **{k: v for k, v in options.items() if k not in ("psi", "gaps")})
        faces = mmlfer.load_images(_rafce.load_labels(data), data, cfg.size)
        if options.get("gaps"):
            y_emo, y_au, shares = with_gaps(faces.y_emo, faces.y_au, faces.split)
            faces = dataclasses.replace(faces, y_emo=y_emo, y_au=y_au, shares=np.where(shares < 0, np.nan, shares).astype(np.float32))
        batches = mmlfer.Batches(faces, cfg, torch.device("cpu"))
        run = run_of(cfg, batches.steps)
        run.statistics = mmlfer.Statistics.of(run.table.double(), run.form)
        run.prior = faces.prior(cfg.labels)
        run.shift = cfg.logit_adjust * _stats.log_prior(run.prior)
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            for name, p in run.net.named_parameters():
                p *= 0.2 if ".bn2." in name else 1
            for p in run.meta.parameters() if run.meta else ():
                p.normal_(0, options["psi"], generator=torch.Generator().manual_seed(3))
            start = snapshot(run)
            patch.setattr(train, "save_checkpoint", lambda state, path: saved.update({
                path.name: copy.deepcopy({key: state[key] for key in ("epoch", "net", "meta")})}))
            with torch.enable_grad():
                train.train_epochs(run, batches, faces, out)
    finally:
        torch.set_default_dtype(torch_float)
    log = [{k: float(v) for k, v in row.items()} for row in csv.DictReader((out / "log.csv").open())]
    return SimpleNamespace(start=start, end=snapshot(run), log=log, best=saved["best.pt"], last=saved["last.pt"])


def with_gaps(y_emo, y_au, split):
    """Labels with rows whose expression is not named (-1), whose AUs are not coded (-1), or both; and shares of the
    expressions, -1 where a row has none: in one row of each part, and in a row whose expression is named."""
    rng, part = np.random.default_rng(8), np.asarray(split)
    y_emo, y_au = np.array(y_emo), np.array(y_au, np.int8)
    shares = rng.dirichlet(np.ones(14), len(y_emo)).astype(np.float32).astype(float)
    train, val = np.flatnonzero(part == TRAIN), np.flatnonzero(part == VAL)
    y_emo[train[[0, 1, 2, 5]]] = y_emo[val[[1, 4]]] = -1
    y_au[train[[2, 3, 4]]] = -1
    y_au[train[6], ::2] = -1
    shares[train[[0, 2, 7]]] = shares[val[1]] = -1
    return y_emo, y_au, shares


def snapshot(run):
    named = {"theta": run.net.named_parameters(), "buffers": run.net.named_buffers(),
             "psi": run.meta.named_parameters() if run.meta else ()}
    parts = {key: {n: v.detach().clone() for n, v in values} for key, values in named.items()}
    speed = {n: run.opt.state[p]["momentum_buffer"] for n, p in run.net.named_parameters() if p in run.opt.state}
    return SimpleNamespace(**parts, speed=speed)


# ---------------------------------------------------------------- the reference


@functools.cache
def net_of_float64(arch):
    """A net in float64. Its own parameters are not used: functional_call is given others."""
    return Net(arch).double()


def read_table(name):
    """Table 1 as the program holds it, rounded to float32, without AU 11, which is not one of the 32."""
    content = yaml.safe_load((ROOT / f"stats/{name}.yaml").read_text())
    rows = [[content[e].get(au, 0) for au in AUS] for e in EMOTIONS]
    return torch.tensor(rows, dtype=torch.float32).double()


def plan_epoch(rows_train, rows_val, steps, o, epoch):
    """The epoch's batches, as the class Batches documents them: (index, flip) of each step."""
    rng, n, parts = np.random.default_rng([o.seed, 3, epoch]), steps * o.batch_size, []
    for rows in (rows_train, rows_val):
        index = []
        while len(index) < n:
            index += rng.permutation(rows).tolist()
        flip = (rng.random(n) < 0.5).tolist()
        parts.append([(index[i : i + o.batch_size], flip[i : i + o.batch_size]) for i in range(0, n, o.batch_size)])
    return list(zip(*parts))


def take(data, index, flip):
    x = torch.stack([data[0][i].flip(2) if turned else data[0][i] for i, turned in zip(index, flip)])
    return x, data[1][index], data[2][index]


def losses_of(z_emo, z_au, y_emo, y_au, table, form, prior, tau):
    """L^emo, L^AU and L^AM by Eqs. 2, 1 and 9 as the paper has them; each (B,). With --logit-adjust p^emo of L^emo, not
    of L^AM, is exp(z) prior^tau, divided by its sum."""
    p_emo, p_au = z_emo.exp() / z_emo.exp().sum(1, keepdim=True), 1 / (1 + (-z_au).exp())
    moved = z_emo.exp() * prior**tau
    l_emo = -(y_emo * (moved / moved.sum(1, keepdim=True)).log()).sum(1)  # y_emo (B, 14): shares, 1 if named, 0 for none
    coded = (y_au >= 0).double()
    l_au = -(coded * (y_au * p_au.log() + (1 - y_au) * (1 - p_au).log())).sum(1)  # Eq. 1
    s = table if form == "wild" else (table > 0).double()
    if form == "wild":
        q_au = (p_emo[:, :, None] / (1 + (-s).exp())).sum(1)  # Eq. 5
    else:
        q_au = 1 / (1 + (-(p_emo[:, :, None] * s).sum(1)).exp())  # Sec. 5.3
    q_emo = (p_au[:, None] * s).sum(2) / s.sum(1)  # Eq. 7
    return l_emo, l_au, -(p_au * q_au.log()).sum(1) - (p_emo * q_emo.log()).sum(1)  # Eqs. 6, 8


def weights_of(method, f, psi, o):
    """omega^emo, omega^AU and omega^AM of each sample."""
    one, zero = torch.ones(len(f)).double(), torch.zeros(len(f)).double()
    if method in ("stl", "mtl", "am"):
        return one, one * o.rho * (method != "stl"), one * o.rho_am * (method == "am")
    learned = o.weight_max / (1 + (-(f.detach() @ psi["weight"].T + psi["bias"])).exp())
    if method == "mal":
        return one, learned[:, 0], zero
    if method == "mal2":
        return learned[:, 0], learned[:, 1], zero
    return one, learned[:, 0], learned[:, 1]


def l_mtl(net, theta, buffers, psi, batch, o):
    """Eq. 12, as a mean; and [mean L^emo, L^AU, L^AM, omega^emo, omega^AU, omega^AM]."""
    f, z_emo, z_au = torch.func.functional_call(net, (theta, buffers), (batch[0],))
    losses = losses_of(z_emo, z_au, batch[1], batch[2], o.table, o.form, o.prior, o.tau)
    omega = weights_of(o.method, f, psi, o)
    total = sum(w * loss for w, loss in zip(omega, losses)).mean()
    return total, [float(v.detach().mean()) for v in (*losses, *omega)]


def copies(buffers):
    return {name: b.clone() for name, b in buffers.items()}


def meta_step(net, state, batch, val, alpha, o):
    """Eqs. 12 to 15: psi after its step; theta and BatchNorm's statistics do not change."""
    psi = {n: p.clone().requires_grad_() for n, p in state.psi.items()}
    theta = {n: p.clone().requires_grad_() for n, p in state.theta.items()}
    total, _ = l_mtl(net, theta, copies(state.buffers), psi, batch, o)
    grad = torch.autograd.grad(total, list(theta.values()), create_graph=True, allow_unused=True)
    star = {n: p - alpha[n] * (0 if g is None else g) for (n, p), g in zip(theta.items(), grad)}
    _, z_emo, _ = torch.func.functional_call(net, (star, copies(state.buffers)), (val[0],))
    l_val = -(val[1] * (z_emo + o.tau * o.prior.log()).log_softmax(1)).sum(1).mean()
    grad = torch.autograd.grad(l_val, list(psi.values()))
    return {n: (p - o.lr_meta * g).detach() for (n, p), g in zip(psi.items(), grad)}


def base_step(net, state, batch, alpha, o):
    """Eqs. 16 and 17, by SGD with momentum and weight decay; only this pass updates BatchNorm's statistics."""
    theta = {n: p.clone().requires_grad_() for n, p in state.theta.items()}
    total, means = l_mtl(net, theta, state.buffers, state.psi, batch, o)
    grad = torch.autograd.grad(total, list(theta.values()), allow_unused=True)
    for (n, p), g in zip(state.theta.items(), grad):
        g = (torch.zeros_like(p) if g is None else g) + o.weight_decay * p
        state.speed[n] = o.momentum * state.speed[n] + g
        state.theta[n] = p - alpha[n] * state.speed[n]
    return means


def one_cycle(t, n, top):
    """The rate of step t of n: from top/25 up to top at 30 % of the steps, then down to top/250,000, by cosines."""
    def between(start, end, share):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    turn = 0.3 * n - 1
    if t <= turn:
        return between(top / 25, top, t / turn)
    return between(top, top / 25 / 1e4, (t - turn) / (n - 1 - turn))


def rates(t, n, o):
    """alpha of the backbone and of the heads at step t."""
    if o.schedule == "constant":
        return o.lr_backbone, o.lr_heads
    return one_cycle(t, n, o.lr_backbone), one_cycle(t, n, o.lr_heads)


def predictions(net, theta, buffers, x):
    """The most probable expression of each image, with running statistics."""
    net.eval()
    with torch.no_grad():
        z_emo = torch.func.functional_call(net, ({**theta, **buffers},), (x,))[1]
    net.train()
    return [max(range(14), key=lambda k: float(row[k])) for row in z_emo]


def accuracies(pred, truth):
    """Acc. and Diag. of these predictions."""
    right = [p == t for p, t in zip(pred, truth)]
    of_class = [[r for r, t in zip(right, truth) if t == k] for k in set(truth)]
    return sum(right) / len(right), sum(sum(r) / len(r) for r in of_class) / len(of_class)


def reference_loop(options, folder, start):
    """The same training from the same start. -> the end, the log, the best epoch and its theta"""
    o = SimpleNamespace(**options)
    o.table = read_table(o.stats)
    o.form = o.stats if o.form == "auto" else o.form
    data, net = read_folder(folder), net_of_float64(o.arch)
    truth, y_au, shares = data[1].numpy(), data[2], None
    if options.get("gaps"):
        truth, y_au, shares = with_gaps(truth, data[2].numpy(), data[3])
    q = np.array([[float(k == y) for k in range(14)] for y in truth])
    if getattr(o, "labels", "hard") == "soft":
        q = np.array([own if min(share) < 0 else share for own, share in zip(q, shares)])
    rows = {TRAIN: np.flatnonzero(data[3] == TRAIN), VAL: np.array([i for i in np.flatnonzero(data[3] == VAL) if truth[i] >= 0])}
    o.tau, named = getattr(o, "logit_adjust", 0.0), q[data[3] == TRAIN]
    o.prior = torch.tensor(named.sum(0) / named.sum())
    o.prior[o.prior == 0] = 1  # an expression that nobody has to train on is not moved
    data = data[0], torch.tensor(q), torch.as_tensor(y_au).double(), data[3]
    buffers = {n: b for n, b in copies(start.buffers).items() if n in dict(net.named_buffers())}
    state = SimpleNamespace(theta=dict(start.theta), buffers=buffers, psi=dict(start.psi),
                            speed={n: torch.zeros_like(p) for n, p in start.theta.items()})
    steps, done, log, best = len(rows[TRAIN]) // o.batch_size, 0, [], -1.0
    for epoch in range(o.epochs):
        means = []
        for batch, val in plan_epoch(rows[TRAIN], rows[VAL], steps, o, epoch):
            backbone, heads = rates(done, o.epochs * steps, o)
            alpha = {n: backbone if n.startswith("backbone") else heads for n in state.theta}
            if state.psi:
                state.psi = meta_step(net, state, take(data, *batch), take(data, *val), alpha, o)
            means.append(base_step(net, state, take(data, *batch), alpha, o))
            done += 1
        mean = np.mean(means, 0)
        pred = predictions(net, state.theta, state.buffers, data[0][rows[VAL]])
        acc, diag = accuracies(pred, truth[rows[VAL]].tolist())
        log.append({"epoch": epoch + 1, "train_loss_emo": mean[0], "train_loss_au": mean[1],
                    "train_loss_am": mean[2], "w_au": mean[4], "w_am": mean[5], "val_acc": acc,
                    "val_diag": diag, "lr": rates(done, o.epochs * steps, o)[0]})
        chosen = diag if getattr(o, "select", "acc") == "diag" else acc
        if chosen > best:
            best, best_epoch, best_theta = chosen, epoch + 1, dict(state.theta)
    return SimpleNamespace(end=state, log=log, best_epoch=best_epoch, best_theta=best_theta)


# ---------------------------------------------------------------- both


@pytest.fixture(scope="module", params=CASES)
def both(request, noise_folder, tmp_path_factory):
    """The results of the program and of the reference for one case."""
    options = {**OPTIONS, **CASES[request.param]}
    with pytest.MonkeyPatch.context() as patch:
        use_thin_backbones(patch, thin=False)
        ours = run_program_loop(options, noise_folder, tmp_path_factory.mktemp("out"))
        return ours, reference_loop(options, noise_folder, ours.start)


def assert_equal_tensors(ours, reference, rtol=1e-8):
    assert ours.keys() >= reference.keys()
    for name, value in reference.items():
        difference = (ours[name] - value).double().norm() / value.double().norm().clamp_min(1e-6)
        assert difference < rtol, (name, float(difference))


def test_theta(both):
    ours, reference = both
    assert_equal_tensors(ours.end.theta, reference.end.theta)
    assert_equal_tensors(ours.end.speed, reference.end.speed)


def test_psi(both):
    ours, reference = both
    assert ours.end.psi.keys() == reference.end.psi.keys()
    for name, value in reference.end.psi.items():
        moved = (value - ours.start.psi[name]).norm()
        assert moved > 1e-4 and (ours.end.psi[name] - value).norm() < 1e-6 * moved


def test_running_statistics(both):
    ours, reference = both
    assert_equal_tensors(ours.end.buffers, reference.end.buffers)


def test_log(both):
    ours, reference = both
    assert len(ours.log) == len(reference.log)
    for row, expected in zip(ours.log, reference.log):
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_best_and_last(both):
    ours, reference = both
    assert (ours.best["epoch"], ours.last["epoch"]) == (reference.best_epoch, len(reference.log))
    assert_equal_tensors(ours.best["net"], reference.best_theta)
    assert_equal_tensors(ours.last["net"], reference.end.theta | reference.end.buffers)
    assert_equal_tensors(ours.last["meta"], reference.end.psi)


def test_one_cycle_is_as_described():
    assert one_cycle(0, 100, 1) == pytest.approx(1 / 25) and one_cycle(29, 100, 1) == pytest.approx(1)
    assert one_cycle(99, 100, 1) == pytest.approx(1 / 25 / 1e4)


def test_seed_reaches_the_net_and_the_batches(noise_folder, tmp_path, monkeypatch):
    """`train --seed 7` starts from torch's net after manual_seed(7), and takes that seed's batches."""
    started = []
    monkeypatch.setattr(train, "train_epochs", lambda *args: started.append(args))
    monkeypatch.setattr(train, "read_test_set", lambda *args: {name: {
        "epoch": 0, "accuracy": 0.0, "diag": 0.0, "n": 4} for name in ("best", "last")})
    result = invoke("train", "--data", noise_folder, "--out", tmp_path / "r", "--seed", 7, "--size", 32, "--batch-size", 4,
                    "--weights", "none", "--device", "cpu")
    assert result.exit_code == 0, result.output
    run, batches, *_ = started[0]
    torch.manual_seed(7)
    for name, value in Net("resnet34").state_dict().items():
        assert torch.equal(run.net.state_dict()[name], value), name
    split = read_folder(noise_folder)[3]
    o = SimpleNamespace(seed=7, batch_size=4)
    for epoch in (0, 5):
        plan = plan_epoch(np.flatnonzero(split == TRAIN), np.flatnonzero(split == VAL), 2, o, epoch)
        assert [((i.tolist(), f.tolist()), (j.tolist(), g.tolist())) for i, f, j, g in batches.epoch(epoch)] == plan
