"""Outputs where two processes write at once, the disk is full, inputs change, or names are odd."""

import contextlib
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import grey, write_clip
from conftest import ROOT, SMALL, SMALL_PRETRAINING, invoke
from PIL import Image
from serving import with_template

import mmlfer
from mmlfer_commands import _alignment, _outputs, _people, _runs, predict, pretrain, train

# ---------------------------------------------------------------- two processes at one output


def test_a_folder_is_filled_by_one_process(tmp_path):
    out = tmp_path / "faces"
    with _outputs.new_folder(out) as part:
        (part / "a").touch()
        for command in (("synth", out, "--n", 3, "--size", 32),
                        ("synth", out, "--people", 2, "--per-person", 2, "--size", 32)):
            result = invoke(*command)
            assert result.exit_code == 1
            assert result.stderr.startswith(f"Error: {out}: in use by process {os.getpid()} on ")
        assert os.listdir(part) == ["a"]  # not removed
    assert os.listdir(out) == ["a"]


@contextlib.contextmanager
def filled_before(folder, lock):
    """In place of the lock: meanwhile another process has filled the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "of another").write_text("x")
    yield


def test_a_folder_that_was_filled_meanwhile_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(_outputs, "locked", filled_before)
    result = invoke("synth", tmp_path / "a", "--n", 3, "--size", 32)
    assert (result.exit_code, result.stderr) == (1, f"Error: {tmp_path}/a: not an empty folder; name a new one\n")
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    result = invoke("crop", tmp_path / "photo.png", "--out", tmp_path / "b")
    assert result.exit_code == 1
    assert result.stderr.endswith(f"Error: {tmp_path}/b: not an empty folder; name a new one\n")
    assert os.listdir(tmp_path / "a") == os.listdir(tmp_path / "b") == ["of another"]


def test_crops_and_drawings_go_to_a_folder_of_one_process(sketch, tmp_path):
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    Image.new("RGB", (64, 64)).save(photo)
    for command in (("crop", photo, "--out", out), ("predict", "--ckpt", sketch, "--photos", photo, "--draw", out)):
        with _outputs.filling(out):
            result = invoke(*command)
            assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith(f"Error: {out}: in use by process ")
        assert os.listdir(out) == []
    assert invoke("predict", "--ckpt", sketch, "--photos", photo, "--draw", out).exit_code == 0
    assert os.listdir(out) == ["photo.jpg"]
    assert invoke("crop", photo, "--out", tmp_path / "crops").exit_code == 0
    assert os.listdir(tmp_path / "crops") == ["faces.csv"]


def test_of_two_processes_that_create_a_lock_at_once_one_holds_it(tmp_path, monkeypatch):
    with _outputs.locked(tmp_path, tmp_path / ".lock"):
        monkeypatch.setattr(Path, "exists", lambda self: False)  # as the other saw it, a moment before
        with pytest.raises(mmlfer.InputError, match="in use by process"), _outputs.locked(tmp_path, tmp_path / ".lock"):
            pass


def test_two_processes_that_write_one_file_leave_one_of_two_whole(tmp_path, monkeypatch):
    fsync = os.fsync

    def other_writes_meanwhile(number):
        monkeypatch.setattr(os, "fsync", fsync)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                mmlfer.write_whole(tmp_path / "x", b"two")
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / "x").read_bytes() == b"two"
        fsync(number)

    monkeypatch.setattr(os, "fsync", other_writes_meanwhile)
    mmlfer.write_whole(tmp_path / "x", b"one, longer")
    assert (tmp_path / "x").read_bytes() == b"one, longer" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("name,other", [("w[1].pth", "w1.pth"), ("*.pth", "w.pth"), ("w?.pth", "w1.pth")])
def test_only_parts_of_the_very_name_are_removed(tmp_path, name, other):
    """Brackets and stars of a name are no pattern."""
    own, others = tmp_path / f".{name}.77.part", tmp_path / f".{other}.77.part"
    own.write_text("x"), others.write_text("x")
    _outputs.remove_parts(tmp_path / name)
    assert not own.exists() and others.exists()


def test_a_run_removes_what_killed_writes_left_and_nothing_else(faces_folder, people, tmp_path, monkeypatch):
    stay = [tmp_path / name for name in (".curves.png.77.part", ".w.pth.part.txt", "last.pt.77.part")]
    left = [tmp_path / name for name in (".last.pt.77.part", ".best.pt.78.part", ".test.json.1.part", ".w.pth.77.part",
                                         ".w.last.pt.77.part", ".w.csv.3.part")]
    for path in (*stay, *left):
        path.write_text("x")
    monkeypatch.setattr(train, "train_epochs", lambda *args: None)
    monkeypatch.setattr(train, "read_test_set", lambda *args: None)
    result = invoke("train", "--data", faces_folder, "--out", tmp_path, "--arch", "resnet18", "--method", "stl", *SMALL)
    assert result.exit_code == 0, result.output
    assert [path.exists() for path in left] == [False] * 3 + [True] * 3
    monkeypatch.setattr(pretrain, "pretrain_epochs", lambda run, *args: run.log.append({}))
    result = invoke("pretrain", "--faces", people, "--out", tmp_path / "w.pth", *SMALL_PRETRAINING)
    assert result.exit_code == 0, result.output
    assert not any(path.exists() for path in left) and all(path.exists() for path in stay)


# ---------------------------------------------------------------- a full disk


@contextlib.contextmanager
def files_of_at_most(size):
    """No file can become longer than this in this process, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_with_the_output(sketch, faces_folder, tmp_path):
    photo, table = tmp_path / "photo.png", tmp_path / "p.csv"
    Image.new("RGB", (64, 64)).save(photo)
    commands = {tmp_path / "faces": ("synth", tmp_path / "faces", "--n", 3, "--size", 112),
                tmp_path / "crops/faces.csv": ("crop", photo, "--out", tmp_path / "crops"),
                tmp_path / "p.csv.part": ("predict", "--ckpt", sketch, faces_folder / "aligned", "--csv", table, "--top", 1)}
    for place, command in commands.items():
        with files_of_at_most(100):
            result = invoke(*command)
        assert result.exit_code == 1, result.output
        if "synth" in command:
            told = f"{place}: cannot be written (File too large); free some space or name another output"
        else:
            told = f"{place}: cannot be written (File too large); free some space and start again"
        assert result.stderr.splitlines()[-1] == f"Error: {told}" and not place.exists() or "synth" in command
    assert os.listdir(tmp_path / "faces") == [] and not table.exists()
    result = invoke("predict", "--ckpt", sketch, faces_folder / "aligned", "--csv", "/dev/full")
    assert result.exit_code == 1 and result.stderr.splitlines()[-1] == (
        "Error: /dev/full: cannot be written (No space left on device); free some space or name another output")


def test_a_full_disk_is_named_with_the_lock(tmp_path):
    with files_of_at_most(0), pytest.raises(mmlfer.InputError) as error, _outputs.locked(tmp_path, tmp_path / ".lock"):
        pass
    assert str(error.value) == f"{tmp_path}/.lock: cannot be written (File too large); free some space or name another output"


def test_an_error_of_an_encoder_is_no_full_disk():
    with pytest.raises(OSError, match="encoder error -2") as error, _outputs.writing("table.csv"):
        raise OSError("encoder error -2 when writing image file")
    assert not isinstance(error.value, mmlfer.InputError)


def test_a_pipe_that_closes_is_no_full_disk():
    with pytest.raises(BrokenPipeError), _outputs.writing("-"):
        raise BrokenPipeError(32, "Broken pipe")
    with pytest.raises(FileNotFoundError), _outputs.writing("-"):
        Path("/no/such/file").read_text()  # that error names its file


# ---------------------------------------------------------------- inputs that change


def test_a_photograph_that_has_gone_since_it_was_read_has_no_drawing_and_its_row(sketch, tmp_path, monkeypatch):
    face = _alignment.Face(np.array([8.0, 8, 40, 40]), 64 * np.array([[.3, .4], [.7, .4], [.5, .6], [.4, .7], [.6, .7]]), 0.9)
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), "grey").save(tmp_path / f"{name}.png")

    def photo_faces(paths):
        for path in paths:
            yield path, mmlfer.read_image(path), [face]
            if path.name == "a.png":
                path.write_bytes(path.read_bytes()[:60])  # Pillow raises another kind of error than for no file

    monkeypatch.setattr(predict, "photo_faces", photo_faces)
    monkeypatch.setattr(predict, "choose_template", lambda like, state: _alignment.PUBLIC)
    result = invoke("predict", "--ckpt", sketch, "--photos", tmp_path / "a.png", tmp_path / "b.png", "--draw",
                    tmp_path / "d", "--csv", tmp_path / "p.csv")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Warning: no drawing: {tmp_path}/a.png: not an image that can be read (")
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [(row["image"], row["drawing"]) for row in rows] == [
        (f"{tmp_path}/a.png", ""), (f"{tmp_path}/b.png", f"{tmp_path}/d/b.jpg")]
    assert os.listdir(tmp_path / "d") == ["b.jpg"]


@pytest.mark.parametrize("content", [b"data: [", b"", b"3", b"\xff", None])
def test_an_export_of_runs_one_of_which_is_damaged_is_not_begun(trained, tmp_path, content):
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        for file in ("test.json", "config.yaml", "log.csv"):
            (tmp_path / "runs" / name / file).write_bytes((trained[0] / file).read_bytes())
    other = json.loads((trained[0] / "test.json").read_text())
    (tmp_path / "runs/b/test.json").write_text(json.dumps({**other, "seed": 1}))
    config = tmp_path / "runs/b/config.yaml"
    config.unlink() if content is None else config.write_bytes(content)
    result = invoke("table", tmp_path / "runs", "--out", "-", "--export", tmp_path / "out")
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    why = "not there; give the folder of a run of `train`" if content is None else "not as `train` writes it ("
    assert result.stderr.startswith(f"Error: {config}: {why}") and result.stderr.count("\n") == 1


# ---------------------------------------------------------------- signals


def test_signals_that_stop_a_run_let_its_step_finish():
    sent, missed = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], []
    before = {number: signal.signal(number, lambda number, frame: missed.append(number)) for number in sent}
    own = [signal.getsignal(number) for number in sent]  # which end no process
    try:
        with _runs.caught_signals() as caught:
            for number in sent:
                os.kill(os.getpid(), number)
        assert (caught, missed) == (sent, []) and [signal.getsignal(number) for number in sent] == own
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_hangup_that_nohup_ignores_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _runs.caught_signals() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
        assert caught == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_start_with_these_signals_blocked(monkeypatch):
    blocked = []

    class Loader:
        def __init__(self, *args, **options):
            pass

        def __iter__(self):
            blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            return iter("ab")

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(torch.utils.data, "DataLoader", Loader)
    assert list(_people.read_batches([], 2, types.SimpleNamespace(workers=2))) == ["a", "b"]
    assert blocked[0] >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@SUM(A1).png", "\t=1.png"])
def test_no_name_is_a_formula_of_a_spreadsheet(sketch, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / name)
    assert invoke("predict", "--ckpt", sketch, "--csv", "p.csv", "--", name).exit_code == 0
    (row,) = csv.DictReader((tmp_path / "p.csv").open(newline=""))
    assert row["image"] == f"./{name}" and Path(row["image"]).samefile(name)


def test_every_byte_of_a_name_stays_in_its_row(sketch, tmp_path):
    names = [bytes([byte]) for byte in range(1, 256) if byte != ord("/")]
    names = sorted({os.fsdecode(b"x" + name + b'y",\n') for name in names})
    image = Image.new("RGB", (32, 32))
    for name in names:
        image.save(tmp_path / f"{name}.png")
    out = tmp_path.parent / f"{tmp_path.name}.csv"
    result = invoke("predict", "--ckpt", sketch, tmp_path, "--csv", out)
    assert result.exit_code == 0, result.output
    rows = [row["image"] for row in csv.DictReader(out.open(newline="", encoding="utf-8"))]
    shown = [f"{tmp_path}/{name}.png".encode(errors="replace").decode() for name in names]
    assert sorted(rows) == sorted(shown) and len(rows) == 254
    lines = result.stdout.split("\n")
    assert len(lines) == 255 and not any(ord(letter) < 32 or ord(letter) == 127 for line in lines for letter in line)


def test_a_bar_in_a_name_is_escaped_in_a_table():
    assert _outputs.markdown(["a|b", "c"], [["x|y", 1]]) == "| a\\|b | c |\n| --- | --- |\n| x\\|y | 1 |"


def test_tables_and_figures_can_have_names_of_every_kind(trained, tmp_path):
    """Statistics whose file's name is not in UTF-8, has a line's end or what begins mathematics; an expression's name, too."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("log.csv", "config.yaml"):
        shutil.copy(trained[0] / name, run)
    text = (trained[0] / "test.json").read_text().replace('"happily surprised"', json.dumps("x $\\q$ y"))
    content = json.loads(text) | {"stats": "/x/\udcff$\\q$ a\nb|.yaml"}
    (run / "test.json").write_text(json.dumps(content))
    result = invoke("table", tmp_path, "--out", tmp_path / "t.md")
    assert result.exit_code == 0, result.output
    assert "| expression | images | mml ?$\\q$ a b\\|.yaml |\n" in (tmp_path / "t.md").read_text(encoding="utf-8")
    assert "| x $\\q$ y |" in result.stdout
    for folder in (run, tmp_path):
        result = invoke("plot", folder)
        assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def latin_1(tmp_path_factory):
    """The environment of a locale whose names have 8 bits."""
    folder = tmp_path_factory.mktemp("locale")
    made = shutil.which("localedef") and subprocess.run(["localedef", "-f", "ISO-8859-1", "-i", "en_US", folder / "en_US"], capture_output=True)
    if not made or not (folder / "en_US").exists():
        pytest.skip("needs localedef and its sources")
    return {**os.environ, "LOCPATH": str(folder), "LC_ALL": "en_US", "PYTHONUTF8": "0"}


def test_names_of_any_script_in_a_locale_of_8_bits(sketch_34, faces_folder, tmp_path, latin_1):
    """Outputs have the same bytes in their names, and tables the name that it has, in UTF-8."""
    templated = with_template(sketch_34, tmp_path / "best.pt")
    photo, clip = tmp_path / "\ud55c\uad6d.png", write_clip(tmp_path / "\ud55c\uad6d.webm", grey(2))
    Image.open(faces_folder / "aligned/0001_aligned.jpg").resize((96, 96)).save(photo)
    for command in (("crop", photo, "--out", tmp_path / "c"), ("video", clip, "--ckpt", templated, "--out", tmp_path / "v", "--draw"),
                    ("predict", "--ckpt", templated, "--photos", photo, "--draw", tmp_path / "d", "--csv", tmp_path / "p.csv")):
        result = subprocess.run([sys.executable, ROOT / "mmlfer.py", *command], cwd=ROOT, env=latin_1, capture_output=True)
        assert result.returncode == 0, result.stderr
    assert {path.name for name in "vd" for path in (tmp_path / name).iterdir()} == {f"\ud55c\uad6d.{kind}" for kind in ("csv", "webm", "jpg")}
    (row,), (crop_row,) = (list(csv.DictReader((tmp_path / name).open(encoding="utf-8"))) for name in ("p.csv", "c/faces.csv"))
    assert (row["image"], row["drawing"]) == (str(photo), f"{tmp_path}/d/\ud55c\uad6d.jpg")
    assert (crop_row["image"], crop_row["file"]) == (str(photo), "aligned/\ud55c\uad6d_0.png") and (tmp_path / "c" / crop_row["file"]).exists()
