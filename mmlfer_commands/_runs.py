"""What runs share: signals, versions, the options of a resumed run, whether a device has bf16."""

import contextlib
import hashlib
import importlib.util
import platform
import shlex
import signal

import click
import numpy as np

from mmlfer import HERE, InputError, tell_once, torch

# the options of `train` that are paths, and the words that they take in place of a path
WORDS = {"data": (), "stats": ("wild", "lab", "train"),
         "weights": ("auto", "imagenet", "timm", "none")}

# Ctrl-C; the end of a job; a closed terminal and what Slurm's --signal usually is, not on Windows
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
              if hasattr(signal, name))


@contextlib.contextmanager
def caught_signals():
    """A list of the signals that came and would stop a run, so that its step can finish. A hangup
    that `nohup` ignores stays ignored."""
    caught, before = [], {}
    for number in STOPS:
        if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def versions():
    """The versions that a run was made with, and a digest of the program's files."""
    import torchvision

    own = hashlib.sha256()
    for path in (HERE / "mmlfer.py", *sorted((HERE / "mmlfer_commands").glob("*.py"))):
        content = path.read_bytes()
        own.update(f"{path.name} {len(content)}\n".encode() + content)
    return {"python": platform.python_version(), "torch": str(torch.__version__), "torchvision":
            str(torchvision.__version__), "numpy": np.__version__, "source_sha256": own.hexdigest()}


def has_bf16(device):
    """Whether a device has instructions for bf16; torch does not say of CPUs other than x86."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (platform.machine().lower() not in ("x86_64", "amd64")
            or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_installed(command, modules, extra):
    """InputError if a module that a command needs is not installed."""
    for module in modules:
        if not importlib.util.find_spec(module):
            raise InputError(f"{command} needs {module}: pip install -e '.[{extra}]'")


def tell_if_slower(precision, device):
    """Say in a line that bf16 saves nothing on this device."""
    if precision == "bf16" and not has_bf16(device):
        kind = "GPU" if device.type == "cuda" else "CPU"
        tell_once(f"--precision bf16: slower than float32: this {kind} has no bf16 instructions")


def given_options(ctx, options):
    """The options of a command that were given on its command line, {name: value}."""
    return {name: value for name, value in options.items()
            if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE}


def check_kept(given, own, movable, where):
    """Refuse given options that differ from a resumed run's own, except those that may change."""
    for name, value in given.items():
        if name not in movable and value != own[name]:
            raise InputError(f"{where}: its run has --{name.replace('_', '-')} {own[name]}, not "
                             f"{value}; a resumed run keeps its options")


def stopped_line(last, command, out):
    """The line with which a stopped run says how to go on."""
    return f"stopped at {last}; go on with: mmlfer {command} --out {shlex.quote(str(out))} --resume"
