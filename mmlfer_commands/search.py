"""mmlfer search: the best run of a search, by validation."""

import csv
import itertools
import shlex

import click
import yaml

from mmlfer import PATH, InputError
from mmlfer_commands._results import find_files


def validation_accuracy(run):
    """The highest of a finished run's epochs, which chose its best.pt."""
    if not (run / "test.json").exists():
        raise InputError(f"{run}: not finished; go on with: mmlfer train --out "
                         f"{shlex.quote(str(run))} --resume")
    log = csv.DictReader((run / "log.csv").read_text(encoding="utf-8").splitlines())
    accuracy = max(float(row["val_acc"]) for row in log)
    if not 0 <= accuracy <= 1:
        raise ValueError(f"val_acc {accuracy}")
    return accuracy


def best_options(folder, names):
    """Options of the run below a folder with the highest validation accuracy, as `train` takes
    them; of equals the first in order of the paths."""
    found = []
    for path in find_files(folder, "config.yaml"):
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            values = [config[name.replace("-", "_")] for name in names]
            found.append((validation_accuracy(path.parent), values))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise InputError(f"{path.parent}: not a run of `train` ({error!r:.80})") from None
    if not found:
        raise InputError(f"{folder}: no run of `train` below it")
    accuracy, best = max(found, key=lambda one: one[0])
    for name, value, tried in zip(names, best, zip(*(values for _, values in found))):
        warn_of_edge(folder, name, value, tried)
    return shlex.join(itertools.chain(*((f"--{n}", str(v)) for n, v in zip(names, best))))


def warn_of_edge(folder, name, value, tried):
    """Say that a search ended at its grid's edge: a method with a badly searched weight is no
    baseline."""
    if all(type(v) in (int, float) for v in tried) and min(tried) < max(tried):
        for edge, most, beyond in ((min, "smallest", "smaller"), (max, "largest", "larger")):
            if value == edge(tried):
                click.echo(f"Warning: {folder}: {name} {value} is the best and the {most} of those "
                           f"tried; try {beyond} ones too", err=True)


@click.command("search")
@click.argument("runs", type=PATH)
@click.argument("options", nargs=-1, required=True, metavar="OPTION...")
def command(runs, options):
    """Print options of the best run below the folder RUNS, as `train` takes them.

    The best has the highest accuracy on validation. OPTION is an option's name, such as rho. Where
    the best value is the largest or the smallest of those tried, a warning says so.
    """
    click.echo(best_options(runs, options))
