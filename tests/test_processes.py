"""Pretraining in several processes: its workers, signals to all of them, torchrun's two."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_PRETRAINING, assert_same_pretraining, invoke, load, same

import mmlfer
from mmlfer_commands import _backbones, _processes, pretrain

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}


# ---------------------------------------------------------------- a signal to the whole group

GROUP = """
import os, signal, subprocess, sys, time
import mmlfer, thin
from torch.utils.data import _utils
from mmlfer_commands import _people, pretrain
_utils.MP_STATUS_CHECK_INTERVAL = 1  # seconds that torch waits for each worker to end, then kills it; 5 otherwise
how, step, read, taken, main = sys.argv.pop(1), pretrain.pretrain_step, _people.Files.read, [], os.getpid()
def struck(*args):
    taken.append(1)
    if how == "killed":
        os.kill(main, signal.SIGKILL)
    elif len(taken) == (1 if how == "hanging" else 2):
        subprocess.run(["sh", "-c", "kill -TERM 0"])  # from another process: for a worker, a signal of its parent is its end
    return step(*args)
def hang(source, i, size):
    taken.append(1)
    if os.getpid() != main and len(taken) > 8:  # past a worker's first batch
        time.sleep(600)
    return read(source, i, size)
pretrain.pretrain_step, pretrain.make_backbone = struck, thin.make_backbone
if how in ("hanging", "killed"):
    _people.Files.read = hang
mmlfer.main()
"""


def run_as_group(how, tmp_path, *options):
    """Start `pretrain` and its two workers as their own process group, to which a signal is sent."""
    script = tmp_path / "group.py"
    script.write_text(GROUP)
    command = [sys.executable, script, how, "pretrain", "--out", tmp_path / "w.pth", *options]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, env=ENVIRONMENT)


def group_has_ended(folder, seconds):
    """Whether the program's group has ended. The program leads its own group, and its number is in its lock."""
    group = int((folder / ".w.lock").read_text().split()[1])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


WITH_WORKERS = [2 if option == 0 else option for option in SMALL_PRETRAINING]


@pytest.mark.parametrize("how,step", [("stopped", 2), ("hanging", 1)])
def test_a_signal_to_the_whole_group_leaves_a_checkpoint_and_no_worker(pretrained, people, tmp_path, how, step):
    """Schedulers, systemd and `timeout` send signals so. Workers that hang end too."""
    process = run_as_group(how, tmp_path, "--faces", people, "--epochs", 4, *WITH_WORKERS)
    _, errors = process.communicate(timeout=120)
    assert errors == (f"stopped at {tmp_path}/w.last.pt; go on with: "
                      f"mmlfer pretrain --out {tmp_path}/w.pth --resume\n")
    assert process.returncode == 143 and group_has_ended(tmp_path, 0.5)
    state = load(tmp_path / "w.last.pt")
    assert (state["epoch"], state["step"]) == (0, step)
    if how == "stopped":
        assert invoke("pretrain", "--out", tmp_path / "w.pth", "--resume", "--workers", 0).exit_code == 0
        assert_same_pretraining(pretrained[0], tmp_path / "w.pth")


def test_killed_at_its_first_step_it_goes_on_from_its_start_and_its_workers_end(pretrained, people, tmp_path):
    process = run_as_group("killed", tmp_path, "--faces", people, "--epochs", 4, *WITH_WORKERS)
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert group_has_ended(tmp_path, 3)  # they hang, and learn that it has ended
    process.communicate()
    result = invoke("pretrain", "--out", tmp_path / "w.pth", "--resume", "--workers", 0)
    assert result.exit_code == 0 and "going on after epoch 0, step 0 of 3\n" in result.stdout, result.output
    assert_same_pretraining(pretrained[0], tmp_path / "w.pth")


# ---------------------------------------------------------------- torchrun's two processes

PLAIN_NET = """
import os, sys, types
import numpy as np
import torch
from mmlfer_commands import _processes, pretrain

def small(arch):  # without BatchNorm: its statistics are each process's own on the CPU
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 512), torch.nn.Tanh())
    net.num_features = 512
    return net

pretrain.make_backbone = small
torch.nn.BatchNorm1d = lambda features: torch.nn.Identity()
opt = types.SimpleNamespace(seed=0, batch_size=8, arch="resnet18", precision="float32", lr=1.0, momentum=0.9, epochs=2,
                            weight_decay=0.01, warmup=0, loss="cosface", margin=0.35, scale=16.0, workers=0,
                            size=32, skip_bad_images=False)

def epoch():
    world = _processes.join_world("cpu")
    source, _ = pretrain.read_people(sys.argv[1])
    images = pretrain.Images(source, np.arange(40), source.labels, 32)
    run = pretrain.Pretraining(opt, 8, 40, world)
    pretrain.pretrain_epoch(run, images, [])
    state = {"net": run.net.state_dict(), "grad": [p.grad for p in run.net.parameters()], "totals": run.totals}
    torch.save(state, f"{sys.argv[2]}/{world.size}-{world.rank}.pt")

epoch()
torch.distributed.destroy_process_group()
if os.environ["RANK"] == "0":
    os.environ["WORLD_SIZE"] = "1"
    epoch()  # alone
"""


def torchrun(*args, cwd):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run([*command, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=600,
                          env=ENVIRONMENT)


def test_two_processes_step_as_one_with_the_whole_batch(people, tmp_path):
    script = tmp_path / "plain.py"
    script.write_text(PLAIN_NET)
    result = torchrun(script, people, tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    alone, first, second = (load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert same(first["net"], second["net"]) and same(first["totals"], second["totals"])
    for a, b in zip(alone["grad"], first["grad"]):
        assert a.norm() > 0 and torch.allclose(a, b, rtol=1e-3, atol=1e-6)
    assert all(torch.allclose(v, first["net"][k], rtol=1e-3, atol=1e-5) for k, v in alone["net"].items())
    assert first["totals"][0] == pytest.approx(float(alone["totals"][0]), rel=1e-3)


def counted(step):
    """A pretraining step whose "loss" and "right answers" are decided by the labels alone."""
    def taken(run, x, y, flip):
        step(run, x, y, flip)
        return torch.stack([10.0 ** y.float().mean(), (y % 2).float().mean(), torch.tensor(1.0)])
    return taken


SECOND = """
import os, signal, sys
import torch
import mmlfer, thin
from mmlfer_commands import pretrain
from test_processes import counted
pretrain.make_backbone, pretrain.pretrain_step = thin.make_backbone, counted(pretrain.pretrain_step)
how, step, taken = sys.argv.pop(1), pretrain.pretrain_step, []
def struck(*args):
    taken.append(1)
    if len(taken) == 2 and how in ("killed", "stopped"):
        os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGTERM)
    if len(taken) == 2 and how == "refused":
        raise mmlfer.InputError("bad luck")
    return step(*args)
if os.environ["RANK"] == "1":  # what happens to the second process
    pretrain.pretrain_step = struck
    pretrain.save_checkpoint = pretrain.write_rows = lambda *args: os.abort()
    if how == "elsewhere":  # a machine without the checkpoint
        pretrain.Pretraining.restore = lambda run, state: None
mmlfer.main()
"""


def first_row(people, out, processes):
    """Check the log of the first of some epochs of three batches, each taken by so many processes: it has the mean over
    batches of the mean over the processes that took a batch."""
    source, _ = pretrain.read_people(people)
    train, _ = pretrain.hold_out_people(source.labels, 0.3, 0)
    labels = np.unique(source.labels[train], return_inverse=True)[1]
    order = labels[torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).numpy()]
    losses = [np.mean([10.0 ** order[8 * step :][:8][i::n].mean() for i in range(n)]) for step, n in enumerate(processes)]
    row = next(csv.DictReader(out.with_suffix(".csv").open()))
    assert float(row["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(row["train_acc"]) == pytest.approx((order[:24] % 2).mean(), rel=1e-5)


def test_a_run_of_two_processes_stops_and_ends_and_one_of_them_writes(people, tmp_path, monkeypatch):
    """A signal to the second process stops both at the same step; it would fail if it wrote a file. Two processes go on, or
    one: the log is of those that took the batches."""
    out, script = tmp_path / "w.pth", tmp_path / "second.py"
    script.write_text(SECOND)
    options = ("--faces", people, "--epochs", 2, *SMALL_PRETRAINING[:-6], "--workers", 1)
    result = torchrun(script, "stopped", "pretrain", "--out", out, *options, cwd=tmp_path)
    assert result.returncode == 1 and result.stderr.count("stopped at ") == 1 and not out.exists(), result.stderr
    assert result.stderr.count("Warning: on a CPU each of the 2 processes normalises its share of a batch on its own: the "
                               "net differs from that of one process\n") == 1
    state = load(tmp_path / "w.last.pt")
    assert (state["epoch"], state["step"]) == (0, 2)
    alone = shutil.copytree(tmp_path, tmp_path / "alone") / "w.pth"
    result = torchrun(script, "well", "pretrain", "--out", out, "--resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        str(people), "going on after epoch 0, step 2 of 3", "epoch 1", "epoch 2", str(out)]
    assert len(list(csv.DictReader(out.with_suffix(".csv").open()))) == 2
    assert _backbones.start_base_net(str(out), "resnet18")[1] == f"took 96 tensors from {out}"
    first_row(people, out, [2, 2, 2])
    monkeypatch.setattr(pretrain, "pretrain_step", counted(pretrain.pretrain_step))
    assert invoke("pretrain", "--out", alone, "--resume", "--workers", 0).exit_code == 0
    first_row(people, alone, [2, 2, 1])
    rows = list(csv.DictReader(alone.with_suffix(".csv").open()))
    assert load(alone)["accuracy"]["train_acc"] == float(rows[-1]["train_acc"])


@pytest.mark.parametrize("how,line", [
    ("refused", "Error: bad luck"),
    ("killed", "Error: another of torchrun's processes ended; --resume goes on"),
    ("elsewhere", "w.last.pt: not the same on every machine; copy it to all")])
def test_one_process_that_fails_ends_all_in_one_line(pretrained, people, tmp_path, how, line):
    """In the last case both fail at once."""
    script = tmp_path / "second.py"
    script.write_text(SECOND)
    options = ("--faces", people, *SMALL_PRETRAINING)
    if how == "elsewhere":
        shutil.copy(pretrained[0].with_suffix(".last.pt"), tmp_path / "w.last.pt")
        options = ("--resume",)
    result = torchrun(script, how, "pretrain", "--out", tmp_path / "w.pth", *options, cwd=tmp_path)
    lines = result.stderr.splitlines()
    said = [text for text in lines if text.startswith("Error: ")]
    assert result.returncode == 1 and len(said) == 1 and line in said[0], result.stderr
    assert not any("mmlfer_commands" in text for text in lines), result.stderr  # no traceback of ours
    assert len(list(tmp_path.glob("w*"))) == 1  # last.pt


def test_a_batch_that_the_processes_cannot_share_is_refused(people):
    opt = types.SimpleNamespace(faces=people, holdout=0, seed=0, batch_size=9, pairs=None, size=32, skip_bad_images=False)
    with pytest.raises(mmlfer.InputError) as error:
        pretrain.prepare(opt, _processes.World(1, 2, torch.device("cpu")))
    assert str(error.value) == "--batch-size 9: not a multiple of torchrun's 2 processes"
