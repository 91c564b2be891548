"""What runs share: locks on outputs and their places, signals, the options of a resumed run,
versions, and whether a device has bf16."""

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

from mmlfer import HERE, InputError, tell_once, torch

# the options of `train` that are paths, and the words that they take in place of a path
WORDS = {"data": (), "stats": ("wild", "lab", "train"), "weights": ("auto", "imagenet", "none")}

LOCK = ".lock"  # in a folder that one process at a time writes to

# Ctrl-C; the end of a job; a closed terminal; the usual choice for Slurm's --signal
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextlib.contextmanager
def locked(out, lock):
    """Lock a run's folder or file for this process; the system unlocks it when the process ends."""
    import fcntl

    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # two processes that create it at once get the same file
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
        os.register_at_fork(after_in_child=file.close)  # a worker must not keep the lock
        yield


def in_utf8(text):
    """A text that may be a file's name, with ? for what is not in UTF-8."""
    return text.encode(errors="replace").decode()


def name_of(path):
    """The name of a file or folder as one line of text in UTF-8, for tables and figures."""
    return in_utf8(" ".join(Path(str(path)).name.split()))


def check_two_outputs(**options):
    """Refuse two options (name=path or None) that name one file; one device or pipe is allowed."""
    places = [os.path.realpath(path) for path in options.values() if path]
    one_file = len({*places}) < len(places)
    if one_file and (os.path.isfile(places[0]) or not os.path.exists(places[0])):
        raise click.UsageError(f"--{' and --'.join(options)} name one file.")


@contextlib.contextmanager
def writing(path):
    """Add the path of an output to an error that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or not error.errno or isinstance(error, BrokenPipeError):
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror}); free some space or name "
                         "another output") from None


@contextlib.contextmanager
def held(folder):
    """Lock a folder while it is filled; the lock's file is removed at the end."""
    with locked(folder, folder / LOCK):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def remove_parts(*paths):
    """Remove the temporary files that killed writes of these paths left. Call it only with their
    lock, because another process may be writing."""
    for path in paths:
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def caught_signals():
    """Catch the signals that stop a run, so that its step can finish: a list, to which the number
    of each signal that comes is added. A hangup that `nohup` ignores stays ignored."""
    caught, before = [], {}
    for number in STOPS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def versions():
    """The versions that a run was made with. The digest of the source covers the names and the
    content of mmlfer.py and of every file of the commands."""
    import torchvision

    source = hashlib.sha256()
    for path in (HERE / "mmlfer.py", *sorted((HERE / "mmlfer_commands").glob("*.py"))):
        content = path.read_bytes()
        source.update(f"{path.name} {len(content)}\n".encode() + content)
    return {"python": platform.python_version(), "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__), "numpy": np.__version__,
            "source_sha256": source.hexdigest()}


def has_bf16(device):
    """Whether a GPU or an x86 CPU has instructions for bf16. True for other CPUs, of which torch
    does not say."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (platform.machine().lower() not in ("x86_64", "amd64")
            or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def tell_if_slower(precision, device):
    """Say in a line that bf16 saves nothing on this device."""
    if precision == "bf16" and not has_bf16(device):
        kind = "GPU" if device.type == "cuda" else "CPU"
        tell_once("--precision bf16: slower here than float32, because this "
                  f"{kind} has no bf16 instructions")


def given_options(ctx, options):
    """The options of a command that were given on its command line, {name: value}."""
    explicit = click.core.ParameterSource.COMMANDLINE
    return {name: value for name, value in options.items()
            if ctx.get_parameter_source(name) == explicit}


def check_kept(given, own, movable, where):
    """Refuse given options that differ from a resumed run's own, except those that may change."""
    for name, value in given.items():
        if name not in movable and value != own[name]:
            raise InputError(f"{where}: its run has --{name.replace('_', '-')} {own[name]}, not "
                             f"{value}; a resumed run keeps its options")


def stopped_line(last, command, out):
    """The line with which a stopped run says how to go on."""
    return (f"stopped; {last} is written, go on with: mmlfer {command} --out "
            f"{shlex.quote(str(out))} --resume")
