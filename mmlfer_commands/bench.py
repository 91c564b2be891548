"""mmlfer bench: the cost of a step in each form of the hypergradient."""

import json
import platform
import sys
import time

import click
import numpy as np

from mmlfer import (
    ARCHS, COUNT, FORMS, RAFCE, SIZE, Arch, Config, InputError, Run, brief, device_option,
    json_option, make_base_net, pick_device, progress, torch, train_step)
from mmlfer_commands._hypergrads import without_rule
from mmlfer_commands._processes import in_processes
from mmlfer_commands._rafce import RAFCE_SPLITS
from mmlfer_commands._runs import has_bf16, versions
from mmlfer_commands._stats import load_stats

STEPS = {"forward": "mtl", "plain": "mtl", **dict.fromkeys(FORMS, "mml")}
BENCH = [*STEPS, *(f"{step} bf16" for step in STEPS)]


def bench_call(name, arch, batch_size, size, device):
    """A function that does one of BENCH's steps and waits; InputError if a layer has no rule."""
    step, _, precision = name.partition(" ")
    form = step if step in FORMS else "create_graph"
    cfg = Config(method=STEPS[step], arch=arch, weights="none", size=size, device=device,
                 hypergrad=form, precision=precision or "float32")
    net, rng = make_base_net(arch, vocabulary=RAFCE, size=size), np.random.default_rng(0)
    if step == "jvp" and without_rule(net):
        raise InputError(f"{arch}: no tangent rule for {without_rule(net)}")
    run = Run(cfg, 1, net, load_stats(cfg.stats, RAFCE))
    images = torch.from_numpy(rng.integers(0, 256, (2 * batch_size, 3, size, size), np.uint8))
    x, x_val = images.to(run.device).to(memory_format=torch.channels_last).split(batch_size)
    y_emo = torch.from_numpy(rng.integers(0, len(RAFCE.emotions), batch_size)).to(run.device)
    y_au = torch.from_numpy(rng.random((batch_size, len(RAFCE.aus))) < 0.1).to(run.device).float()

    def call():
        if step == "forward":
            with torch.no_grad():
                run.net(x)
        else:
            train_step(run, (x, y_emo, y_au), (x_val, y_emo, y_au))
        if run.device.type == "cuda":
            torch.cuda.synchronize()

    return call


def bench_peak(job):
    """Peak memory in MB, of process or GPU, after two of a bench_call; None if it cannot."""
    try:
        call = bench_call(*job)
        for _ in range(2):
            call()
    except (InputError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "is not implemented" not in str(error):
            raise
        return None
    if pick_device(job[-1]).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10  # bytes of ru_maxrss: macOS counts by one
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def time_calls(calls, rounds):
    """Seconds of each call by name, in turn; a first round warms up and is not counted."""
    seconds = {name: [] for name in calls}
    for round_ in progress(range(rounds + 1), "timing"):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


@click.command("bench")
@click.option("--arch", default="resnet34", type=Arch(ARCHS), help="Backbone, also timm:NAME.")
@click.option("--batch-size", default=16, type=click.IntRange(min=2), help="Faces in a batch.")
@click.option("--size", default=112, type=SIZE, help="Side of a face, pixels.")
@click.option("--rounds", default=5, type=COUNT, help="Timed rounds; medians are reported.")
@click.option("--precision", default="auto", type=click.Choice(["auto", "float32", "bf16"]),
              help="float32 alone, or bf16 too; auto: too where the device has instructions.")
@json_option
@device_option
def command(arch, batch_size, size, rounds, precision, as_json, device):
    """Time the steps: forward, plain MTL and the bilevel forms, in float32 and in bf16.

    They run in turn on random faces; medians are reported, and the peak memory of each.
    """
    job, names = (arch, batch_size, size, device), BENCH
    if precision == "auto" and not has_bf16(pick_device(device)):
        click.echo("bf16 is left out: without instructions for it, here, it is slower than "
                   "float32; --precision bf16 times it all the same", err=True)
        precision = "float32"
    if precision == "float32":
        names = list(STEPS)
    peaks = in_processes(1, bench_peak, [(name, *job) for name in names], max_tasks_per_child=1)
    try:  # before the timing: on Linux a child's peak is at least its parent's
        peak = dict(zip(names, peaks))
    except (RuntimeError, MemoryError) as error:  # the kinds in which memory runs out
        raise InputError(f"--batch-size {batch_size} --size {size}: cannot be run "
                         f"({brief(error)}); take less") from None
    if left := [name for name in names if peak[name] is None]:
        click.echo(f"left out: {', '.join(left)}: {arch} has a layer without a tangent rule (jvp) "
                   "or without a second derivative (create_graph)", err=True)
        names = [name for name in names if name not in left]
    seconds = time_calls({name: bench_call(name, *job) for name in names}, rounds)
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    rows = {name: {"seconds": t, "per_forward": t / median["forward"],
                   "per_plain": t / median["plain"], "images_per_second": batch_size / t,
                   "peak_mb": peak[name]} for name, t in median.items()}
    click.echo(json.dumps(rows) if as_json else bench_table(rows, *job))


def bench_table(rows, arch, batch_size, size, device):
    """The numbers of --json as text."""
    device, v = pick_device(device), versions()
    hardware = (torch.cuda.get_device_name(device) if device.type == "cuda" else
                f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    lines = [f"{arch}, batch {batch_size}, {size}x{size}, {hardware}, torch {v['torch']}",
             f"{'':17}{'seconds':>9}{'/forward':>10}{'/plain':>8}{'images/s':>10}{'peak MB':>9}"]
    for name, row in rows.items():
        lines.append("{:17}{:9.3f}{:10.2f}{:8.2f}{:10.1f}{:9.0f}".format(name, *row.values()))
    steps = RAFCE_SPLITS["train"] // batch_size
    for name in [name for name in ("plain", "create_graph", "jvp", "jvp bf16") if name in rows]:
        hours = 60 * steps * rows[name]["seconds"] / 3600
        lines.append(f"60 epochs of RAF-CE's {steps} steps, {name}: {hours:.2f} h (computed)")
    return "\n".join(lines)
