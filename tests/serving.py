"""`mmlfer serve` as a process of its own, for the tests of its interface and of its page."""

import contextlib
import os
import signal
import subprocess
import sys
from collections import namedtuple

import torch
from conftest import ROOT

Server = namedtuple("Server", "process url folder")


@contextlib.contextmanager
def serving(ckpt, folder):
    """Start it at a free port, with its own folder for temporary files, and another as its current folder."""
    for name in ("tmp", "cwd"):
        (folder / name).mkdir()
    command = [sys.executable, str(ROOT / "mmlfer.py"), "serve", "--ckpt", str(ckpt), "--port", "0"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder / "cwd", env={**os.environ, "TMPDIR": str(folder / "tmp")},
                                   stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert line.endswith("  (Ctrl-C ends it)\n"), (folder / "log").read_text()
        yield Server(process, line.split()[0], folder)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)
        process.stdout.close()


def with_template(ckpt, path):
    """A checkpoint that says how its faces are aligned, so that nothing is measured; and whose Grad-CAM is not empty."""
    state = torch.load(ckpt, weights_only=True)
    state["net"]["fe.weight"] += 0.02  # more of what is seen anywhere speaks for every expression
    torch.save({**state, "template": [[0.35, 0.4], [0.65, 0.4], [0.5, 0.7]]}, path)
    return path
