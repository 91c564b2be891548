"""mmlfer search: the best run of a search, by validation."""

import csv
import dataclasses
import shlex

import click
import numpy as np
import yaml

from mmlfer import PATH, Config, InputError, refused
from mmlfer_commands._exports import READING
from mmlfer_commands._inputs import find_files
from mmlfer_commands._results import read_run

# the traits of a run that change with an option
FOLLOW = {"stats": {"statistics", "form"}, "size": {"images"}, "data": {"data", "images"},
          "weights": {"backbone"}, "weights_bgr": {"backbone"}, "weights_norm": {"backbone"}}


def validation_accuracy(run):
    """The highest validation accuracy of a finished run, which is that of its best.pt."""
    if not (run / "test.json").exists():
        raise InputError(f"{run}: unfinished: mmlfer train --resume --out {shlex.quote(str(run))}")
    log = csv.DictReader((run / "log.csv").read_text(encoding="utf-8").splitlines())
    accuracy = max(float(row["val_acc"]) for row in log)
    if not 0 <= accuracy <= 1:
        raise ValueError(f"val_acc {accuracy}")
    return accuracy


def check_alike(one, other, names):
    """Refuse two Tested runs that differ in more than the options searched and the seed."""
    searched = {name.replace("-", "_") for name in names}
    searched = searched.union(*(FOLLOW.get(name, ()) for name in searched))
    traits = [{"method": (run.method, run.method), **run.traits} for run in (one, other)]
    for name in traits[0] | traits[1]:
        (value, shown), (value_2, shown_2) = (t.get(name, (None, "unknown")) for t in traits)
        if name not in searched and value != value_2:
            raise InputError(f"{other.path.parent}: {name.replace('_', '-')} {shown_2}, where "
                             f"{one.path.parent} has {shown}; remove one, or search over it too")


def warn_of_edge(folder, name, value, tried):
    """Warn of a best value at the edge of those tried: too narrow a search is no fair baseline."""
    if all(type(v) in (int, float) for v in tried) and min(tried) < max(tried):
        for edge, most, beyond in ((min, "smallest", "smaller"), (max, "largest", "larger")):
            if value == edge(tried):
                click.echo(f"Warning: {folder}: {name} {value} is the best and the {most} of those "
                           f"tried; try {beyond} ones too", err=True)


@click.command("search")
@click.argument("runs", type=PATH)
@click.argument("options", nargs=-1, required=True, metavar="OPTION...", type=click.Choice(
    [field.name.replace("_", "-") for field in dataclasses.fields(Config)]))
def command(runs, options):
    """Print the options of the best run below the folder RUNS, as `train` takes them.

    The best has the highest accuracy on validation. OPTION is an option's name, such as rho; all
    other options but the seed must be the same in every run. Where the best value is the largest or
    the smallest of those tried, a warning says so.
    """
    read, accuracies, values = [], [], []
    for path in find_files(runs, "config.yaml"):
        with refused(path.parent, "not a run of `train` ({})", *READING):
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            values.append([config[name.replace("-", "_")] for name in options])
            accuracies.append(validation_accuracy(path.parent))
            read.append(read_run(path.parent / "test.json"))
            check_alike(read[0], read[-1], options)
    if not read:
        raise InputError(f"{runs}: no run of `train` below it")
    words, best = [], values[np.argmax(accuracies)]  # of equals the first
    for name, value, tried in zip(options, best, zip(*values)):
        warn_of_edge(runs, name, value, tried)
        if value is not False:  # a flag that is off
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    click.echo(shlex.join(words))
