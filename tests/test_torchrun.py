"""`train` in several processes under torchrun, and `--scratch`."""

import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, assert_same_run, invoke, load, run_of
from test_bilevel import CFG
from test_processes import ENVIRONMENT, torchrun

import mmlfer
from mmlfer_commands import _inputs, _processes, _rafce, _scratch, train

SECOND = """
import os, signal, sys
import mmlfer, thin
from mmlfer_commands import train
mmlfer.make_backbone = thin.make_backbone
how, step, taken = sys.argv.pop(1), mmlfer.train_step, []
def struck(*args):
    taken.append(1)
    if len(taken) == 3 and how in ("killed", "stopped"):
        os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGTERM)
    return step(*args)
if os.environ["RANK"] == "1":  # what happens to the second process
    train.train_step = struck
    train.save_checkpoint = train.write_rows = train.write_whole = train.locked = lambda *args: os.abort()
    if how == "other images":
        train.digest_of_images = lambda images: "x"
mmlfer.main()
"""


def run_two(tmp_path, how, *options):
    script = tmp_path / "second.py"
    script.write_text(SECOND)
    return torchrun(script, how, "train", *options, cwd=tmp_path)


def errors_of(result):
    return [line for line in result.stderr.splitlines() if line.startswith("Error: ")]


@pytest.fixture(scope="module")
def pair(faces_folder, tmp_path_factory):
    """A finished run of two processes that share batches of 8: its folder and what was said."""
    folder = tmp_path_factory.mktemp("pair")
    result = run_two(folder, "well", "--data", faces_folder, "--out", folder / "run", "--epochs", 2, *SMALL, "--batch-size", 8)
    assert result.returncode == 0, result.stderr
    return folder / "run", result


def test_the_first_process_writes_and_speaks_alone(pair, faces_folder):
    """The second one would end where it wrote. What is said is what one process says."""
    out, result = pair
    said = result.stdout.splitlines()
    assert said[0] == f"{faces_folder}: 60 images" and len(said) == len(set(said))
    assert sum(line.startswith("epoch ") for line in said) == 2 and sum(line.startswith("test, ") for line in said) == 2
    assert yaml.safe_load((out / "config.yaml").read_text())["processes"] == load(out / "last.pt")["processes"] == 2
    assert {path.name for path in out.iterdir()} == {*mmlfer.RUN_FILES, ".lock"}
    test = json.loads((out / "test.json").read_text())
    net, state = mmlfer.load_net(out / "best.pt")
    faces = mmlfer.load_images(_rafce.load_labels(faces_folder), faces_folder, 32).of("test")
    assert test["best"]["pred"] == mmlfer.evaluate(net, faces, state["config"])["pred"]


def test_a_signal_to_one_stops_all_and_a_resumed_run_has_the_same_bits(pair, faces_folder, tmp_path):
    options = ("--data", faces_folder, "--out", tmp_path / "run", "--epochs", 2, *SMALL, "--batch-size", 8)
    result = run_two(tmp_path, "stopped", *options)
    assert result.returncode == 1 and result.stderr.count("stopped at ") == 1, result.stderr
    state = load(tmp_path / "run/last.pt")
    assert (state["epoch"], state["step"]) == (0, 3) and not errors_of(result)
    result = run_two(tmp_path, "well", "--out", tmp_path / "run", "--resume", "--scratch", tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same_run(pair[0], tmp_path / "run")
    assert not list(tmp_path.glob("*.scratch"))


def test_one_that_is_killed_ends_the_others(faces_folder, tmp_path):
    result = run_two(tmp_path, "killed", "--data", faces_folder, "--out", tmp_path / "run", "--scratch", tmp_path,
                     *SMALL, "--batch-size", 8)
    assert result.returncode == 1
    assert errors_of(result) in ([], ["Error: another of torchrun's processes ended; --resume goes on"])
    assert not any("mmlfer_commands" in line for line in result.stderr.splitlines()), result.stderr  # no traceback of ours
    assert load(tmp_path / "run/last.pt")["step"] == 0 and not list(tmp_path.glob("*.scratch"))


def test_a_machine_with_other_images_is_refused_before_anything_is_written(faces_folder, tmp_path):
    result = run_two(tmp_path, "other images", "--data", faces_folder, "--out", tmp_path / "run", *SMALL)
    assert errors_of(result) == [f"Error: {faces_folder}: images: not the same on every machine; copy it to all"], result.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("what", ["names and labels", "images", "--stats", "initial weights", None])
def test_processes_that_start_from_something_else_are_refused(tmp_path, what):
    """Another one has another value."""
    class Other(_processes.World):
        def check_same(self, name, value):
            asked.append(name)
            _processes.World.check_same(self, name, value)

        def gather(self, value):
            return [value, "another" if what and what in asked[-1] else value]

    run, asked = run_of(mmlfer.Config(data="faces", arch="resnet18", weights="none", device="cpu")), []
    run.world = Other(0, 2)
    if what:
        with pytest.raises(mmlfer.InputError, match="^.*: not the same on every machine; copy it to all$"):
            train.check_everywhere(run, tmp_path)
        assert what in asked[-1]
    else:
        train.check_everywhere(run, tmp_path)
        assert len(asked) == 4


@pytest.mark.parametrize("size,fault", [(5, "not a multiple of"), (2, "fewer than two for each of")])
def test_a_batch_that_cannot_be_shared_is_refused(size, fault):
    with pytest.raises(mmlfer.InputError) as error:
        _processes.World(1, 2, torch.device("cpu")).check_batch(size)
    assert str(error.value) == f"--batch-size {size}: {fault} torchrun's 2 processes"
    _processes.World(1, 2, torch.device("cpu")).check_batch(4)


def test_another_number_of_processes_on_resume_is_refused(pair, tmp_path):
    shutil.copytree(pair[0], tmp_path / "run")
    (tmp_path / "run/test.json").unlink()
    result = invoke("train", "--out", tmp_path / "run", "--resume")
    assert result.exit_code == 1 and result.stderr == (
        f"Error: {tmp_path}/run: its run shares each batch among 2 processes, not 1; a resumed run keeps their number\n")


# ---------------------------------------------------------------- --scratch


def test_scratch_gives_the_bits_of_memory(trained, faces_folder, tmp_path):
    """Also of a run that is begun without it, and left behind is nothing."""
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "run", "--epochs", 2, *SMALL, "--scratch", tmp_path)
    assert result.exit_code == 0, result.output
    assert_same_run(trained[0], tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert "scratch" not in (tmp_path / "run/config.yaml").read_text()
    rows = [list(csv.DictReader((out / "log.csv").open())) for out in (trained[0], tmp_path / "run")]
    assert [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows[0]] == [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows[1]]


@pytest.fixture
def bad_one(faces_folder, tmp_path):
    """A copy of the faces of which one cannot be read."""
    shutil.copytree(faces_folder, tmp_path / "faces")
    sorted((tmp_path / "faces/aligned").iterdir())[7].write_bytes(b"no image")
    return tmp_path / "faces"


def test_scratch_leaves_bad_images_out_as_memory_does(bad_one, tmp_path):
    faces, folder = _rafce.load_labels(bad_one), tmp_path / "scratch"
    folder.mkdir()
    shared = functools.partial(_scratch.decode_shared, _processes.ALONE, folder)
    memory, file = (mmlfer.load_images(faces, bad_one, 32, True, *how) for how in ((), (shared,)))
    assert memory.names == file.names and len(file.names) == 59 and torch.equal(memory.images, file.images)
    with pytest.raises(mmlfer.InputError, match="1 of 60 images cannot be read"):
        mmlfer.load_images(faces, bad_one, 32, False, shared)
    none = mmlfer.load_images(faces, folder, 32, True, shared)  # not one is there
    assert none.names == [] and none.images.shape == (0, 3, 32, 32)
    assert not list(folder.iterdir())


def test_images_are_decoded_into_their_place_once(faces_folder, bad_one, monkeypatch):
    """There is no copy, whether all are good or not, nor of the faces of a part."""
    made, empty = [], np.empty
    monkeypatch.setattr(mmlfer.np, "empty", lambda *args, **options: made.append(empty(*args, **options)) or made[-1])
    for folder in (faces_folder, bad_one):
        images = mmlfer.load_images(_rafce.load_labels(folder), folder, 32, True).images
        assert len(images) == 60 - (folder == bad_one) and images.data_ptr() == made[-1].ctypes.data
    faces = mmlfer.load_images(_rafce.load_labels(faces_folder), faces_folder, 32)
    part = faces.of("val").select(slice(1, None, 2))
    assert part.images.dataset.dataset is faces.images
    rows = np.flatnonzero(faces.split == mmlfer.VAL)[1::2]
    assert torch.equal(part.images[torch.arange(len(rows))], faces.images[torch.from_numpy(rows)])
    assert mmlfer.Batches(faces, CFG, torch.device("cpu")).images.data_ptr() == faces.images.data_ptr()


def test_a_disk_that_is_too_small_is_said_before_decoding(faces_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(_scratch, "decode_all", None)
    options = ("train", "--data", faces_folder, "--out", tmp_path / "run", *SMALL, "--scratch", tmp_path)
    line = f"Error: --scratch {tmp_path}: the images take 0.00 GB, and {{}} GB are free (No space left on device); name another folder\n"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1000))
        assert invoke(*options).stderr == line.format("0.00")
    with monkeypatch.context() as patch:  # another program takes the space meanwhile
        patch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=5e9))
        patch.setattr(os, "posix_fallocate", lambda *args: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
        assert invoke(*options).stderr == line.format("5.00")
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_that_is_not_there_is_refused(faces_folder, tmp_path):
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "run", *SMALL, "--scratch", tmp_path / "no")
    assert result.stderr == f"Error: --scratch {tmp_path}/no: No such file or directory; name another folder\n"


DECODING = """
import os, signal, sys
import mmlfer
from mmlfer_commands import _processes, _scratch
shared, seen = _scratch.shared_array(_processes.ALONE, sys.argv[1], (7, 3, 32, 32)), os.listdir(sys.argv[1])
shared[:] = int(sys.argv[2])
print(seen, flush=True)
sys.stdin.readline()
print(shared.min(), shared.max(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_two_runs_in_one_folder_do_not_meet_and_killed_ones_leave_nothing(tmp_path):
    runs = [subprocess.Popen([sys.executable, "-c", DECODING, str(tmp_path), number], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True, env=ENVIRONMENT) for number in "34"]
    assert [run.stdout.readline() for run in runs] == ["[]\n"] * 2  # while they decode, too
    for run, number in zip(runs, "34"):
        assert run.communicate("\n", timeout=60)[0] == f"{number} {number}\n" and run.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("processes,told", [(1, False), (2, True)])
def test_images_of_more_than_half_of_the_memory_are_named(monkeypatch, capsys, processes, told):
    """Each process of the machine has its own."""
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}
    monkeypatch.setattr(os, "sysconf", pages.get)
    monkeypatch.setattr(_scratch, "decode_all", lambda paths, size: ([], {}))
    world = _processes.World(local_size=processes)
    _scratch.decode_shared(world, None, [None] * 50_000, 112)  # 1.9 GB of 4.3 GB
    assert capsys.readouterr().err == told * ("Note: the images take 3.8 GB of 4.3 GB of memory; --scratch DIR keeps them in a file\n")


def test_ahead_gives_all_in_order_and_passes_on_what_fails():
    def items(n):
        yield from range(n)
        raise ValueError("the source")

    given = _inputs.ahead(items(3))
    assert [next(given) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the source"):
        next(given)
    assert list(_inputs.ahead(iter([(1,), (2,)]))) == [(1,), (2,)]
