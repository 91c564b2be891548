"""Files written whole, through links, devices and pipes; outputs that are no inputs."""

import io
import os
import stat
import threading

import click
import pytest
from conftest import invoke
from PIL import Image
from tqdm import tqdm

import mmlfer
from mmlfer_commands._outputs import check_output, check_two_outputs


def test_a_device_stays_a_device(tmp_path):
    before = os.stat("/dev/null")
    mmlfer.write_whole("/dev/null", b"text")
    after = os.stat("/dev/null")
    assert stat.S_ISCHR(after.st_mode) and after.st_ino == before.st_ino


def test_a_pipe_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "p")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "p").read_bytes()))
    reader.start()
    mmlfer.write_whole(tmp_path / "p", b"text")
    reader.join(10)
    assert read == [b"text"] and stat.S_ISFIFO(os.stat(tmp_path / "p").st_mode)


def test_a_link_is_followed_and_the_mode_kept(tmp_path):
    target, link = tmp_path / "a/target.csv", tmp_path / "link.csv"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    mmlfer.write_whole(link, b"new")
    assert link.is_symlink() and target.read_text() == "new" and stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [p.name for p in target.parent.iterdir()] == ["target.csv"]
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "b/new")
    mmlfer.write_whole(dangling, b"made")
    assert dangling.is_symlink() and (tmp_path / "b/new").read_bytes() == b"made"


def test_a_dash_is_standard_output(faces_folder):
    result = invoke("stats", "--data", faces_folder, "--out", "-")
    assert result.exit_code == 0 and "happily surprised: {" in result.stdout and not os.path.exists("-")


def test_a_write_that_fails_leaves_what_stood_there(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(mmlfer.InputError) as error:
        mmlfer.write_whole(tmp_path / "x", b"new")
    assert str(error.value) == (f"{tmp_path}/x: cannot be written (No space left on device); free some space or name "
                                "another file; nothing that stood there is lost")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    with pytest.raises(mmlfer.InputError, match="cannot be written .File name too long"):
        mmlfer.write_whole(tmp_path / ("x" * 252), b"1")


@pytest.fixture
def inputs(tmp_path):
    for name in ("faces/1.jpg", "faces/2.jpg", "other/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for name in ("faces/RAFCE_emolabel.txt", "run/best.pt", "run/gradcam.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link.csv").symlink_to(tmp_path / "faces/1.jpg")
    return tmp_path


@pytest.mark.parametrize("output,given", [
    ("faces/1.jpg", ["faces/1.jpg"]), ("faces/1.jpg", ["faces"]), ("faces/1.jpg", ["run/best.pt", "faces/2.jpg"]),
    ("faces/RAFCE_emolabel.txt", ["faces"]), ("run/best.pt", ["run/best.pt", "faces"]), ("link.csv", ["faces"]),
    ("faces/../faces/2.jpg", ["faces/2.jpg"]),
])
def test_outputs_over_inputs_are_refused(inputs, output, given):
    with pytest.raises(mmlfer.InputError) as error:
        check_output(inputs / output, *(inputs / g for g in given))
    assert str(error.value) == f"{inputs / output}: is an input or lies among the inputs; name another output"


def test_an_output_over_the_file_that_an_input_links_to_is_refused(inputs):
    (inputs / "model.pt").symlink_to("run/best.pt")
    with pytest.raises(mmlfer.InputError, match="is an input"):
        check_output(inputs / "run/best.pt", inputs / "model.pt")


@pytest.mark.parametrize("output,given", [
    ("new.png", ["faces"]), ("faces/new.png", ["faces"]), ("other/1.jpg", ["faces"]), ("notes.txt", ["faces"]),
    ("run/gradcam.png", ["run/best.pt", "faces/1.jpg"]), ("/dev/null", ["faces"]), ("faces/1.jpg", ["gone/1.jpg"]),
])
def test_outputs_apart_from_the_inputs_are_not_refused(inputs, output, given):
    check_output(inputs / output, *(inputs / g for g in given))


@pytest.mark.parametrize("one,other,wrong", [
    ("a.csv", "b/../a.csv", True), ("faces/1.jpg", "link.csv", True), ("-", "-", True),
    ("a.csv", "b.csv", False), ("a.csv", None, False), (None, None, False), ("/dev/null", "/dev/null", False),
])
def test_two_outputs_must_be_two_files(inputs, monkeypatch, one, other, wrong):
    monkeypatch.chdir(inputs)
    try:
        check_two_outputs(csv=one, jsonl=other)
    except click.UsageError as error:
        assert wrong and error.message == "--csv and --jsonl name one file."
    else:
        assert not wrong


def test_a_file_is_whole_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    path, new, done = tmp_path / "last.pt", b"x" * 3_000, []
    path.write_bytes(b"old")
    fsync, replace = os.fsync, os.replace

    def watched_fsync(number):
        done.append("fsync")
        assert os.fstat(number).st_size == len(new) and path.read_bytes() == b"old"
        fsync(number)

    def watched_replace(source, target):
        done.append("replace")
        assert path.read_bytes() == b"old"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    mmlfer.write_whole(path, new)
    assert done == ["fsync", "replace"] and path.read_bytes() == new and os.listdir(tmp_path) == ["last.pt"]


def test_no_line_comes_between_a_bars_removal_and_its_clearing(monkeypatch):
    """Another thread writes a line at that moment."""
    terminal, remove = io.StringIO(), mmlfer.Bar._decr_instances
    terminal.isatty = lambda: True
    writer = threading.Thread(target=lambda: tqdm.write("a line", terminal))

    def removed(bar, _):
        remove(bar)
        writer.start()
        writer.join(0.3)

    monkeypatch.setattr(tqdm, "_decr_instances", removed)
    for _ in mmlfer.progress(range(2), file=terminal, mininterval=0):
        pass
    writer.join()
    assert "100%" in terminal.getvalue() and terminal.getvalue().endswith("\ra line\n")
