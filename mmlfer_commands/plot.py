"""mmlfer plot: curves of runs (Fig. 5), a confusion matrix, a video's probabilities over time."""

import contextlib
import csv
import itertools
import json
import re

import click
import numpy as np
import yaml

from mmlfer import AU_NAMES, PATH, InputError, Vocabulary, learned, plural
from mmlfer_commands._figures import pyplot, save_figure
from mmlfer_commands._inputs import find_files
from mmlfer_commands._results import read_part, read_results

WEIGHTS = {"w_au": r"$\omega^{AU}$", "w_am": r"$\omega^{AM}$"}


def plot_curves(log, steps, path):
    """Figure 5: accuracy over iterations, and the mean weights of each epoch. log: {column of
    log.csv: one number per epoch}; steps: iterations of an epoch."""
    with curves(12, path) as (left, right):
        x = steps * log["epoch"]
        for key, name in (("val_acc", "Acc."), ("val_diag", "Diag.")):
            left.plot(x, 100 * log[key], ".-", label=f"validation {name}")
        for key, name in WEIGHTS.items():
            right.plot(x, log[key], ".-", label=f"mean {name}")
        left.set(ylim=(0, 100))


@contextlib.contextmanager
def curves(width, path):
    """Two places to draw accuracy and weights over iterations; the figure is then written, all of
    its curves within the picture."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(width, 4), layout="constrained")
    left.set(ylabel="%", title="(a) accuracy")
    right.set(ylabel="weight", title="(b) weights, mean of each epoch")
    yield left, right
    top = max([1, *(max(line.get_ydata()) for line in right.lines)])  # rho may be above 1
    right.set(ylim=(-0.02 * top, 1.02 * top))
    for axis in (left, right):
        axis.set(xlabel="iteration", xlim=(0, 1.02 * max(left.lines[0].get_xdata())))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.lines:  # no weights where no method learns them
            axis.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, over none
    save_figure(figure, path)


def plot_methods(rows, path):
    """Figure 5 of several methods, each the mean of its seeds. rows: Rows of read_results."""
    with curves(14, path) as (left, right):
        for i, row in enumerate(rows, 1):
            runs = [part for run in row.seeds.values() for part in run.folds]
            folders = [run.path.parent for run in runs]
            logs = [read_part(run.path.with_name("log.csv"), parse_log, run.texts) for run in runs]
            check_lengths(folders, logs)
            steps = read_part(folders[0] / "config.yaml", parse_steps, runs[0].texts)
            mean = {key: np.mean([log[key] for log in logs], 0) for key in logs[0]}
            color = f"C{len(rows) - i}"  # the last row, the paper's method, has the first colour
            title = row.title.replace("$", r"\$")  # no mathematics in a file's name
            marker = "." if len(mean["epoch"]) == 1 else ""  # one point makes no line
            look = {"color": color, "marker": marker}
            left.plot(steps * mean["epoch"], 100 * mean["val_acc"], label=title, **look)
            for i, (key, style) in enumerate(zip(WEIGHTS, ("-", "--")), 1):
                if i in learned(row.method):
                    right.plot(steps * mean["epoch"], mean[key], style,
                               label=f"{title}, {WEIGHTS[key]}", **look)
        left.set(title="(a) validation accuracy, mean of the seeds")


def check_lengths(folders, logs):
    """Refuse seeds of one method whose logs differ in length: they have no mean."""
    lengths = [len(log["epoch"]) for log in logs]
    short, longest = lengths.index(min(lengths)), lengths.index(max(lengths))
    if short != longest:
        raise InputError(f"{folders[short]}/log.csv: {lengths[short]} epochs, but "
                         f"{lengths[longest]} in {folders[longest]}/log.csv; train this run again")


def plot_confusion(numbers, path):
    """The confusion matrix of parse_numbers: colours are shares of a row, numbers are counts."""
    confusion = np.array(numbers["confusion"])  # (K, K)
    n, emotions = confusion.sum(1), numbers["emotions"]
    figure, axis = pyplot().subplots(figsize=(8.5, 7.5), layout="constrained")
    share = 100 * confusion / np.maximum(n, 1)[:, None]
    picture = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(n)), emotions, rotation=60, ha="right", rotation_mode="anchor",
                    parse_math=False)
    axis.set_yticks(range(len(n)), [f"{e} ({c})" for e, c in zip(emotions, n)], parse_math=False)
    for (k, j), count in np.ndenumerate(confusion):
        if count:
            axis.text(j, k, count, ha="center", va="center", fontsize=8,
                      color="white" if share[k, j] > 50 else "black")
    title = (f"{n.sum()} test images, Acc. {100 * numbers['accuracy']:.2f} %, "
             f"Diag. {100 * numbers['diag']:.2f} %")
    axis.set(xlabel="predicted", ylabel="true (images)", title=title)
    figure.colorbar(picture, ax=axis, label="% of the row", shrink=0.8)
    save_figure(figure, path)


def parse_log(text):
    """log.csv's columns that the curves need, as arrays."""
    rows = list(csv.DictReader(text.splitlines()))
    if not rows:
        raise ValueError("no epoch in it")
    columns = ("epoch", "val_acc", "val_diag", "w_au", "w_am")
    log = {key: np.array([float(row[key]) for row in rows]) for key in columns}
    if not all(np.isfinite(values).all() for values in log.values()):
        raise ValueError("a number that is not finite")
    return log


def parse_steps(text):
    """The steps of an epoch, from config.yaml."""
    steps = yaml.safe_load(text)["steps_per_epoch"]
    if type(steps) is not int or not 0 < steps < 2**31:
        raise ValueError("steps_per_epoch is no count")
    return steps


def parse_numbers(text):
    """The numbers of the best epoch in test.json, and its expressions."""
    content = json.loads(text)
    numbers = {**content["best"], "emotions": Vocabulary.of(content).emotions}
    confusion, k = np.array(numbers["confusion"]), len(numbers["emotions"])
    if (confusion.shape != (k, k) or confusion.dtype.kind != "i"
            or confusion.min() < 0 or confusion.max() >= 2**31):
        raise ValueError(f"confusion is not {k} rows of {k} counts")
    if not all(0 <= numbers[key] <= 1 for key in ("accuracy", "diag")):
        raise ValueError("accuracy and diag are no fractions")
    return numbers


# ---------------------------------------------------------------- a table of `video`

PANELS, COLUMNS = 5, 1000  # most faces of one figure, and most columns; one is a mean over frames


def parse_table(text):
    """The times (n,) of a table's frames, the names of its probabilities, and {face_id: (index of
    its frames, probabilities (frames, names))}."""
    table = csv.DictReader(text.splitlines())
    names = [name for name in table.fieldnames or ()
             if re.fullmatch(r"(p_.+(?<!_smooth)|AU\d+_p)", name)]
    times, faces = {}, {}
    for row in table:
        times.setdefault(int(row["frame"]), float(row["timestamp"]))
        if row["success"] == "1":
            index, rows = faces.setdefault(int(row["face_id"]), ([], []))
            index.append(len(times) - 1)
            rows.append([float(row[name] or "nan") for name in names])
    if not times:
        raise ValueError("no frame in it")
    times = np.array(list(times.values()))
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError("times that go back")
    return times, names, {i: (np.array(index), np.array(rows, np.float32))
                          for i, (index, rows) in faces.items()}


def column_means(index, rows, n, wide):
    """The mean of the rows (frames, names) in each column of a figure, which takes `wide` of the n
    frames; nan if no row is in it. index: the rows' frames. -> (names, columns)"""
    columns = -(-n // wide)
    sums, counts = np.zeros((columns, rows.shape[1])), np.zeros((columns, 1))
    np.add.at(sums, index // wide, rows)
    np.add.at(counts, index // wide, 1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).T


def band_label(name):
    """The label of a band: p_happily_sad -> happily sad; AU12_p -> 12 lip corner puller."""
    if name.startswith("p_"):
        return name[2:].replace("_", " ")
    au = int(name[2:-2])
    return f"{au} {AU_NAMES.get(au, '')}"


def plot_table(times, names, faces, table, path):
    """Probabilities over time as bands of colour, those of expressions above those of AUs; a panel
    for each of the faces that are seen longest. InputError if the table has none."""
    if not faces:
        raise InputError(f"{table}: no face in its {plural(len(times), 'frame')}: nothing to draw")
    n = len(times)
    wide = -(-n // COLUMNS)
    step = times[-1] - times[-2] if n > 1 else 1
    edges = np.append(times[::wide], times[-1] + step)
    chosen = sorted(sorted(faces, key=lambda i: -len(faces[i][0]))[:PANELS])
    parts = [[k for k, name in enumerate(names) if name.startswith("AU") == is_au]
             for is_au in (False, True)]
    parts = [part for part in parts if not np.isnan(faces[chosen[0]][1][:, part]).all()]
    heights = [len(part) for part in parts] * len(chosen)
    size = 9, 0.6 * len(chosen) + 0.15 * sum(heights)
    figure, axes = pyplot().subplots(len(heights), squeeze=False, sharex=True, figsize=size,
                                     layout="constrained", height_ratios=heights)
    means = {i: column_means(*faces[i], n, wide) for i in chosen}
    for axis, (i, part) in zip(axes[:, 0], itertools.product(chosen, parts)):
        mesh = axis.pcolormesh(edges, np.arange(len(part) + 1), means[i][part], vmin=0, vmax=1,
                               cmap="magma_r", rasterized=True)
        axis.set_yticks(np.arange(len(part)) + 0.5, [band_label(names[k]) for k in part],
                        fontsize=7, parse_math=False)
        axis.tick_params(length=0)
        axis.invert_yaxis()
        if part is parts[0]:
            axis.set_title(f"face {i}, {len(faces[i][0])} of {n} frames", fontsize=9)
    axis.set_xlabel("seconds")
    figure.colorbar(mesh, ax=axes, label="probability", shrink=min(1, 4 / len(chosen) / 6),
                    aspect=30)
    if len(faces) > len(chosen):
        figure.suptitle(f"{len(chosen)} of {len(faces)} faces, those seen longest", fontsize=9)
    save_figure(figure, path)


@click.command("plot")
@click.argument("run", type=PATH)
def command(run):
    """Draw the curves (Figure 5) and the confusion matrix of a run, or a video's AUs over time.

    Writes RUN/curves.png and RUN/confusion.png; of a run that is not finished the curves alone,
    and of a folder of finished runs one curves.png, a line for each method. Of a table NAME.csv
    that `mmlfer video` wrote, NAME.png: expressions and AUs over time, one panel per face.
    """
    if run.suffix == ".csv" and not run.is_dir():
        table = read_part(run, parse_table, (), "video", "a table that `video` wrote")
        plot_table(*table, run, run.with_suffix(".png"))
        return click.echo(run.with_suffix(".png"))
    tested, curves = (run / "test.json").exists(), run / "curves.png"
    if not (tested or (run / "log.csv").exists()) and (find_files(run, "test.json")
                                                       or find_files(run, "runs.csv")):
        plot_methods(read_results(run), curves)
        return click.echo(curves)
    log = read_part(run / "log.csv", parse_log)
    steps = read_part(run / "config.yaml", parse_steps)
    numbers = read_part(run / "test.json", parse_numbers) if tested else None
    plot_curves(log, steps, curves)
    click.echo(curves)
    if tested:
        plot_confusion(numbers, run / "confusion.png")
        click.echo(run / "confusion.png")
    else:
        click.echo(f"{run}: not tested yet (no test.json), and so no confusion.png; "
                   "`mmlfer train --resume` finishes it", err=True)
