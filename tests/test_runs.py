"""Run folders: what may be resumed, with which data, by how many processes."""

import csv
import hashlib
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import types

import pytest
import torch
import yaml
from conftest import ROOT, SMALL, command_line, invoke, load, same
from PIL import Image

import mmlfer
from mmlfer_commands import _outputs, _runs, _stats, train
from mmlfer_commands.synth import synthesize

PARTITION = mmlfer.LABEL_FILES[1]


@pytest.fixture
def stopped(trained, faces_folder, tmp_path):
    """An unfinished copy of the run `trained`, and a copy of its data."""
    out, faces = tmp_path / "run", tmp_path / "faces"
    shutil.copytree(trained[0], out), shutil.copytree(faces_folder, faces)
    (out / "test.json").unlink()
    return out, faces


def changed(data, out):
    return (f"Error: {data}: not the data that the run in {out} was trained on: its names, labels or partition differ; "
            "a resumed run keeps its data\n")


@pytest.mark.parametrize("file", mmlfer.LABEL_FILES)
def test_resume_refuses_labels_or_a_partition_that_changed(stopped, file):
    """Two rows exchange their values, so that all counts stay the same."""
    out, faces = stopped
    rows = [line.split() for line in (faces / file).read_text().splitlines()]
    a = 0
    b = next(i for i, row in enumerate(rows) if row[1] != rows[a][1])
    rows[a][1], rows[b][1] = rows[b][1], rows[a][1]
    (faces / file).write_text("".join(f"{n} {v}\n" for n, v in rows))
    result = invoke("train", "--out", out, "--resume", "--data", faces)
    assert (result.exit_code, result.stderr) == (1, changed(faces, out))
    assert not (out / "test.json").exists()


def test_resume_refuses_another_data_set(stopped, tmp_path):
    synthesize(tmp_path / "others", 60, "lab", None, 32, 7)
    result = invoke("train", "--out", stopped[0], "--resume", "--data", tmp_path / "others")
    assert (result.exit_code, result.stderr) == (1, changed(tmp_path / "others", stopped[0]))


def test_resume_refuses_images_that_have_gone_since(stopped):
    """Because with --skip-bad-images in the run's options it would go on with other faces."""
    out, faces = stopped
    state = load(out / "last.pt")
    state["config"]["skip_bad_images"] = True
    torch.save(state, out / "last.pt")
    text = (out / "config.yaml").read_text().replace("skip_bad_images: false", "skip_bad_images: true")
    (out / "config.yaml").write_text(text)
    (faces / "aligned/0001_aligned.jpg").unlink()
    assert invoke("train", "--out", out, "--resume", "--data", faces).stderr.endswith(changed(faces, out))


@pytest.mark.parametrize("name,value,why", [
    ("method", "stl", "not the options of last.pt; a resumed run keeps them"),
    ("seed", 9, "not the options of last.pt; a resumed run keeps them"),
    ("epochs", 9, "not the options of last.pt; a resumed run keeps them"),
    ("size", "32", "not the options of last.pt; a resumed run keeps them"),
    ("lr_heads", "fast", "not the options of last.pt; a resumed run keeps them"),
    ("batch_size", True, "not the options of last.pt; a resumed run keeps them"),
    ("device", 0, "not the options of a run"), ("data", ["faces"], "not the options of a run"), ("stats", None, "not the options of a run"),
])
def test_resume_refuses_options_that_were_changed_by_hand(stopped, name, value, why):
    out, _ = stopped
    options = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump(options | {name: value}))
    result = invoke("train", "--out", out, "--resume")
    assert (result.exit_code, result.stderr) == (1, f"Error: {out}/config.yaml: {why}\n")


def test_resume_refuses_statistics_that_changed(faces_folder, tmp_path, monkeypatch):
    shutil.copy(mmlfer.HERE / "stats/wild.yaml", tmp_path / "own.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epochs", lambda *_: sys.exit(130))
        assert invoke("train", "--data", faces_folder, "--out", tmp_path / "r", "--epochs", 1, "--method", "am",
                      "--stats", tmp_path / "own.yaml", *SMALL).exit_code == 130
    own = (tmp_path / "own.yaml").read_text()
    (tmp_path / "own.yaml").write_text(own.replace("12: 0.52", "12: 0.53"))
    result = invoke("train", "--out", tmp_path / "r", "--resume")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1, f"Error: {tmp_path}/own.yaml: changed since the run in {tmp_path}/r was started with it; a resumed run "
           "keeps its statistics")
    (tmp_path / "own.yaml").write_text(own)
    assert invoke("train", "--out", tmp_path / "r", "--resume").exit_code == 0


@pytest.mark.parametrize("place", ["gone", "moved"])
def test_a_run_goes_on_when_its_statistics_file_has_moved(faces_folder, tmp_path, monkeypatch, place):
    """last.pt holds the table, and the result is that of a run without a stop. A file named anew must hold the same."""
    own, options = tmp_path / "own.yaml", ("--data", faces_folder, "--epochs", 1, "--method", "am", *SMALL)
    shutil.copy(mmlfer.HERE / "stats/wild.yaml", own)
    assert invoke("train", *options, "--stats", own, "--out", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epochs", lambda *_: sys.exit(130))
        assert invoke("train", *options, "--stats", own, "--out", tmp_path / "r").exit_code == 130
    own.rename(tmp_path / "moved.yaml")
    (tmp_path / "other.yaml").write_text((tmp_path / "moved.yaml").read_text().replace("12: 0.52", "12: 0.53"))
    result = invoke("train", "--out", tmp_path / "r", "--resume", "--stats", tmp_path / "other.yaml")
    assert result.exit_code == 1 and f"{tmp_path}/other.yaml: changed since the run in {tmp_path}/r was started with it" in result.stderr
    result = invoke("train", "--out", tmp_path / "r", "--resume", "--stats", "lab")
    assert result.exit_code == 1 and f"its run has --stats {own}, not lab" in result.stderr
    result = invoke("train", "--out", tmp_path / "r", "--resume", *(["--stats", tmp_path / "moved.yaml"] if place == "moved" else []))
    assert result.exit_code == 0, result.output
    whole, resumed = (json.loads((tmp_path / name / "test.json").read_text()) for name in ("whole", "r"))
    assert resumed.pop("stats") == resumed["options"].pop("stats") == str(tmp_path / "moved.yaml" if place == "moved" else own)
    del whole["stats"], whole["options"]["stats"]
    assert whole == resumed


def test_data_that_has_moved_is_to_be_named(faces_folder, tmp_path, monkeypatch):
    faces, moved = tmp_path / "faces", tmp_path / "moved"
    shutil.copytree(faces_folder, faces)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epochs", lambda *_: sys.exit(130))
        assert invoke("train", "--data", faces, "--out", tmp_path / "r", "--epochs", 1, "--method", "stl", *SMALL).exit_code == 130
    faces.rename(moved)
    for command, by in ((("eval", "--ckpt", tmp_path / "r/last.pt"), tmp_path / "r/last.pt"),
                        (("train", "--out", tmp_path / "r", "--resume"), f"the run in {tmp_path}/r")):
        result = invoke(*command)
        assert (result.exit_code, result.stderr) == (
            1, f"Error: {faces}: no such folder, but {by} was trained on it; give --data\n")
        assert invoke(*command, "--data", moved).exit_code == 0


@pytest.mark.parametrize("after", ["edited", "gone"])
def test_the_statistics_of_a_run_are_those_it_was_started_with(faces_folder, tmp_path, monkeypatch, after):
    """The file changes while the run trains: test.json names the table that was trained with."""
    own, epochs = tmp_path / "own.yaml", train.train_epochs
    shutil.copy(mmlfer.HERE / "stats/wild.yaml", own)
    table = _stats.load_stats(str(own))

    def meanwhile(*args):
        if after == "gone":
            own.unlink()
        else:
            own.write_text(own.read_text().replace("12: 0.52", "12: 0.53"))
        epochs(*args)

    monkeypatch.setattr(train, "train_epochs", meanwhile)
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "r", "--epochs", 1, "--method", "am",
                    "--stats", own, *SMALL)
    assert result.exit_code == 0, result.output
    test = json.loads((tmp_path / "r/test.json").read_text())
    assert test["table_sha256"] == hashlib.sha256(table.astype("<f8").tobytes()).hexdigest()


def turn_a_picture(faces):
    path = next((faces / "aligned").iterdir())
    Image.open(path).rotate(180).save(path)


def test_resume_refuses_other_pictures_under_the_same_labels(stopped):
    out, faces = stopped
    assert invoke("train", "--out", out, "--resume", "--data", faces).exit_code == 0  # only the place is another
    (out / "test.json").unlink()
    turn_a_picture(faces)
    result = invoke("train", "--out", out, "--resume", "--data", faces)
    assert (result.exit_code, result.stderr) == (
        1, f"Error: {faces}: not the images that the run in {out} was trained on: labels are the same, pixels differ; a "
           "resumed run keeps its data\n")
    assert not (out / "test.json").exists()


def test_a_complete_run_without_last_pt_stays(trained, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained[0], out)
    (out / "last.pt").unlink()
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    result = invoke("train", "--out", out, "--resume")
    assert (result.exit_code, result.stdout) == (0, f"{out}: complete, nothing to do\n")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.parametrize("gone", [(), ("best.pt",), ("log.csv",)])
def test_a_run_with_results_but_no_last_pt_is_not_started_again(stopped, faces_folder, gone):
    out, _ = stopped
    for name in ("last.pt", *gone):
        (out / name).unlink()
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    result = invoke("train", "--data", faces_folder, "--out", out, "--resume")
    assert (result.exit_code, result.stderr) == (
        1, f"Error: {out}: results but no last.pt to go on from; --overwrite starts again\n")
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"}


def test_a_new_run_can_be_resumed_from_its_first_moment(faces_folder, tmp_path, monkeypatch):
    """last.pt is written before the first step, so that a kill in the first epoch costs no more than this epoch."""
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_epochs", killed)
    options = ("--data", faces_folder, "--out", tmp_path / "r", "--epochs", 1, "--method", "stl", *SMALL)
    assert invoke("train", *options).exit_code == 130
    monkeypatch.undo()
    result = invoke("train", "--out", tmp_path / "r", "--resume")
    assert result.exit_code == 0 and "going on after epoch 0, step 0" in result.stdout
    assert invoke("train", *options[:2], "--out", tmp_path / "whole", *options[4:]).exit_code == 0
    one, other = (load(tmp_path / d / "last.pt")["net"] for d in ("r", "whole"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def short(noise_folder, out, *more):
    """`train` of stl on 22 faces: two steps an epoch."""
    return invoke("train", "--data", noise_folder, "--out", out, "--method", "stl", *SMALL, *more)


def test_the_log_has_the_seconds_of_each_epoch_and_those_before_a_resume(noise_folder, tmp_path, monkeypatch):
    """Steps of 1, 2, 4, 8, 16 and 32 s; validation takes 100 s, and 1,000 s pass before the resume."""
    now, step, evaluate, taken = [5000.0], mmlfer.train_step, mmlfer.evaluate, []

    def timed_step(*args):
        now[0] += 2 ** len(taken)
        taken.append(1)
        if len(taken) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(*args)

    def timed_evaluate(*args):
        now[0] += 100
        return evaluate(*args)

    monkeypatch.setattr(train, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(train, "train_step", timed_step)
    monkeypatch.setattr(train, "evaluate", timed_evaluate)
    assert short(noise_folder, tmp_path / "r", "--epochs", 3).exit_code == 143
    now[0] += 1000
    assert invoke("train", "--out", tmp_path / "r", "--resume").exit_code == 0
    rows = list(csv.DictReader((tmp_path / "r/log.csv").open()))
    assert [float(row["seconds"]) for row in rows] == [3, 12, 48]
    assert [float(row["images_per_second"]) for row in rows] == [2.67, 0.67, 0.17]  # 2 batches of 4


class Killed(BaseException):
    """Ends the program where it stands."""


def results(out):
    """All that a run leaves, without the times in it."""
    timed, read = {"seconds", "images_per_second"}, {}
    for name in ("last.pt", "best.pt"):
        state = load(out / name)
        read[name] = state["epoch"], {k: v.tolist() for k, v in state["net"].items() if v.numel() < 99}
    rows = csv.DictReader((out / "log.csv").open())
    read["log.csv"] = [{k: v for k, v in row.items() if k not in timed} for row in rows]
    return {**read, "test.json": json.loads((out / "test.json").read_text())}


@pytest.fixture(scope="module")
def uncut(noise_folder, tmp_path_factory):
    """What a run of two epochs leaves, the second of which is the better one; patched as in the test."""
    out = tmp_path_factory.mktemp("uncut") / "r"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", better_each_epoch(mmlfer.evaluate))
        assert short(noise_folder, out, "--epochs", 2).exit_code == 0
    return results(out)


def better_each_epoch(evaluate):
    """`evaluate`, but with a validation accuracy (of 7 faces) that grows from epoch to epoch."""
    def patched(net, faces, *args):
        numbers = evaluate(net, faces, *args)
        steps = int(getattr(net.backbone.bn1, "num_batches_tracked", 0))  # the test set is of folded nets
        return {**numbers, "accuracy": steps / 8} if len(faces.names) == 7 else numbers

    return patched


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_a_kill_between_the_writes_of_an_epoch_costs_nothing(noise_folder, tmp_path, monkeypatch, uncut, written):
    """Killed when so many of best.pt, log.csv and last.pt of the second epoch, the best, are written."""
    out, calls = tmp_path / "r", []

    def until_killed(write):
        def patched(*args):
            if len(calls) == 4 + written:  # of the start, and three of the first epoch
                raise Killed
            calls.append(args[-1].name)  # each is given its path last
            return write(*args)

        return patched

    monkeypatch.setattr(train, "evaluate", better_each_epoch(mmlfer.evaluate))
    with monkeypatch.context() as patch:
        for name in ("save_checkpoint", "write_rows", "read_test_set"):
            patch.setattr(train, name, until_killed(getattr(train, name)))
        with pytest.raises(Killed):
            short(noise_folder, out, "--epochs", 2)
    assert sorted(calls[1:4]) == ["best.pt", "last.pt", "log.csv"] and len(calls) == 4 + written
    assert invoke("train", "--out", out, "--resume").exit_code == 0
    after = results(out)
    assert [name for name in uncut if after[name] != uncut[name]] == []


def started(patch, *args):
    """The run that `train` would train next; `train` is stopped there."""
    runs = []
    with patch.context() as inner:
        inner.setattr(train, "train_epochs", lambda run, *_: runs.append(run) or sys.exit(130))
        result = invoke("train", *args)
    assert result.exit_code == 130, result.output
    return runs[0]


def test_a_run_goes_on_on_another_device(noise_folder, tmp_path, monkeypatch):
    size = ("--size", 32, "--batch-size", 4, "--weights", "none", "--method", "stl")
    run = started(monkeypatch, "--data", noise_folder, "--out", tmp_path / "r", *size)
    assert run.cfg.device == "auto"
    again = started(monkeypatch, "--out", tmp_path / "r", "--resume", "--device", "cpu")
    assert (again.cfg.device, again.device.type) == ("cpu", "cpu")
    assert started(monkeypatch, "--out", tmp_path / "r", "--resume").cfg.device == "auto"


def test_nothing_of_an_overwritten_run_is_left(trained, noise_folder, tmp_path, monkeypatch):
    """Even though the new run is stopped before its first epoch ends."""
    out = tmp_path / "run"
    shutil.copytree(trained[0], out)
    assert {p.name for p in out.iterdir()} == {".lock", *mmlfer.RUN_FILES}
    started(monkeypatch, "--data", noise_folder, "--out", out, "--overwrite", *SMALL)
    assert {p.name for p in out.iterdir()} == {".lock", "config.yaml", "last.pt"}
    assert load(out / "last.pt")["config"]["data"] == str(noise_folder)


def test_a_resumed_run_holds_all_that_last_pt_holds(stopped, monkeypatch):
    """Stopped within its second epoch; each number differs from that of a new run."""
    out, _ = stopped
    kept = load(out / "last.pt")
    kept |= {"epoch": 1, "step": 3, "elapsed": 12.5, "log": kept["log"][:1], "template": [[0.3, 0.4], [0.7, 0.4], [0.5, 0.7]],
             "trace": torch.rand(kept["trace"].shape)}
    kept["meta"] = {name: value + 1 for name, value in kept["meta"].items()}
    torch.save(kept, out / "last.pt")
    again = started(monkeypatch, "--out", out, "--resume").state()
    assert again.keys() == kept.keys() and kept["train_names"] and kept["data_sha256"] and kept["hypergrad"] == "jvp"
    assert [name for name in kept if not same(again[name], kept[name])] == []


def test_a_new_run_names_the_images_that_it_trains_on(trained, faces_folder):
    rows = dict(line.split() for line in (faces_folder / PARTITION).read_text().splitlines())
    for name in ("best.pt", "last.pt"):
        state = load(trained[0] / name)
        assert sorted(state["train_names"]) == sorted(n for n, part in rows.items() if part == "0")


def test_a_run_made_before_an_option_was_there_goes_on_with_its_default(stopped, monkeypatch):
    out, _ = stopped
    options = yaml.safe_load((out / "config.yaml").read_text())
    del options["weights_norm"]
    (out / "config.yaml").write_text(yaml.safe_dump(options))
    assert started(monkeypatch, "--out", out, "--resume").cfg.weights_norm == "auto"


def test_a_run_lies_in_the_folder_of_its_method(noise_folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "fit", lambda cfg, out, resumed, scratch: seen.append((cfg.method, str(out), resumed)))
    monkeypatch.chdir(tmp_path)
    for method in ("am", "mml"):
        assert invoke("train", "--data", noise_folder, "--method", method).exit_code == 0
    assert seen == [("am", "runs/am", False), ("mml", "runs/mml", False)]


def test_test_json_records_options_and_statistics(trained):
    test, config = (read((trained[0] / name).read_text()) for read, name in (
        (json.loads, "test.json"), (yaml.safe_load, "config.yaml")))
    assert test["options"] == {name: config[name] for name in test["options"]} and test["options"]["batch_size"] == 4
    rows = yaml.safe_load((ROOT / "stats/wild.yaml").read_text())
    table = struct.pack("<448d", *(rows[e].get(au, 0) for e in mmlfer.EMOTIONS for au in mmlfer.AUS))
    assert test["table_sha256"] == hashlib.sha256(table).hexdigest()


@pytest.mark.parametrize("stats", ["wild", "lab"])
def test_the_statistics_named_reach_the_run(noise_folder, tmp_path, monkeypatch, stats):
    run = started(monkeypatch, "--data", noise_folder, "--out", tmp_path / "r", "--stats", stats, *SMALL)
    rows = yaml.safe_load((ROOT / f"stats/{stats}.yaml").read_text())
    expected = [[rows[e].get(au, 0) for au in mmlfer.AUS] for e in mmlfer.EMOTIONS]
    assert torch.equal(run.table, torch.tensor(expected))


HOLD = """import sys
from mmlfer_commands import _outputs
from pathlib import Path
with _outputs.locked(Path(sys.argv[1]), Path(sys.argv[1], ".lock")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_folder_has_one_process_at_a_time(stopped, faces_folder):
    out, _ = stopped
    holder = subprocess.Popen([sys.executable, "-c", HOLD, out], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True)
    assert holder.stdout.readline() == "held\n"
    for options in (["--resume"], ["--data", faces_folder, "--overwrite", *SMALL]):
        result = invoke("train", "--out", out, *options)
        assert (result.exit_code, result.stderr) == (
            1, f"Error: {out}: in use by process {holder.pid} on {platform.node()}; wait or name another\n")
    holder.kill(), holder.wait()  # a lock left by a killed process does no harm
    assert f"process {holder.pid} on" in (out / ".lock").read_text()
    assert invoke("train", "--out", out, "--resume").exit_code == 0
    assert (out / ".lock").read_text() == f"process {os.getpid()} on {platform.node()}"


def test_a_child_of_the_holder_does_not_hold_the_lock(tmp_path):
    """Because a worker may outlive its killed parent."""
    out, lock = tmp_path / "w.pth", tmp_path / ".w.lock"
    read, write = os.pipe()
    with _outputs.locked(out, lock):
        child = os.fork()
        if child == 0:
            os.write(write, b"x")
            signal.pause()
        os.read(read, 1)  # it has begun
    try:
        with _outputs.locked(out, lock):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_eval_says_so_when_test_images_were_trained_on(trained, faces_folder, tmp_path):
    moved = tmp_path / "faces"
    shutil.copytree(faces_folder, moved)
    rows = [line.split() for line in (moved / PARTITION).read_text().splitlines()]
    trained_on = sorted(n for n, p in rows if p == "0")
    turned = dict.fromkeys(trained_on[:5], 1) | dict.fromkeys(trained_on[5:8], 2)
    (moved / PARTITION).write_text("".join(f"{n} {turned.get(n, 2 if p == '1' else p)}\n" for n, p in rows))
    result = invoke("eval", "--ckpt", trained[0] / "best.pt", "--data", moved)
    assert result.exit_code == 0 and result.stderr == (
        f"Warning: 5 of these 5 test images bear names of {trained[0]}/best.pt's training images, such as "
        f"{trained_on[0]}\n")
    result = invoke("eval", "--ckpt", trained[0] / "best.pt", "--data", moved, "--split", "val")
    assert result.stderr == (f"Warning: 3 of these {63 - len(trained_on)} val images bear names of {trained[0]}/best.pt's "
                             f"training images, such as {trained_on[5]}\n")
    assert invoke("eval", "--ckpt", trained[0] / "best.pt").stderr == ""
    assert invoke("eval", "--ckpt", trained[0] / "best.pt", "--split", "train").stderr == ""


def test_the_sources_digest_covers_every_file(tmp_path, monkeypatch):
    for path in [mmlfer.HERE / "mmlfer.py", *mmlfer.HERE.glob("mmlfer_commands/*.py")]:
        (tmp_path / path.relative_to(mmlfer.HERE)).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(mmlfer.HERE))
    monkeypatch.setattr(_runs, "HERE", tmp_path)
    seen = [_runs.versions()["source_sha256"]]
    assert seen == [_runs.versions()["source_sha256"]]
    for name in ("mmlfer.py", "mmlfer_commands/_backbones.py", "mmlfer_commands/_people.py", "mmlfer_commands/stats.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "#")
        seen.append(_runs.versions()["source_sha256"])
    (tmp_path / "mmlfer_commands/_people.py").rename(tmp_path / "mmlfer_commands/_persons.py")
    seen.append(_runs.versions()["source_sha256"])
    assert len({*seen}) == 6


# ---------------------------------------------------------------- keywords, streams, the first moments


def test_the_words_of_path_options_are_not_taken_for_paths(faces_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lab", "none"):
        (tmp_path / name).mkdir()
    options = ("--data", faces_folder, "--method", "stl", "--epochs", 1, *SMALL)
    result = invoke("train", *options, "--stats", "lab", "--out", "r")
    assert result.exit_code == 0 and json.loads((tmp_path / "r/test.json").read_text())["form"] == "lab"
    result = invoke("train", *options, "--stats", "./lab", "--out", "s")
    assert result.exit_code == 1 and f"{tmp_path}/lab: cannot be read as YAML" in result.stderr
    result = invoke("train", *options, "--weights", "./none", "--out", "s")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}/none: Is a directory; give")


def test_training_with_standard_error_closed(faces_folder, tmp_path):
    command = command_line("train", "--data", faces_folder, "--out", tmp_path / "r", "--epochs", "1", "--method", "stl", *SMALL)
    result = subprocess.run(["bash", "-c", '"$@" 2>&-', "bash", *command], capture_output=True, text=True)
    assert result.returncode == 0 and "test, best (epoch 1)" in result.stdout


ENTRY = "from mmlfer_commands.__main__ import main; main()"  # as the installed command starts


@pytest.mark.parametrize("program", [["-c", ENTRY], [ROOT / "mmlfer.py"]], ids=["mmlfer", "mmlfer.py"])
def test_ctrl_c_while_it_starts_is_quiet(tmp_path, program):
    """It comes as click is imported, before the program is loaded."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    result = subprocess.run([sys.executable, *program, "eval"], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_the_installed_command_stops_as_the_program_does(tmp_path):
    """Ctrl-C is caught again once all is loaded."""
    (tmp_path / "mmlfer.py").write_text("import os, signal\ndef main():\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
                                        "    except KeyboardInterrupt:\n        print('stopped')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    result = subprocess.run([sys.executable, "-c", ENTRY], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "stopped\n", "")


def test_doubled_keys_and_aliases_in_statistics_are_refused(faces_folder, tmp_path):
    path = tmp_path / "s.yaml"
    rows = {e: "{12: 0.5}" for e in mmlfer.EMOTIONS}
    texts = {"sadly angry is there twice; keep one": "\n".join(f"{e}: {r}" for e, r in rows.items()) + "\nsadly angry: {4: 0.5}",
             "12 is there twice; keep one": "\n".join(f"{e}: {{12: 0.5, 12: 0.6}}" for e in rows),
             "an alias (*); write the values out": "a: &a [x, x]\n" + "\n".join(
                 f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(20))}
    for why, text in texts.items():
        path.write_text(text)
        result = invoke("stats", "--data", faces_folder, "--against", path)
        assert (result.exit_code, result.stderr) == (
            1, f"Error: {path}: cannot be read as YAML ({why}); --stats takes wild, lab, train or a file of `mmlfer stats "
               "--out`\n")
