"""Locks and places of what is written; of `train` and `pretrain` signals, kept options and
versions; and whether a device has bf16."""

import contextlib
import glob
import hashlib
import os
import platform
import shlex
import signal
from pathlib import Path

import click
import numpy as np

from mmlfer import HERE, InputError, tell_once, torch, writing

# what those of `train`'s options that are paths take beside paths
WORDS = {"data": (), "stats": ("wild", "lab", "train"), "weights": ("auto", "imagenet", "none")}

LOCK = ".lock"  # in a folder that one process at a time writes to

# Ctrl-C; what ends a job; a terminal that is closed; what Slurm's --signal is mostly told to send
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextlib.contextmanager
def locked(out, lock):
    """Hold a run's folder or file against other processes; the system lets go with the process."""
    import fcntl

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # of two processes that make it both have the one file
    except OSError as error:
        raise InputError(f"{lock}: cannot be written ({error.strerror}); name another output"
                         ) from None
    with open(lock, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            raise InputError(f"{out}: in use by {holder}; wait for its end or name another "
                             "output") from None
        with writing(lock):
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        os.register_at_fork(after_in_child=file.close)  # a worker that outlives this process
        yield


def name_of(path):
    """The name of a file or folder as a table can show it: in UTF-8, of one line."""
    return " ".join(Path(str(path)).name.split()).encode(errors="replace").decode()


def check_two_outputs(**options):
    """Refuse two options, name=path or None, that name one file; a device or a pipe takes both."""
    places = [os.path.realpath(path) for path in options.values() if path]
    one_file = len({*places}) < len(places)
    if one_file and (os.path.isfile(places[0]) or not os.path.exists(places[0])):
        raise click.UsageError(f"--{' and --'.join(options)} name one file.")


@contextlib.contextmanager
def held(folder):
    """Hold a folder while it is filled; nothing of the lock stays in it."""
    with locked(folder, folder / LOCK):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def remove_parts(*paths):
    """Remove what writes of these files left when they were killed; for the holder of their lock,
    for another process may be at work on its own."""
    for path in paths:
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def caught_signals():
    """What tells a run to stop lets the step finish: a list of the numbers of those that came. A
    hangup that `nohup` has the run ignore stays ignored."""
    caught = []
    before = {number: signal.signal(number, lambda number, frame: caught.append(number))
              for number in STOPS
              if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def versions():
    """What a run was made with; the source's digest covers the module and every command, by names
    and content."""
    import torchvision

    source = hashlib.sha256()
    for path in (HERE / "mmlfer.py", *sorted((HERE / "mmlfer_commands").glob("*.py"))):
        content = path.read_bytes()
        source.update(f"{path.name} {len(content)}\n".encode() + content)
    return {"python": platform.python_version(), "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__), "numpy": np.__version__,
            "source_sha256": source.hexdigest()}


def has_bf16(device):
    """Whether a GPU, or an x86 CPU, has instructions for bf16; of other CPUs torch does not say."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (platform.machine().lower() not in ("x86_64", "amd64")
            or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def tell_if_slower(precision, device):
    """Say in a line that bf16 saves nothing on this device."""
    if precision == "bf16" and not has_bf16(device):
        kind = "GPU" if device.type == "cuda" else "CPU"
        tell_once("--precision bf16: slower here than float32, for this "
                  f"{kind} has no bf16 instructions")


def given_options(ctx, options):
    """Those of a command's options that stood on its command line."""
    explicit = click.core.ParameterSource.COMMANDLINE
    return {name: value for name, value in options.items()
            if ctx.get_parameter_source(name) == explicit}


def check_kept(given, own, movable, where):
    """Refuse given options that differ from a resumed run's own, but for those that may move."""
    for name, value in given.items():
        if name not in movable and value != own[name]:
            raise InputError(f"{where}: its run has --{name.replace('_', '-')} {own[name]}, not "
                             f"{value}; a resumed run keeps its options")


def stopped_line(last, command, out):
    """What a stopped run says of how it goes on."""
    return (f"stopped; {last} is written, go on with: mmlfer {command} --out "
            f"{shlex.quote(str(out))} --resume")
