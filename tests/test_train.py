"""Training end to end on a few stand-in faces of 32x32, with a thin ResNet and the real step."""

import csv
import dataclasses
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
import yaml
from conftest import (
    ROOT,
    SMALL,
    assert_same_run,
    end_at_the_third_step,
    invoke,
    load,
    random_batch,
    resident_mb,
    run_of,
    same,
)
from reference import Net, read_folder

import mmlfer
from mmlfer_commands import _rafce, train

COLUMNS = ["epoch", "train_loss_emo", "train_loss_au", "train_loss_am", "w_au", "w_am", "val_acc",
           "val_diag", "val_macro_f1", "lr", "seconds", "images_per_second"]


def test_train_writes_what_it_promises(trained, faces_folder):
    out, printed = trained
    assert {p.name for p in out.iterdir()} == {".lock", "config.yaml", "log.csv", "last.pt", "best.pt", "test.json"}
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert list(rows[0]) == COLUMNS and [r["epoch"] for r in rows] == ["1", "2"]
    assert all(0 < float(r["w_au"]) < 1 and float(r["train_loss_emo"]) > 0 for r in rows)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert {f.name for f in dataclasses.fields(mmlfer.Config)} < set(config)
    assert config["seed"] == 0 and config["torch"] == torch.__version__ and len(config["source_sha256"]) == 64
    assert config["data"] == str(faces_folder)
    assert "60 images" in printed and "The paper starts from CASIA-WebFace" in printed
    assert "jvp differs from create_graph by" in printed and "test, best" in printed


def test_what_is_printed_is_what_is_written(trained):
    out, printed = trained
    lines, test = printed.splitlines(), json.loads((out / "test.json").read_text())
    told = "epoch {epoch}: L^emo {:.3f}, L^AU {:.3f}, L^AM {:.3f}, w^AU {:.3f}, w^AM {:.3f}, val Acc. {:.4f}, Diag. {:.4f}, {:.1f} s"
    for row in csv.DictReader((out / "log.csv").open()):
        assert told.format(*(float(row[name]) for name in (*COLUMNS[1:8], "seconds")), **row) in lines
    for name in ("best", "last"):
        part = test[name]
        assert (f"test, {name} (epoch {part['epoch']}): Acc. {100 * part['accuracy']:6.2f}, Diag. {100 * part['diag']:6.2f}, "
                f"{len(test['truth'])} images; {out}/{name}.pt") in lines
    assert any(test[name]["accuracy"] != test[name]["diag"] for name in ("best", "last"))  # else an exchange is not seen


def test_eval_gives_what_training_reported(trained, faces_folder):
    out, _ = trained
    test = json.loads((out / "test.json").read_text())
    for name in ("best", "last"):
        result = invoke("eval", "--ckpt", out / f"{name}.pt", "--json")
        assert result.exit_code == 0 and result.stderr == ""
        numbers = json.loads(result.stdout)
        assert list(numbers) == ["n", "accuracy", "diag", "macro_f1", "per_class", "confusion", "au_n", "au_f1",
                                 "au_f1_macro", "au_counts"]
        assert numbers == {k: v for k, v in test[name].items() if k not in ("epoch", "pred")}
    val = json.loads(invoke("eval", "--ckpt", out / "last.pt", "--split", "val", "--json").stdout)
    assert val["accuracy"] == load(out / "last.pt")["log"][-1]["val_acc"]
    text = invoke("eval", "--ckpt", out / "best.pt", "--data", faces_folder).stdout
    assert text.splitlines()[0] == f"{faces_folder}: 60 images"  # of all parts
    for word in ("happily surprised", "Acc.", "Diag.", "macro F1", "inner brow raiser", "confusion"):
        assert word in text
    counts = [line for line in text.splitlines() if line.startswith("Acc.")][0].split()
    assert int(counts[1]) == test["best"]["n"]


def test_best_is_chosen_by_validation_alone(trained):
    out, _ = trained
    log, best = load(out / "last.pt")["log"], load(out / "best.pt")
    accuracies = [row["val_acc"] for row in log]
    assert best["epoch"] == 1 + accuracies.index(max(accuracies))


def test_last_state_is_the_same_whatever_was_run_before(trained, faces_folder, tmp_path):
    torch.manual_seed(99), np.random.seed(5), torch.rand(7)
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "b", "--epochs", 2, *SMALL)
    assert result.exit_code == 0
    assert_same_run(trained[0], tmp_path / "b")
    other = invoke("train", "--data", faces_folder, "--out", tmp_path / "c", "--epochs", 1, "--seed", 1, *SMALL)
    assert other.exit_code == 0
    first = [load(d / "last.pt")["log"][0]["train_loss_emo"] for d in (tmp_path / "b", tmp_path / "c")]
    assert first[0] != first[1]


@pytest.mark.parametrize("method,form", [("stl", "auto"), ("mtl", "auto"), ("mal", "auto"), ("mal2", "auto"),
                                         ("am", "lab"), ("mml", "lab")])
def test_every_method_trains(faces_folder, tmp_path, method, form):
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "r", "--epochs", 1, "--method", method,
                    "--form", form, "--rho", 0.25, "--rho-am", 0.5, "--schedule", "onecycle",
                    "--hypergrad", "jvp", *SMALL)
    assert result.exit_code == 0, result.output
    row = load(tmp_path / "r/last.pt")["log"][0]
    weights = {"stl": (0, 0), "mtl": (0.25, 0), "am": (0.25, 0.5)}
    if method in weights:
        assert (row["w_au"], row["w_am"]) == weights[method]
    else:
        assert 0 < row["w_au"] < 1 and row["w_au"] != 0.5
    test = json.loads((tmp_path / "r/test.json").read_text())
    assert test["form"] == ("lab" if form == "lab" else "wild")
    assert (test["best"]["au_f1_macro"] is None) == (method == "stl")


def test_an_epoch_without_a_right_answer_is_still_the_best_so_far(tmp_path, monkeypatch):
    """The first epoch is always kept; a later one of the same accuracy does not replace it."""
    cfg, said = mmlfer.Config(data="-", size=32, arch="resnet18", method="stl", weights="none", device="cpu", epochs=3), [0.0, 0.0, 0.25]
    run = run_of(cfg, 1)
    monkeypatch.setattr(train, "evaluate", lambda *_: {"accuracy": said[run.epoch], "diag": 0.0, "macro_f1": 0.0})
    for best in (1, 1, 3):
        run.elapsed = 1.0
        train.end_epoch(run, None, tmp_path)
        assert mmlfer.read_checkpoint(tmp_path / "best.pt")["epoch"] == best


def test_it_overfits_a_handful_of_faces(faces_folder):
    faces = _rafce.load_labels(faces_folder)
    few = np.flatnonzero(faces.split == mmlfer.TRAIN)[:8]
    few = faces.select(np.concatenate([few, np.flatnonzero(faces.split == mmlfer.VAL)]))
    few = mmlfer.load_images(few, faces_folder, 32)
    cfg = mmlfer.Config(size=32, arch="resnet18", batch_size=8, weights="none", lr_backbone=0.01, lr_meta=0.1,
                        stats="lab", hypergrad="jvp", device="cpu")
    run, batches = run_of(cfg, 1), mmlfer.Batches(few, cfg, torch.device("cpu"))
    for module in run.net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.4  # the running statistics follow in few steps
    losses = []
    for epoch in range(20):
        index, flip, val_index, val_flip = batches.epoch(epoch)[0]
        val = batches.take(val_index, val_flip)
        losses.append(mmlfer.train_step(run, batches.take(index, flip), val)[0].item())
    assert losses[0] > 2 and losses[-1] < 0.2
    numbers = mmlfer.evaluate(run.net, few.of("train"), mmlfer.AUS)
    assert numbers["accuracy"] >= 0.875


CUT = """
import resource, signal, sys, time
import mmlfer, thin
from mmlfer_commands import _alignment, train
mmlfer.make_backbone, _alignment.MEASURED = thin.make_backbone, 8  # as in the tests' own process
how, train_epoch = sys.argv.pop(1), train.train_epoch
def waiting(run, batches, caught, out):  # for a signal, before the first step of an epoch
    while run.epoch == int(how) and not caught:
        time.sleep(0.01)
    train_epoch(run, batches, caught, out)
if how == "amid a write":  # a file ends at half a checkpoint, and with it the process, uncaught
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
else:
    train.train_epoch = waiting
mmlfer.main()
"""


def start(how, *args):
    return subprocess.Popen([sys.executable, "-u", "-c", CUT, how, *map(str, args)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"})


def stop_after(program, words, number):
    """Send a signal to a program when it has printed a line with these words."""
    for line in program.stdout:
        if words in line:
            program.send_signal(number)
            break
    rest, errors = program.communicate(timeout=120)
    return program.returncode, errors


def test_interrupted_and_killed_runs_end_as_an_uninterrupted_one(faces_folder, tmp_path):
    options = ("--data", faces_folder, "--epochs", 4, "--schedule", "onecycle", *SMALL)
    assert invoke("train", "--out", tmp_path / "whole", *options).exit_code == 0
    again = ("train", "--out", tmp_path / "cut", "--resume")
    code, errors = stop_after(start("1", *again, *options), "epoch 1:", signal.SIGINT)
    assert code == 130 and f"mmlfer train --out {tmp_path}/cut --resume" in errors
    code, errors = stop_after(start("2", *again), "epoch 2:", signal.SIGTERM)
    assert code == 143 and "Traceback" not in errors
    program = start("amid a write", *again)
    program.communicate(timeout=120)
    assert program.returncode == -signal.SIGXFSZ and len(list(tmp_path.glob("cut/.*.part"))) == 1
    assert load(tmp_path / "cut/last.pt")["epoch"] == 2  # whole at any moment
    program = start("3", *again)
    assert any("epoch 3:" in line for line in program.stdout)
    os.kill(int((tmp_path / "cut/.lock").read_text().split()[1]), signal.SIGKILL)
    program.communicate(timeout=120)
    assert program.returncode == -signal.SIGKILL and load(tmp_path / "cut/last.pt")["epoch"] == 3
    finished = invoke(*again)
    assert finished.exit_code == 0, finished.output
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert "complete, nothing to do" in invoke(*again).stdout


def test_the_form_is_chosen_once_before_the_first_step(faces_folder, tmp_path, monkeypatch):
    """It is chosen on the first batches; a resumed run keeps it and prints nothing about it."""
    chosen, choose, step = [], train.choose_hypergrad, mmlfer.train_step

    def noted(run, batch, val):
        chosen.append((run.hypergrad, run.epoch, run.step, batch, val))
        return choose(run, batch, val)

    def first(run, batch, val):
        if not run.step:
            assert run.hypergrad == "jvp" and all(torch.equal(a, b) for a, b in zip((*batch, *val), (*chosen[0][3], *chosen[0][4])))
        signal.raise_signal(signal.SIGINT)
        return step(run, batch, val)

    monkeypatch.setattr(train, "choose_hypergrad", noted)
    monkeypatch.setattr(train, "train_step", first)
    options = ("--data", faces_folder, "--out", tmp_path / "r", "--epochs", 1, *SMALL)
    result = invoke("train", *options)
    assert result.exit_code == 130 and result.stdout.count("going on with jvp") == 1
    assert [entry[:3] for entry in chosen] == [("auto", 0, 0)]
    assert "hypergradient" not in invoke("train", "--out", tmp_path / "r", "--resume").output
    assert [entry[:3] for entry in chosen] == [("auto", 0, 0), ("jvp", 0, 1)]


def test_interrupt_amid_an_epoch_resumes_to_the_same_end(faces_folder, tmp_path, monkeypatch):
    options = ("--data", faces_folder, "--epochs", 2, "--method", "mtl", *SMALL)
    assert invoke("train", "--out", tmp_path / "whole", *options).exit_code == 0
    end_at_the_third_step(monkeypatch)
    result = invoke("train", "--out", tmp_path / "cut", *options)
    assert result.exit_code == 143 and load(tmp_path / "cut/last.pt")["step"] == 3
    assert "--resume" in result.stderr
    assert invoke("train", "--out", tmp_path / "cut", "--resume").exit_code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_is_not_there_cannot_be_gone_on_with(tmp_path):
    for resume, told in (("--resume",), f"Missing option '--data'. {tmp_path} holds no run to go on with."), ((), "Missing option '--data'."):
        result = invoke("train", "--out", tmp_path, *resume)
        assert result.exit_code == 2 and result.stderr.endswith(f"Error: {told}\n")


def test_it_does_not_write_over_a_run(trained, faces_folder, tmp_path):
    out, _ = trained
    before = (out / "last.pt").read_bytes()
    result = invoke("train", "--data", faces_folder, "--out", out, *SMALL)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {out}: holds a run; --resume goes on with it, --overwrite replaces it\n"
    result = invoke("train", "--out", out, "--resume", "--lr-heads", 0.5)
    assert result.stderr == (f"Error: {out}: its run has --lr-heads 0.01, not 0.5; "
                             "a resumed run keeps its options\n")
    assert "complete, nothing to do" in invoke("train", "--out", out, "--resume").stdout
    assert (out / "last.pt").read_bytes() == before


def test_resume_and_overwrite_exclude_each_other(trained):
    result = invoke("train", "--out", trained[0], "--resume", "--overwrite")
    assert result.exit_code == 2 and "exclude each other" in result.stderr


def test_a_complete_run_with_odd_options_ends_in_one_line(trained, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained[0], out)
    (out / "config.yaml").write_text("a: [1")
    result = invoke("train", "--out", out, "--resume")
    assert result.stderr == f"Error: {out}/config.yaml: not the options of a run\n"


@pytest.mark.parametrize("name", ["config.yaml", "log.csv", "last.pt", "best.pt", "test.json"])
def test_a_folder_with_any_file_of_a_run_is_a_run(faces_folder, tmp_path, name):
    (tmp_path / name).write_text("mine")
    result = invoke("train", "--data", faces_folder, "--out", tmp_path, "--epochs", 1, *SMALL)
    assert result.exit_code == 1 and "holds a run" in result.stderr
    assert (tmp_path / name).read_text() == "mine"


def test_resume_refuses_data_or_files_that_changed(trained, faces_folder, tmp_path):
    out, moved = tmp_path / "run", tmp_path / "moved faces"
    shutil.copytree(trained[0], out), shutil.copytree(faces_folder, moved)
    (out / "test.json").unlink()
    result = invoke("train", "--out", out, "--resume", "--data", moved)
    assert result.exit_code == 0, result.output  # the data may lie elsewhere
    assert same(load(out / "last.pt")["net"], load(trained[0] / "last.pt")["net"])
    (out / "test.json").unlink()
    rows = (moved / "RAFCE_partition.txt").read_text().replace(" 1\n", " 0\n", 8)
    (moved / "RAFCE_partition.txt").write_text(rows)
    result = invoke("train", "--out", out, "--resume", "--data", moved)
    assert result.exit_code == 1 and "its names, labels or partition differ" in result.stderr
    shutil.copy(out / "best.pt", out / "last.pt")
    result = invoke("train", "--out", out, "--resume")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {out}/last.pt: not the state of a run; --overwrite starts again\n"


def test_a_run_that_skips_bad_images_resumes_as_it_says(faces_folder, tmp_path, monkeypatch):
    faces, out = tmp_path / "f", tmp_path / "a run"
    shutil.copytree(faces_folder, faces)
    (faces / "aligned/0001_aligned.jpg").unlink()
    step = mmlfer.train_step
    monkeypatch.setattr(train, "train_step", lambda *a: signal.raise_signal(signal.SIGINT) or step(*a))
    result = invoke("train", "--data", faces, "--out", out, "--epochs", 1, "--method", "stl", "--skip-bad-images",
                    *SMALL)
    assert result.exit_code == 130
    said = shlex.split(result.stderr.split("go on with: mmlfer ")[1])
    monkeypatch.setattr(train, "train_step", step)
    assert invoke(*said).exit_code == 0 and (out / "test.json").exists()


def test_overwrite_replaces_a_run(faces_folder, tmp_path):
    options = ("--data", faces_folder, "--out", tmp_path / "r", "--epochs", 1, *SMALL)
    assert invoke("train", "--method", "mtl", *options).exit_code == 0
    assert invoke("train", "--method", "stl", "--overwrite", *options).exit_code == 0
    assert json.loads((tmp_path / "r/test.json").read_text())["method"] == "stl"


@pytest.mark.parametrize("option,value", [
    ("--size", "16"), ("--lr-heads", "-1"), ("--epochs", "0"), ("--batch-size", "1"), ("--momentum", "1"),
    ("--method", "magic"), ("--seed", "x"), ("--rho", "-0.1"), ("--nonsense", "1"),
    ("--lr-backbone", "nan"), ("--rho", "inf"), ("--momentum", "nan"),
])
def test_wrong_options_exit_2(faces_folder, tmp_path, option, value):
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "r", option, value)
    assert result.exit_code == 2 and option in result.stderr and not (tmp_path / "r").exists()


def test_train_needs_data_and_a_device_that_is_there(faces_folder, tmp_path):
    assert invoke("train", "--out", tmp_path / "r").exit_code == 2
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "r", "--size", 32, "--batch-size", 4,
                    "--device", "abacus")
    assert result.exit_code == 1 and result.stderr.startswith("Error: --device abacus: ")
    with pytest.raises(mmlfer.InputError, match="^--device meta: only cpu and cuda are supported$"):
        mmlfer.pick_device("meta")


def test_an_output_folder_that_cannot_be_made_is_one_line(faces_folder, tmp_path):
    (tmp_path / "file").write_text("")
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "file/run", *SMALL)
    assert result.exit_code == 1 and str(tmp_path / "file") in result.stderr
    assert result.stderr.count("\n") == 1


def test_full_disk_leaves_what_was_there(faces_folder, tmp_path):
    out, limits = tmp_path / "r", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    try:
        result = invoke("train", "--data", faces_folder, "--out", out, "--epochs", "1", "--method", "stl", *SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1
    assert "last.pt: cannot be written (File too large)" in result.stderr  # before an hour of training
    assert sorted(p.name for p in out.iterdir()) == [".lock", "config.yaml"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("hypergrad", ["create_graph", "jvp"])
def test_memory_stays_flat_over_many_steps(hypergrad):
    cfg = mmlfer.Config(size=32, batch_size=4, arch="resnet18", weights="none", hypergrad=hypergrad, device="cpu")
    run = run_of(cfg, 1)
    small = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
                                torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
    run.net.backbone = small
    run.opt.param_groups[0]["params"] = list(small.parameters())
    batch, val = (random_batch(4, seed=s, dtype=torch.float32) for s in (0, 1))
    sizes = []
    for step in range(300):
        mmlfer.train_step(run, batch, val)
        if step in (100, 299):
            sizes.append(resident_mb())
    assert sizes[1] - sizes[0] < 8, sizes


# ---------------------------------------------------------------- options: the paper's constants

PAPER = {  # Sec. 5.1
    "method": "mml", "arch": "resnet34", "size": 112, "epochs": 60, "batch_size": 16, "lr_backbone": 0.001, "lr_heads": 0.01, "lr_meta": 0.01,
    "schedule": "constant", "momentum": 0.9, "weight_decay": 5e-4}


def test_constants_of_the_paper_are_the_defaults():
    options = {p.name: p.default for p in mmlfer.main.get_command(None, "train").params}
    fields = vars(mmlfer.Config())
    assert {name: options[name] for name in PAPER} == {name: fields[name] for name in PAPER} == PAPER
    assert {name: options[name] for name in fields} == fields  # the command line's and the module's are the same


FORMS = [("wild", "auto", "wild"), ("lab", "auto", "lab"), ("lab", "wild", "wild"), ("wild", "lab", "lab")]


@pytest.mark.parametrize("stats,form,expected", FORMS)
def test_form_follows_the_statistics_unless_given(stats, form, expected):
    cfg = mmlfer.Config(stats=stats, form=form, method="stl", arch="resnet18", weights="none", size=32, device="cpu")
    assert run_of(cfg, 1).form == expected


# ---------------------------------------------------------------- best, last, test and resume, on pictures of noise


def own_predictions(path, x):
    net = Net("resnet18")
    net.backbone = mmlfer.make_backbone("resnet18")  # thin, as the run's
    net.double().load_state_dict({k: v for k, v in load(path)["net"].items() if k not in ("mean", "std")})
    with torch.no_grad():
        return net.eval()(x)[1].argmax(1).tolist()


@pytest.fixture(scope="module")
def scripted(noise_folder, tmp_path_factory):
    """The folder of a run of five epochs of stl whose validation accuracies are prescribed."""
    out, real, script = tmp_path_factory.mktemp("scripted") / "run", mmlfer.evaluate, [0.25, 0.5, 0.125, 0.5, 0.375]
    given = iter(script)

    def evaluate(net, faces, *args):
        numbers = real(net, faces, *args)
        return {**numbers, "accuracy": next(given)} if len(faces.names) == 7 else numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", evaluate)
        result = invoke("train", "--data", noise_folder, "--out", out, "--epochs", 5, "--method", "stl",
                        "--lr-backbone", 0.01, "--lr-heads", 0.1, *SMALL)
    assert result.exit_code == 0, result.output
    return out


def test_best_is_the_first_epoch_of_the_highest_validation_accuracy(scripted):
    assert load(scripted / "best.pt")["epoch"] == 2 and load(scripted / "last.pt")["epoch"] == 5
    rows = list(csv.DictReader((scripted / "log.csv").open()))
    assert [float(row["val_acc"]) for row in rows] == [0.25, 0.5, 0.125, 0.5, 0.375]


def test_best_and_last_of_the_test_are_those_checkpoints(scripted, noise_folder):
    x, y_emo, _, split = read_folder(noise_folder)
    test, numbers = split == 1, json.loads((scripted / "test.json").read_text())
    pred = {name: own_predictions(scripted / f"{name}.pt", x[test]) for name in ("best", "last")}
    assert pred["best"] != pred["last"]
    for name, epoch in (("best", 2), ("last", 5)):
        assert numbers[name]["au_f1_macro"] is None  # stl's AU classifier is untrained
        assert (numbers[name]["epoch"], numbers[name]["pred"]) == (epoch, pred[name])
        right = sum(p == t for p, t in zip(pred[name], y_emo[test].tolist()))
        assert numbers[name]["accuracy"] == right / 4 and numbers[name]["n"] == 4
    names = [line.split()[0] for line in (noise_folder / "RAFCE_emolabel.txt").read_text().splitlines()]
    assert numbers["names"] == [n for n, t in zip(names, test) if t] and numbers["truth"] == y_emo[test].tolist()


def test_a_run_says_what_made_it(scripted, noise_folder):
    config = yaml.safe_load((scripted / "config.yaml").read_text())
    defaults = vars(mmlfer.Config())
    assert {name: config[name] for name in defaults} == defaults | {
        "data": str(noise_folder), "method": "stl", "epochs": 5, "lr_backbone": 0.01, "lr_heads": 0.1, "size": 32,
        "batch_size": 4, "arch": "resnet18", "weights": "none", "device": "cpu"}
    assert config["steps_per_epoch"] == 2 and config["torchvision"] == torchvision.__version__
    source = hashlib.sha256()
    for path in [ROOT / "mmlfer.py", *sorted(ROOT.glob("mmlfer_commands/*.py"))]:
        source.update(b"%s %d\n%s" % (path.name.encode(), path.stat().st_size, path.read_bytes()))
    assert config["source_sha256"] == source.hexdigest() and config["backbone"] == "none"
    for name in ("best", "last"):
        assert load(scripted / f"{name}.pt")["config"] == {name: config[name] for name in defaults}
    test = json.loads((scripted / "test.json").read_text())
    assert [test[key] for key in ("method", "stats", "form", "seed", "data", "rafce")] == [
        "stl", "wild", "wild", 0, str(noise_folder), False]


def test_relative_paths_hold_when_a_run_is_resumed_elsewhere(noise_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda cfg, *rest: seen.append(cfg))
    seen = []
    shutil.copy(ROOT / "stats/lab.yaml", tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    data = os.path.relpath(noise_folder)
    assert invoke("train", "--data", data, "--stats", "mine.yaml", "--method", "stl").exit_code == 0
    assert (seen[0].data, seen[0].stats) == (str(noise_folder), str(tmp_path / "mine.yaml"))


def test_the_log_counts_images_a_second(scripted):
    for row in csv.DictReader((scripted / "log.csv").open()):
        assert 0 < float(row["seconds"]) < 60
        seconds = float(row["seconds"])  # three digits after the point
        assert 8 / (seconds + 6e-4) < float(row["images_per_second"]) < 8 / (seconds - 6e-4)


def run_mml(noise_folder, out, *more):
    return invoke("train", "--data", noise_folder, "--out", out, "--epochs", 3, "--schedule", "onecycle",
                  "--lr-meta", 0.5, "--hypergrad", "jvp", *SMALL, *more)


def test_a_resumed_run_has_its_meta_net_its_schedule_and_its_batches(noise_folder, tmp_path, monkeypatch):
    """It is stopped within the second epoch, when all of them have changed."""
    assert run_mml(noise_folder, tmp_path / "whole").exit_code == 0
    end_at_the_third_step(monkeypatch)
    handler = signal.getsignal(signal.SIGTERM)
    assert run_mml(noise_folder, tmp_path / "cut").exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    cut = load(tmp_path / "cut/last.pt")
    assert (cut["epoch"], cut["step"]) == (1, 1) and cut["meta"]["weight"].abs().max() > 0
    rates = [group["lr"] for group in cut["opt"]["param_groups"]]
    assert all(abs(rate - top) > top / 4 for rate, top in zip(rates, (0.001, 0.01)))
    assert invoke("train", "--out", tmp_path / "cut", "--resume").exit_code == 0
    whole, resumed = load(tmp_path / "whole/last.pt"), load(tmp_path / "cut/last.pt")
    for part in ("net", "meta"):
        for name, value in whole[part].items():
            assert torch.equal(resumed[part][name], value), (part, name)
    assert resumed["opt"]["param_groups"] == whole["opt"]["param_groups"]
    assert resumed["scheduler"] == whole["scheduler"] and len(resumed["log"]) == 3
    timed = {"seconds", "images_per_second"}
    for ours, row in zip(resumed["log"], whole["log"]):
        assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in row.items() if k not in timed}
    assert resumed["log"][1]["seconds"] >= cut["elapsed"] > 0


def test_skipped_images_do_not_reach_training(noise_folder, tmp_path, monkeypatch):
    """`train --skip-bad-images` trains and validates on the other images, each with its own label."""
    shutil.copytree(noise_folder, tmp_path / "faces")
    x, y_emo, y_au, split = read_folder(noise_folder)
    names = [line.split()[0] for line in (noise_folder / "RAFCE_emolabel.txt").read_text().splitlines()]
    lost = [int(np.flatnonzero(split == code)[1]) for code in (0, 2)]
    for i in lost:
        (tmp_path / "faces/aligned" / names[i].replace(".jpg", "_aligned.png")).write_bytes(b"")
    known = {image.numpy().tobytes(): i for i, image in enumerate(x)}
    step, seen = mmlfer.train_step, []

    def spy(run, *batches):
        for images, emo, au in batches:
            for image, k, row in zip(images, emo, au):
                key = [known.get(v.contiguous().numpy().tobytes()) for v in (image, image.flip(2))]
                seen.append(next(i for i in key if i is not None))
                assert k == y_emo[seen[-1]] and torch.equal(row.double(), y_au[seen[-1]])
        return step(run, *batches)

    monkeypatch.setattr(train, "train_step", spy)
    result = invoke("train", "--data", tmp_path / "faces", "--out", tmp_path / "r", "--epochs", 1, "--skip-bad-images",
                    "--hypergrad", "jvp", *SMALL)
    assert result.exit_code == 0, result.output
    assert len(seen) == 16 and not set(lost) & set(seen) and set(split[seen]) == {0, 2}
