"""Training that diverges: it stops before a checkpoint, and such a checkpoint is refused."""

import math
import re
import types

import pytest
import torch
from conftest import SMALL, invoke, load

import mmlfer
from mmlfer_commands import _processes, train


@pytest.mark.parametrize("field,name", [("l_emo", "L^emo"), ("norm_theta", "gradient of theta"),
                                        ("norm_psi", "gradient of psi")])
def test_what_is_not_finite_stops_before_the_checkpoint(faces_folder, tmp_path, monkeypatch, field, name):
    step, taken = mmlfer.train_step, []

    def broken(run, *batches):
        report = step(run, *batches)
        taken.append(1)
        nan = torch.tensor(float("nan"))
        return report._replace(**{field: nan}) if len(taken) == run.steps + 2 else report

    monkeypatch.setattr(train, "train_step", broken)
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "r", "--epochs", 2, "--method", "mtl", *SMALL)
    assert result.exit_code == 1 and f"epoch 2, step 2: {name} is not finite" in result.stderr
    state = load(tmp_path / "r/last.pt")
    assert state["epoch"] == 1 and all(torch.isfinite(v).all() for v in state["net"].values())


def test_a_diverging_run_says_so(faces_folder, tmp_path):
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "r", "--epochs", 3, "--lr-backbone", 1e12,
                    "--method", "mtl", *SMALL)
    assert result.exit_code == 1 and "is not finite" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("bad,upto,said", [((2, 1), 50, "step 3: L^AU"), ((49, 7), 50, "step 50: gradient of psi"), ((50, 0), 50, None)])
def test_a_check_of_the_losses_covers_all_steps_up_to_it(bad, upto, said):
    """On a GPU one check is for 50 steps; later entries are of an earlier epoch and do not count."""
    trace = torch.zeros(60, 8)
    trace[bad] = math.inf
    run = types.SimpleNamespace(trace=trace, epoch=1)
    if said is None:
        return train.check_finite(run, upto)
    with pytest.raises(mmlfer.InputError, match=re.escape(f"epoch 2, {said} is not finite")):
        train.check_finite(run, upto)


@pytest.mark.parametrize("kind,bad,caught,looks", [
    ("cpu", 3, None, [1, 2, 3]), ("cuda", 3, None, [50]), ("cuda", 119, None, [50, 100, 120]), ("cuda", 59, 60, [50, 60]),
    ("cuda", None, None, [50, 100, 120]), ("cuda", None, 60, [50, 60])])
def test_at_which_steps_an_epoch_is_checked(monkeypatch, tmp_path, kind, bad, caught, looks):
    """On a CPU each step; on a GPU each 50th, the last of the epoch, and the step at which a signal came."""
    seen, stops, written, check = [], [], [], train.check_finite

    def step(run):
        if run.step + 1 == caught:
            stops.append(15)
        return tuple(torch.tensor(math.nan if run.step + 1 == bad else 1.0) for _ in range(8))

    monkeypatch.setattr(train, "train_step", step)
    monkeypatch.setattr(train, "check_finite", lambda run, upto: (seen.append(upto), check(run, upto)))
    monkeypatch.setattr(train, "save_checkpoint", lambda state, path: written.append(state))
    run = types.SimpleNamespace(device=types.SimpleNamespace(type=kind), trace=torch.zeros(120, 8), epoch=0, step=0, steps=120,
                                elapsed=0.0, cfg=types.SimpleNamespace(epochs=1), scheduler=None, state=lambda: run.step,
                                world=_processes.World())
    batches = types.SimpleNamespace(at=None, epoch=lambda epoch: [()] * 120, pair=lambda: ())
    if bad is None:
        train.train_epoch(run, batches, stops, tmp_path)
        assert written == ([caught] if caught else [])
    else:
        with pytest.raises(mmlfer.InputError, match=f"epoch 1, step {bad}: "):
            train.train_epoch(run, batches, stops, tmp_path)
        assert not written
    assert seen == looks


@pytest.mark.parametrize("name", ["fe.bias", "backbone.layer4.0.bn2.running_var", "au.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_that_is_not_finite_is_refused(trained, faces_folder, tmp_path, name, value):
    state = load(trained[0] / "best.pt")
    state["net"][name].view(-1)[3] = value
    torch.save(state, tmp_path / "bad.pt")
    face = next((faces_folder / "aligned").iterdir())
    for args in (("eval",), ("predict", face, "--json"), ("gradcam", face, "--out", tmp_path / "g.png")):
        result = invoke(*args, "--ckpt", tmp_path / "bad.pt")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (f"Error: {tmp_path}/bad.pt: {name} is not finite: training diverged; train again with "
                                 "lower --lr-backbone, --lr-heads or --lr-meta\n")


def test_outputs_that_are_not_finite_are_refused():
    net = mmlfer.make_base_net("resnet18")
    torch.nn.init.constant_(net.fe.weight, 1e38)
    with pytest.raises(mmlfer.InputError, match="the net's outputs are not finite: its training diverged"):
        mmlfer.predict_faces(net, torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))


def test_a_net_that_diverges_late_is_not_saved_as_a_result(faces_folder, tmp_path, monkeypatch):
    """The losses of all steps are finite, but the running statistics after them are not."""
    step = mmlfer.train_step

    def diverging(run, *batches):
        report = step(run, *batches)
        if run.epoch == 1:
            run.net.backbone.layer4[0].bn2.running_mean.fill_(math.inf)
        return report

    monkeypatch.setattr(train, "train_step", diverging)
    out = tmp_path / "r"
    result = invoke("train", "--data", faces_folder, "--out", out, "--epochs", 3, "--method", "mtl", *SMALL)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: epoch 2: backbone.layer4.0.bn2.running_mean is not finite: training diverged; train again with lower "
        "--lr-backbone, --lr-heads or --lr-meta")
    assert not (out / "test.json").exists()
    for name in ("best.pt", "last.pt"):
        state = load(out / name)
        assert state["epoch"] == 1 and all(v.isfinite().all() for v in state["net"].values())
