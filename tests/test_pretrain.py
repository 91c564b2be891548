"""Identity pre-training: the loss, verification, whole runs."""

import csv
import itertools
import math
import os
import platform
import re
import shutil
import signal
import statistics
import sys
import types

import numpy as np
import pytest
import torch
from conftest import SMALL_PRETRAINING, assert_same_pretraining, invoke, load, write_lfw

import mmlfer
from mmlfer_commands import _backbones, _outputs, _processes, pretrain


def refused(*args):
    """The one line of the error with which `pretrain` ends."""
    result = invoke("pretrain", *args)
    assert result.exit_code == 1 and result.stdout.count("\n") <= 1, result.output
    return [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize("loss,margin", [("cosface", 0.35), ("arcface", 0.5)])
def test_margins_match_a_naive_loop(loss, margin):
    cosines = torch.rand(140, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.98 - 0.99
    y = torch.arange(140) % 7
    moved = pretrain.with_margin(cosines, y, loss, margin)
    for i in range(140):
        for j in range(7):
            c = float(cosines[i, j])
            if j == y[i]:
                t = math.acos(c) + margin
                c = c - margin if loss == "cosface" else math.cos(t) if t <= math.pi else -2 - math.cos(t)
            assert float(moved[i, j]) == pytest.approx(c, abs=1e-9)
    assert (cosines.gather(1, y[:, None]).acos() + 0.5 > math.pi).sum() > 2  # the case of t + m above pi occurs


def test_arcface_falls_as_the_angle_grows_and_its_gradient_is_finite_at_the_ends():
    cosines = torch.linspace(1, -1, 201, dtype=torch.float64)[:, None].requires_grad_()
    moved = pretrain.with_margin(cosines, torch.zeros(201, dtype=torch.long), "arcface", 0.5)
    assert (moved[1:] < moved[:-1]).all()
    assert torch.autograd.grad(moved.sum(), cosines)[0].isfinite().all()


# ---------------------------------------------------------------- verification


def test_best_threshold_beats_every_other():
    rng = np.random.default_rng(0)
    for n in (2, 5, 30, 300):
        similarity, same = np.round(rng.normal(size=n), 1), rng.random(n) < 0.5
        similarity[same] += 0.5
        found = np.mean((similarity >= pretrain.best_threshold(similarity, same)) == same)
        tried = max(np.mean((similarity >= t) == same) for t in similarity)
        assert found == tried


def test_each_fold_is_judged_by_the_threshold_of_the_others():
    similarity = np.array([0.9, 0.1, 0.9, 0.1, 0.4, 0.2])
    same = np.array([True, False, True, False, False, False])
    fold = np.array([0, 0, 1, 1, 2, 2])
    assert pretrain.fold_accuracies(similarity, same, fold).tolist() == [1, 1, 1]
    similarity[4] = 0.6  # its own fold's threshold, 0.75, would be right; the others' is 0.5
    assert pretrain.fold_accuracies(similarity, same, fold).tolist() == [1, 1, 0.5]


def test_a_pair_with_one_bad_image_does_not_count(monkeypatch):
    """All pairs that can be read are judged correctly; a pair with a bad image would be judged wrongly."""
    source = types.SimpleNamespace(read=lambda i, size: None)
    e = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [-1, 0], [0, -1]], float)  # the last two are bad
    monkeypatch.setattr(pretrain, "embed", lambda *args: (e, np.array([False] * 4 + [True] * 2)))
    pairs = np.array([[0, 1], [0, 2], [0, 4], [2, 3], [1, 3], [5, 3]])
    same_person = np.array([True, False, True, True, False, True])
    test = source, pairs, same_person, np.array([0, 0, 0, 1, 1, 1])
    assert pretrain.verify(None, test, types.SimpleNamespace(size=32), set()) == (1, 0)


def test_verification_is_the_mean_and_the_spread_of_the_folds(monkeypatch):
    source, accuracies = types.SimpleNamespace(read=lambda i, size: None), [1.0, 0.5, 0.75, 0.5]
    monkeypatch.setattr(pretrain, "embed", lambda *args: (np.eye(8), np.zeros(8, bool)))
    monkeypatch.setattr(pretrain, "fold_accuracies", lambda *args: np.array(accuracies))
    test = source, np.arange(8).reshape(4, 2), np.ones(4, bool), np.arange(4)
    told = pretrain.verify(None, test, types.SimpleNamespace(size=32), set())
    assert told == pytest.approx((statistics.mean(accuracies), statistics.pstdev(accuracies)))


def test_verification_is_on_people_who_are_held_out_by_the_seed(people):
    """Their own images; with other seeds other people, and of the same people other pairs."""
    opt = types.SimpleNamespace(faces=people, holdout=0.3, batch_size=8, pairs=None, size=32, skip_bad_images=False)
    seen = {}
    for opt.seed in range(20):
        images, n, tests, _ = pretrain.prepare(opt, _processes.World(0, 1, torch.device("cpu")))
        source, pairs, same, _ = tests["holdout"]
        person = np.array([source.name(i).split("/")[0] for i in range(40)])
        held = {*person[pairs.ravel()]}
        assert len(held) == 2 and n == 6 and not held & {*person[images.rows]} and len(images.rows) == 30
        assert ((person[pairs[:, 0]] == person[pairs[:, 1]]) == same).all() and 0 < same.sum() < len(same)
        seen.setdefault(frozenset(held), []).append(pairs.tolist())
    assert 5 < len(seen) < 20
    assert all(one != other for group in seen.values() for one, other in itertools.combinations(group, 2))
    opt.holdout = 0
    images, n, tests, _ = pretrain.prepare(opt, _processes.World(0, 1, torch.device("cpu")))
    assert len(images.rows) == 40 and n == 8 and tests == {}


def test_embedding_is_the_mean_of_a_face_and_its_mirror_image_in_test_mode(people):
    source, _ = pretrain.read_people(people)
    torch.manual_seed(0)
    net = pretrain.make_people_net("resnet18", 3, False)
    net.neck.running_mean.fill_(0.3)
    rows = np.arange(0, 40, 3)
    images = pretrain.Images(source, rows, rows, 32)
    e, bad = pretrain.embed(net, images, types.SimpleNamespace(workers=0, size=32), set())
    x = torch.stack([torch.from_numpy(source.read(i, 32).copy()).permute(2, 0, 1) for i in rows]).float()
    net.eval()
    with torch.no_grad():
        f = [net.neck(net.backbone((part / 255 - 0.5) / 0.5)) for part in (x, x.flip(3))]
    expected = sum(v / v.norm(dim=1, keepdim=True) for v in f)
    assert np.allclose(e, expected / expected.norm(dim=1, keepdim=True), atol=1e-5) and not bad.any()


# ---------------------------------------------------------------- whole runs


def test_a_run_writes_what_it_promises(pretrained, people):
    out, result = pretrained
    assert sorted(p.name for p in out.parent.iterdir()) == [
        ".resnet18_people.lock", "resnet18_people.csv", "resnet18_people.last.pt", "resnet18_people.pth"]
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert list(rows[0]) == ["epoch", "loss", "train_acc", "lr", "seconds", "images_per_second", "bad_images",
                             "holdout_acc", "holdout_sd"]
    assert [r["epoch"] for r in rows] == ["1", "2", "3", "4"]
    rate = 1 * 8 / 512  # --lr, scaled with the batch; a tenth at half and at three quarters
    assert [float(r["lr"]) for r in rows] == pytest.approx([rate, rate, rate / 10, rate / 100])
    sgd = load(out.with_suffix(".last.pt"))["sgd"]["param_groups"][0]
    assert (sgd["momentum"], sgd["weight_decay"], sgd["nesterov"], sgd["dampening"]) == (0.9, 5e-4, False, 0)
    assert all(float(r["loss"]) > 0 and 0 <= float(r["holdout_acc"]) <= 1 for r in rows)
    assert f"{people}: 40 images of 8 people; 30 images of 6 people to train on\n" in result.stdout
    assert len(re.findall(r"^epoch \d: loss [\d.]+, [\d.]+% right, holdout [\d.]+% ± [\d.]+%, \d+ images/s, 0 bad images$",
                          result.stdout, re.M)) == 4
    assert result.stdout.endswith(f"{out}: mmlfer train --arch resnet18 --weights {out}\n")
    assert invoke("pretrain", "--out", out, "--resume").stdout == f"{out}: complete, nothing to do\n"


def test_train_takes_the_file_with_its_normalisation(pretrained):
    state = load(pretrained[0])
    net, origin = _backbones.start_base_net(str(pretrained[0]), "resnet18")
    assert origin == f"took 96 tensors from {pretrained[0]}"
    assert all(torch.equal(v, state["state_dict"][k]) for k, v in net.backbone.state_dict().items())
    trained = load(pretrained[0].with_suffix(".last.pt"))["net"]
    assert torch.equal(net.backbone.layer4[0].bn2.running_var, trained["backbone.layer4.0.bn2.running_var"])
    assert int(net.backbone.bn1.num_batches_tracked) == 4 * 3
    assert net.mean.flatten().tolist() == net.std.flatten().tolist() == [0.5] * 3
    assert state["arch"] == "resnet18" and state["people"] == 6 and state["options"]["margin"] == 0.35
    assert state["accuracy"].keys() == {"train_acc", "holdout_acc", "holdout_sd"}
    with pytest.raises(mmlfer.InputError, match="it fits --arch resnet18"):
        _backbones.start_base_net(str(pretrained[0]))


@pytest.mark.parametrize("step", [2, 6])  # within the first epoch; at the end of the second
def test_stopped_and_resumed_ends_as_an_uninterrupted_run(pretrained, people, tmp_path, monkeypatch, step):
    out, taken, whole_step = tmp_path / "w.pth", [], pretrain.pretrain_step

    def stopped(*args):
        taken.append(1)
        if len(taken) == step:
            signal.raise_signal(signal.SIGINT)
        return whole_step(*args)

    monkeypatch.setattr(pretrain, "pretrain_step", stopped)
    result = invoke("pretrain", "--faces", people, "--out", out, "--epochs", 4, *SMALL_PRETRAINING)
    assert result.exit_code == 130 and len(taken) == step and not out.exists()
    assert result.stderr == (f"stopped at {tmp_path}/w.last.pt; go on with: "
                             f"mmlfer pretrain --out {out} --resume\n")
    state = load(tmp_path / "w.last.pt")
    assert (state["epoch"], state["step"]) == ((0, 2) if step == 2 else (2, 0))
    moved = tmp_path / "moved"
    shutil.copytree(people, moved)
    result = invoke("pretrain", "--out", out, "--resume", "--faces", moved, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "going on after epoch" in result.stdout
    assert_same_pretraining(pretrained[0], out)


def test_the_log_has_the_numbers_of_each_epoch_alone(people, tmp_path, monkeypatch):
    """Steps of 1, 2, 4 ... s and as much loss, three an epoch; verification takes 100 s. Stopped amid the second
    epoch; 1,000 s pass before the resume."""
    now, taken, out = [5000.0], [], tmp_path / "w.pth"

    def step(run, *batch):
        taken.append(1)
        now[0] += 2 ** (len(taken) - 1)
        if len(taken) == 5:
            signal.raise_signal(signal.SIGTERM)
        run.sgd.step()  # of no gradients
        return torch.tensor([2.0 ** (len(taken) - 1), 0.5 ** run.epoch, 1.0])

    def verify(*args):
        now[0] += 100
        return 0.5, 0.25

    monkeypatch.setattr(pretrain, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(pretrain, "pretrain_step", step)
    monkeypatch.setattr(pretrain, "verify", verify)
    assert invoke("pretrain", "--faces", people, "--out", out, "--epochs", 3, *SMALL_PRETRAINING).exit_code == 143
    now[0] += 1000
    assert invoke("pretrain", "--out", out, "--resume").exit_code == 0
    rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(out.with_suffix(".csv").open())]
    assert [row["seconds"] for row in rows] == [7, 56, 448]
    assert [row["images_per_second"] for row in rows] == [3.43, 0.43, 0.05]  # 3 batches of 8
    assert [row["loss"] for row in rows] == pytest.approx([7 / 3, 56 / 3, 448 / 3])
    assert [row["train_acc"] for row in rows] == [1, 0.5, 0.25]
    assert load(out)["accuracy"] == {"train_acc": 0.25, "holdout_acc": 0.5, "holdout_sd": 0.25}  # of the end


def test_nothing_of_an_overwritten_run_is_left(pretrained, people, tmp_path, monkeypatch):
    """Though the new run is stopped before its first epoch ends: else --resume would find the old one complete."""
    out = shutil.copy(pretrained[0], tmp_path / "w.pth")
    for suffix in (".csv", ".last.pt"):
        shutil.copy(pretrained[0].with_suffix(suffix), tmp_path / f"w{suffix}")
    monkeypatch.setattr(pretrain, "pretrain_epochs", lambda *args: sys.exit(143))
    assert invoke("pretrain", "--faces", people, "--out", out, "--overwrite", *SMALL_PRETRAINING).exit_code == 143
    assert {path.name for path in tmp_path.iterdir()} == {".w.lock", "w.last.pt"}
    assert load(tmp_path / "w.last.pt")["epoch"] == 0


def test_the_options_that_a_resumed_run_may_change(pretrained):
    """Where the images lie and how they are read; all else is the run's own."""
    own = load(pretrained[0].with_suffix(".last.pt"))["options"]
    anew = {"faces": "f", "pairs": "p", "pairs_root": "r", "device": "cuda:1", "workers": 7, "skip_bad_images": True}
    assert all(own[name] != value for name, value in anew.items())
    for name, value in anew.items():
        opt, state = pretrain.resumed_options(pretrain.run_paths(pretrained[0]), {name: value, "epochs": 4})
        assert vars(opt) == own | {name: value} and state["epoch"] == 4


def test_a_finished_run_resumed_with_other_options_is_refused(pretrained, tmp_path):
    """Whether or not its checkpoint still exists; only the place of the faces may change."""
    out = shutil.copy(pretrained[0], tmp_path / "w.pth")
    for last in (False, True):
        if last:
            shutil.copy(pretrained[0].with_suffix(".last.pt"), tmp_path / "w.last.pt")
        assert refused("--out", out, "--resume", "--epochs", 9) == [
            f"Error: {out}: its run has --epochs 4, not 9; a resumed run keeps its options"]
        result = invoke("pretrain", "--out", out, "--resume", "--epochs", 4, "--faces", tmp_path, "--workers", 3)
        assert result.exit_code == 0 and result.stdout == f"{out}: complete, nothing to do\n"
    torch.save({"state_dict": {}}, out)
    assert refused("--out", out, "--resume") == [f"Error: {out}: not a file of `mmlfer pretrain`; name another --out"]


def test_the_seed_reaches_the_net_the_batches_and_the_flips(people):
    source, _ = pretrain.read_people(people)
    images = pretrain.Images(source, np.arange(40), source.labels, 32)
    opt = types.SimpleNamespace(seed=0, batch_size=8, arch="resnet18", precision="float32", lr=0.1, momentum=0.9,
                                weight_decay=0, epochs=2, workers=0)
    world, seen = _processes.World(0, 1, torch.device("cpu")), {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        opt.seed = seed
        run = pretrain.Pretraining(opt, 8, 40, world)
        run.epoch = epoch
        batches = list(pretrain.epoch_batches(run, images))
        assert len(batches) == 5 and all(len(b[0]) == 8 for b in batches)
        assert sorted(torch.cat([b[1] for b in batches]).tolist()) == sorted(source.labels.tolist())
        seen[seed, epoch] = [torch.cat([b[i].float() for b in batches]).tolist() for i in (1, 3)]
        seen[seed, epoch].append(run.net.centres[0, :9].tolist())
        assert 5 < sum(seen[seed, epoch][1]) < 35
    a, b, c = seen.values()
    assert a[0] != b[0] and a[1] != b[1] and a[2] == b[2]
    assert a[0] != c[0] and a[1] != c[1] and a[2] != c[2]


def test_a_step_is_the_loss_on_flipped_faces_with_the_margin_after_the_warm_up(people, monkeypatch):
    """Compared with the loss written out, on the same net."""
    opt = types.SimpleNamespace(seed=0, batch_size=8, arch="resnet18", precision="float32", lr=6.4, momentum=0.9,
                                weight_decay=1.0, epochs=2, warmup=1, loss="cosface", margin=0.35, scale=16.0)
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.integers(0, 256, (8, 3, 32, 32), np.uint8)), torch.arange(8)
    flip = torch.arange(8) % 3 == 0
    for epoch, margin in ((0, 0), (1, 0.35)):
        run = pretrain.Pretraining(opt, 8, 40, _processes.World(0, 1, torch.device("cpu")))
        start, run.epoch = run.net.centres.detach().clone(), epoch
        turned = torch.stack([image.flip(2) if f else image for image, f in zip(x, flip)])
        e = run.net.embed(turned)
        centres = start.clone().requires_grad_()
        z = 16 * (e.detach() @ (centres / centres.norm(dim=1, keepdim=True)).T - margin * torch.eye(8))
        loss = -(z.diagonal() - z.exp().sum(1).log()).mean()
        gradient = torch.autograd.grad(loss, centres)[0]
        numbers = pretrain.pretrain_step(run, x, y, flip)
        assert numbers[0].item() == pytest.approx(loss.item(), rel=1e-4)
        stepped = start - 6.4 * 8 / 512 * (gradient + start)
        assert torch.allclose(run.net.centres, stepped, atol=1e-4)
    y = run.net(turned).argmax(1)  # its own answers are right, whatever the margin
    assert pretrain.pretrain_step(run, x, y, flip)[1] == 1
    opt.lr = 1e-12  # a net that stays where it is has the same gradient again
    run = pretrain.Pretraining(opt, 8, 40, run.world)
    assert len({f"{pretrain.pretrain_step(run, x, y, flip)[2]:.3f}" for _ in range(3)}) == 1


def test_bf16_runs(people, tmp_path):
    result = invoke("pretrain", "--faces", people, "--out", tmp_path / "w.pth", "--epochs", 1, "--precision", "bf16",
                    "--loss", "arcface", *SMALL_PRETRAINING)
    assert result.exit_code == 0, result.output
    state = load(tmp_path / "w.pth")
    assert {v.dtype for v in state["state_dict"].values()} == {torch.float32, torch.int64}
    assert state["options"]["margin"] == 0.5


@pytest.mark.parametrize("bf16,dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_the_backbone_alone_computes_in_bf16(bf16, dtype):
    net, seen = pretrain.make_people_net("resnet18", 3, bf16), []
    for layer in (net.backbone.conv1, net.backbone.layer4[0].conv2, net.neck):
        layer.register_forward_hook(lambda layer, x, y: seen.append(y.dtype))
    cosines = net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert seen == [dtype, dtype, torch.float32] and cosines.dtype == torch.float32


def test_bf16_is_refused_where_the_gpu_only_imitates_it(people, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    opt = types.SimpleNamespace(faces=people, holdout=0, seed=0, batch_size=8, pairs=None, size=32, skip_bad_images=False, precision="bf16")
    with pytest.raises(mmlfer.InputError, match="^--precision bf16: not on this GPU; leave it out$"):
        pretrain.pretrain(opt, {}, None, _processes.World(0, 1, torch.device("cuda")))


def test_what_is_not_finite_stops_before_the_checkpoint(people, tmp_path, monkeypatch):
    step, taken = pretrain.pretrain_step, []

    def diverged(*args):
        taken.append(1)
        return step(*args) * (torch.nan if len(taken) == 5 else 1)

    monkeypatch.setattr(pretrain, "pretrain_step", diverged)
    lines = refused_after_epochs("--faces", people, "--out", tmp_path / "w.pth", "--epochs", 4, *SMALL_PRETRAINING)
    assert lines == ["Error: epoch 2, step 2: the loss or its gradient is not finite. The last checkpoint is kept; --overwrite with less --lr or more --warmup"]
    assert load(tmp_path / "w.last.pt")["epoch"] == 1 and not (tmp_path / "w.pth").exists()


def test_a_net_that_is_not_finite_is_not_written(people, tmp_path):
    """The net is broken after the last step, when no loss follows that would show it."""
    lines = refused_after_epochs("--faces", people, "--out", tmp_path / "w.pth", "--epochs", 1, *SMALL_PRETRAINING,
                                 "--batch-size", 30, "--lr", 5e39)
    assert len(lines) == 1 and lines[0].startswith("Error: epoch 1, step 1: the net is not finite. The last checkpoint is kept; ")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".w.lock", "w.last.pt"]
    assert load(tmp_path / "w.last.pt")["epoch"] == 0


@pytest.mark.parametrize("epochs,drops", [(1, []), (2, [1]), (3, [2]), (5, [3, 4]), (40, [20, 30])])
def test_the_rate_falls_at_half_and_at_three_quarters(epochs, drops):
    """It falls at the first epoch that begins after these shares of the epochs."""
    opt = types.SimpleNamespace(seed=0, batch_size=64, arch="resnet18", precision="float32", lr=0.8, momentum=0.9,
                                weight_decay=0, epochs=epochs)
    run = pretrain.Pretraining(opt, 2, 64, _processes.World(0, 1, torch.device("cpu")))
    run.sgd.step()
    for epoch in range(epochs):
        rate = 0.1 * 0.1 ** sum(epoch >= drop for drop in drops)
        assert run.sgd.param_groups[0]["lr"] == pytest.approx(rate), epoch
        run.schedule.step()


def test_killed_between_checkpoint_and_log_goes_on_to_a_whole_log(pretrained, people, tmp_path, monkeypatch):
    out = tmp_path / "w.pth"
    args = ("pretrain", "--faces", people, "--out", out, "--epochs", 1, *SMALL_PRETRAINING)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "write_rows", killed)
        assert invoke(*args).exit_code == 130
    result = invoke(*args, "--resume")
    assert result.exit_code == 0 and "going on after epoch 1" in result.stdout, result.output
    assert len(list(csv.DictReader(out.with_suffix(".csv").open()))) == 1 and out.exists()


def refused_after_epochs(*args):
    result = invoke("pretrain", *args)
    assert result.exit_code == 1
    return result.stderr.splitlines()


def test_broken_images_are_named_and_left_out_if_asked(people, tmp_path):
    faces, out = tmp_path / "faces", tmp_path / "w.pth"
    shutil.copytree(people, faces)
    broken = [faces / f"0000{i}/003.jpg" for i in range(1, 9)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:50])
    lines = refused("--faces", faces, "--out", out, "--epochs", 1, *SMALL_PRETRAINING)
    assert len(lines) == 1 and lines[0].endswith("; --resume --skip-bad-images goes on without it")
    assert any(str(path) in lines[0] for path in broken)
    result = invoke("pretrain", "--out", out, "--resume", "--skip-bad-images")
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.stderr.splitlines() if line.startswith("Warning: left out ")]
    named = {path for path in broken if any(str(path) in line for line in warnings)}
    held = {path for path in broken if int(path.parent.name) - 1 in held_people(faces)}
    assert len(warnings) == len(named) and held <= named and len(held) == 2
    row = next(csv.DictReader(out.with_suffix(".csv").open()))
    assert int(row["bad_images"]) == len(named - held) > 2
    source, _ = pretrain.read_people(faces)
    images = pretrain.Images(source, np.array([3, 2, 4]), np.array([0, 1, 0]), 32)
    x, y, bad = images[1]
    assert (y, bad) == (0, 2) and np.array_equal(x.permute(1, 2, 0).numpy(), source.read(4, 32))


def test_a_broken_image_is_reported_once_and_not_every_epoch(people, tmp_path):
    faces = tmp_path / "faces"
    shutil.copytree(people, faces)
    broken = sorted(faces.glob("*/003.jpg"))
    for path in broken:
        path.write_bytes(b"")
    result = invoke("pretrain", "--faces", faces, "--out", tmp_path / "w.pth", "--epochs", 3, "--skip-bad-images", *SMALL_PRETRAINING)
    assert result.exit_code == 0, result.output
    told = [sum(str(path) in line for line in result.stderr.splitlines()) for path in broken]
    assert max(told) == 1 and sum(told) >= 6  # of six people in training, or of two held out


def test_broken_images_in_a_row_are_never_replaced_by_a_black_one(people):
    source, _ = pretrain.read_people(people)
    whole, read = source.read, []
    source.read = lambda i, size: read.append(i) or (whole(i % 40, size) if i >= 300 else f"{i} broken")
    images = pretrain.Images(source, np.arange(1000), np.arange(1000), 32)
    x, y, bad = images[0]
    assert read == [0, 1, 8, 27, 64, 125, 216, 343] and (y, bad) == (343, 0) and x.any()
    source.read = lambda i, size: f"{i} broken"
    assert images[3][1:] == (-1, 3)


def test_a_batch_of_bad_images_does_not_end_the_run(people, tmp_path):
    """A small batch, whose images are all broken, costs no more than those images."""
    faces, out = tmp_path / "faces", tmp_path / "w.pth"
    shutil.copytree(people, faces)
    options = ("pretrain", "--faces", faces, "--out", out, "--epochs", 1, "--skip-bad-images", *SMALL_PRETRAINING)
    broken = [path for person in held_people(faces) for path in sorted(faces.glob(f"{person + 1:05d}/*"))]
    for path in broken[:-4]:
        path.write_bytes(b"")
    for batch in (2, 8):
        assert invoke(*options, "--batch-size", batch, "--overwrite").exit_code == 0
    for path in broken[-4:]:
        path.write_bytes(b"")
    result = invoke(*options, "--overwrite")
    assert result.exit_code == 1 and "verification: 0 of 40 pairs can be read; fix images" in result.stderr
    for path in faces.glob("*/*"):
        path.write_bytes(b"")
    result = invoke(*options, "--overwrite")
    assert result.exit_code == 1 and result.stderr.endswith(f"{faces}: of 50 images not one can be read; fix the images\n")


def held_people(faces):
    source, _ = pretrain.read_people(faces)
    return set(source.labels[pretrain.hold_out_people(source.labels, 0.3, 0)[1]])


def test_lfws_pairs_are_verified_each_epoch(people, tmp_path):
    path = write_lfw(tmp_path / "lfw")
    out = tmp_path / "w.pth"
    result = invoke("pretrain", "--faces", people, "--out", out, "--epochs", 1, "--pairs", path, "--pairs-root", path.parent,
                    *SMALL_PRETRAINING)
    assert result.exit_code == 0 and ", pairs " in result.stdout, result.output
    row = next(csv.DictReader(out.with_suffix(".csv").open()))
    assert 8 * float(row["pairs_acc"]) % 1 == 0 and "holdout_acc" in row


def test_a_run_can_be_resumed_from_another_folder(people, tmp_path, monkeypatch):
    monkeypatch.chdir(people.parent)
    given = {"faces": people.name, "pairs": "pairs.txt", "pairs_root": "lfw", "margin": 0.2, "loss": "cosface", "workers": 0}
    options = pretrain.new_options(pretrain.run_paths(tmp_path / "w.pth"), given, False)
    assert (options.faces, options.pairs, options.pairs_root) == tuple(
        str(people.parent / name) for name in (people.name, "pairs.txt", "lfw"))


def test_a_file_has_one_process_at_a_time(people, tmp_path):
    out = tmp_path / "new.pth"
    options = ("--faces", people, "--out", out, "--epochs", 1, "--overwrite", *SMALL_PRETRAINING)
    with _outputs.locked(out, tmp_path / ".new.lock"):
        out.write_text("of the other process")
        assert refused(*options) == [f"Error: {out}: in use by process {os.getpid()} on {platform.node()}; wait or name another"]
        assert out.read_text() == "of the other process"
    assert invoke("pretrain", *options).exit_code == 0 and load(out)["format"] == "mmlfer backbone 1"


def test_what_cannot_be_used_ends_in_one_line(pretrained, people, tmp_path):
    out, w = pretrained[0], tmp_path / "w.pth"
    (tmp_path / "one/a").mkdir(parents=True)
    shutil.copy(people / "00001/001.jpg", tmp_path / "one/a")
    (tmp_path / "d.pth").mkdir()
    (tmp_path / "x.pth").write_text("mine")
    expected = {
        (tmp_path / "no", w): f"{tmp_path}/no: no such folder; expected a folder of images for each person, or "
                              "train.rec and train.idx; `mmlfer synth OUT --people 60` draws people",
        (tmp_path / "one", w): f"{tmp_path}/one: 1 people with images; expected a folder of images for each of two or "
                               "more, or train.rec and train.idx",
        (people, w, "--holdout", 0.9): "--holdout 0.9: 7 of 8 people to hold out, of whom 8 have two images; give more "
                                       "people, or --holdout 0",
        (people, w, "--batch-size", 31): f"{people}: 30 images, under --batch-size 31",
        (people, tmp_path / "w.csv"): f"{tmp_path}/w.csv: expected a file name that ends in .pth or .pt",
        (people, tmp_path / "d.pth"): f"{tmp_path}/d.pth: expected a file name that ends in .pth or .pt",
        (people, tmp_path / "x.pth"): f"{tmp_path}/x.pth: exists; --resume goes on with it, --overwrite replaces it",
        (people, out): f"{out}: exists; --resume goes on with it, --overwrite replaces it"}
    for (faces, path, *more), message in expected.items():
        assert refused("--faces", faces, "--out", path, *SMALL_PRETRAINING, *more) == [f"Error: {message}"]
    assert (tmp_path / "x.pth").read_text() == "mine" and not w.exists()
    result = invoke("pretrain", "--out", w)
    assert result.exit_code == 2 and "Missing option '--faces'" in result.stderr
    result = invoke("pretrain", "--out", w, "--faces", people, "--pairs", "x")
    assert result.exit_code == 2 and "--pairs and --pairs-root go together" in result.stderr
    result = invoke("pretrain", "--out", w, "--faces", people, "--resume", "--overwrite")
    assert result.exit_code == 2 and "exclude each other" in result.stderr


def test_a_resumed_run_keeps_its_options_and_its_images(pretrained, people, tmp_path):
    out, faces = tmp_path / "w.pth", tmp_path / "faces"
    shutil.copy(pretrained[0].with_suffix(".last.pt"), tmp_path / "w.last.pt")
    assert refused("--out", out, "--resume", "--weight-decay", 0.1) == [
        f"Error: {tmp_path}/w.last.pt: its run has --weight-decay 0.0005, not 0.1; a resumed run keeps its options"]
    shutil.copytree(people, faces)
    (faces / "00008/005.jpg").unlink()
    lines = refused("--out", out, "--resume", "--faces", faces)
    assert lines == [f"Error: {faces}: not the images that {tmp_path}/w.last.pt was trained on"]
    torch.save({"net": {}}, tmp_path / "w.last.pt")
    assert refused("--out", out, "--resume") == [f"Error: {tmp_path}/w.last.pt: not a run of `mmlfer pretrain`"]
