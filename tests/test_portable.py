"""Other machines: what Windows lacks, another number of cores, the requirements."""

import configparser
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from mmlfer_commands import _processes, pretrain

WINDOWS = """
import builtins, io, os, signal, sys
import PIL.Image, click, filelock, numpy, torch, torchvision, tqdm, yaml  # they know Windows themselves

for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGPIPE", "pthread_sigmask", "pause", "alarm", "setitimer"):
    delattr(signal, name)
for name in ("fork", "register_at_fork", "getuid", "geteuid", "fchmod", "mkfifo", "killpg", "setsid", "sched_getaffinity", "uname"):
    delattr(os, name)
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
own = io.open

def open_as_windows(file, mode="r", buffering=-1, encoding=None, *args, **options):
    if "b" not in mode and encoding in (None, "locale"):
        encoding = "cp1252"
    return own(file, mode, buffering, encoding, *args, **options)

builtins.open = io.open = open_as_windows
import mmlfer
for words in (
        "synth d --n 60 --size 32 --form csv",
        "train --data d --out r --epochs 1 --method mml --arch resnet18 --size 32 --batch-size 8 --weights none --device cpu",
        "train --out r --resume", "eval --ckpt r/best.pt", "predict --ckpt r/best.pt d --csv p.csv"):
    mmlfer.main(words.split(), standalone_mode=False)
"""


def test_train_eval_and_predict_need_nothing_that_windows_lacks(tmp_path):
    """In a folder whose name is not in Windows' own encoding."""
    folder = tmp_path / "얼굴 é"
    folder.mkdir()
    result = subprocess.run([sys.executable, "-c", WINDOWS], cwd=folder, capture_output=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0"})
    assert result.returncode == 0, result.stderr.decode()
    assert "r: complete, nothing to do" in result.stdout.decode()
    assert len((folder / "p.csv").read_text("utf-8").splitlines()) == 61


def test_without_masks_of_signals_nothing_is_blocked(monkeypatch):
    monkeypatch.delattr("signal.pthread_sigmask")
    with _processes.blocked(()):
        pass


@pytest.mark.parametrize("cores,workers", [(None, 1), (1, 1), (3, 3), (64, 8)])
def test_pretrain_reads_with_one_worker_a_core(monkeypatch, tmp_path, cores, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    given = dict.fromkeys(("workers", "margin", "faces", "pairs", "pairs_root")) | {"loss": "cosface", "faces": tmp_path}
    paths = pretrain.run_paths(tmp_path / "w.pth")
    assert pretrain.new_options(paths, {**given}, False).workers == workers
    assert pretrain.new_options(paths, {**given, "workers": 0}, False).workers == 0


def test_the_requirements_name_what_is_imported_and_a_lower_bound():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    required = dict(re.fullmatch(r"([a-z]+)>=([\d.]+)", line).groups() for line in setup["options"]["install_requires"].split())
    assert required.keys() == {"torch", "torchvision", "click", "numpy", "tqdm", "pyyaml", "pillow", "filelock"}
    assert float(required["pillow"]) >= 10.1  # has_transparency_data
    bound = setup["options"]["python_requires"].removeprefix(">=")
    assert f"Python {bound} or later" in (ROOT / "README.md").read_text("utf-8")
    assert tuple(map(int, bound.split("."))) >= (3, 11)  # max_tasks_per_child of ProcessPoolExecutor
