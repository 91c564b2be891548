"""mmlfer plot: Fig. 5 and the confusion matrix of a run."""

import csv
import io
import json
from pathlib import Path

import click
import numpy as np
import yaml

from mmlfer import EMOTIONS, FOLDER, InputError, write_whole


def pyplot():
    """Matplotlib without a screen."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("figures need matplotlib: pip install -e '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_figure(plt, figure, path):
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png", dpi=150)
    except ValueError as error:
        raise InputError(f"{path}: {error}; name it like figure.png") from None
    plt.close(figure)
    write_whole(path, buffer.getvalue())


def plot_curves(log, steps, path):
    """Fig. 5: accuracy over iterations, and the mean weights of each epoch."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    x = [int(row["epoch"]) * steps for row in log]
    for key, name in (("val_acc", "Acc."), ("val_diag", "Diag.")):
        left.plot(x, [100 * float(row[key]) for row in log], ".-", label=f"validation {name}")
    left.set(xlabel="iteration", ylabel="%", title="(a) accuracy", ylim=(0, 100))
    for key, name in (("w_au", r"$\omega^{AU}$"), ("w_am", r"$\omega^{AM}$")):
        right.plot(x, [float(row[key]) for row in log], ".-", label=f"mean {name}")
    right.set(xlabel="iteration", ylabel="weight", title="(b) weights, mean of each epoch",
              ylim=(-0.02, 1.02))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(plt, figure, path)


def plot_confusion(numbers, path):
    """The confusion matrix, each row as shares of its images, with counts."""
    plt = pyplot()
    confusion = np.array(numbers["confusion"])
    n = confusion.sum(1)
    figure, axis = plt.subplots(figsize=(8.5, 7.5), layout="constrained")
    share = 100 * confusion / np.maximum(n, 1)[:, None]
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(n)), EMOTIONS, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(n)), [f"{e} ({c})" for e, c in zip(EMOTIONS, n)])
    for (k, j), count in np.ndenumerate(confusion):
        if count:
            axis.text(j, k, count, ha="center", va="center", fontsize=8,
                      color="white" if share[k, j] > 50 else "black")
    axis.set(xlabel="predicted", ylabel="true (images)", title=f"test, Acc. "
             f"{100 * numbers['accuracy']:.2f} %, Diag. {100 * numbers['diag']:.2f} %")
    figure.colorbar(picture, ax=axis, label="% of the row", shrink=0.8)
    save_figure(plt, figure, path)


@click.command("plot")
@click.argument("run", type=FOLDER)
def command(run):
    """Fig. 5 and the confusion matrix of a run: RUN/curves.png and RUN/confusion.png."""
    try:
        log = list(csv.DictReader((run / "log.csv").read_text().splitlines()))
        config = yaml.safe_load((run / "config.yaml").read_text())
        numbers = json.loads((run / "test.json").read_text())["best"]
        plot_curves(log, int(config["steps_per_epoch"]), run / "curves.png")
        plot_confusion(numbers, run / "confusion.png")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{run}: not a finished run of `train` ({why})") from None
    click.echo(f"{run}/curves.png\n{run}/confusion.png")
