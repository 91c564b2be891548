"""mmlfer table: Tables 2 and 3 of finished runs, compared in pairs."""

import csv
import itertools
import math
import string
from pathlib import Path

import click
import numpy as np
import yaml

from mmlfer import PATH, RUN_FILES, InputError, write_whole
from mmlfer_commands._exports import FILES, row_of_run, write_export
from mmlfer_commands._inputs import find_files
from mmlfer_commands._outputs import check_output, markdown
from mmlfer_commands._results import PRINTED, read_part, rates, read_results, read_runs


PERSONS = """

The images of one person are not independent: in the intervals {} persons take the place of the
images, and McNemar's p is that of the signs of the persons' differences."""


def spread(values):
    """Mean and standard deviation over seeds, in percent, as text."""
    values = 100 * np.array(values, float)
    if np.isnan(values).any():  # no test image
        return "-"
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def spreads(row):
    """spread of Acc., Diag. and each expression's rate."""
    runs = row.seeds.values()
    return [spread(values) for values in zip(*(rates(run.numbers, run.emotions) for run in runs))]


def table_2(rows, truth, emotions):
    accuracy, diag, *lines = zip(*map(spreads, rows))
    images = np.bincount(truth, minlength=len(emotions))
    body = [[emotion, n, *line] for emotion, n, line in zip(emotions, images, lines)]
    body += [["**Acc.**", len(truth), *accuracy], ["**Diag.**", "", *diag]]
    return markdown(["expression", "images", *(row.title for row in rows)], body)


def table_3(rows, rafce):
    header, body = ["method", "seeds", "Acc.", "Diag."], []
    folds = len(next(iter(rows[0].seeds.values())).folds)
    more = {"macro F1": "macro_f1", "AU F1": "au_f1_macro"} if folds > 1 else {}
    header += more
    for row in rows:
        others = [[run.numbers[key] for run in row.seeds.values()] for key in more.values()]
        body.append([row.title, len(row.seeds), *spreads(row)[:2], *map(spread, others)])
        if rafce:
            body[-1].append("{} / {}".format(*PRINTED[row.name]) if row.name in PRINTED else "")
    return markdown([*header, "paper's Acc. / Diag."] if rafce else header, body)


def mcnemar(d):
    """Exact two-sided p that the sum of d (C,), whole numbers, is so far from 0, if each d_c is as
    likely + as -: for -1, 0, 1 of single images McNemar's test."""
    p = np.ones(1)  # of X = 0, 1 ..., the sum of the parts that have the sign -
    for part in np.abs(d[d != 0]).astype(int):
        p = (np.pad(p, (0, part)) + np.pad(p, (part, 0))) / 2
    sums = len(p) - 1 - 2 * np.arange(len(p))
    return min(1.0, p[np.abs(sums) >= abs(d.sum())].sum())


def t_quantile(df):
    """The t with 95 % of Student's distribution between -t and t, of df >= 1 degrees of freedom:
    the share up to t = sqrt(df) tan(a) is proportional to the integral of cos(x)^(df - 1) from 0
    to a, here by the midpoint rule."""
    x = np.linspace(0, min(math.pi / 2, 20 / math.sqrt(df)), 20_001)
    parts = np.cos((x[1:] + x[:-1]) / 2) ** (df - 1)
    share = np.cumsum(parts) / parts.sum()
    return math.sqrt(df) * math.tan(np.interp(0.95, share, x[1:]))


def image_weights(truth, by_expression):
    """What each image counts, (N,), 1 in the mean: alike for Acc., by_expression for Diag."""
    images = np.bincount(truth)[truth]  # of an image's expression
    return len(truth) / (len(np.unique(truth)) * images) if by_expression else np.ones(len(truth))


def mean_squares(d, weights, people=None):
    """Two-way analysis of variance, without replication, of e = weights (d - m), m the weighted
    mean of d. With people (N,), 0..C-1, whose images are not independent, each one's sum of e takes
    the place of an image: N is C below. It is multiplied by C / N, so that the mean is as before,
    and by (1 - 1/C) / (1 - n_c / N), because one with many images n_c pulls m to itself.

    d (S, N) by seed and image, weights (N,) -> MS images = S sum_i e_i^2 / (N - 1), MS seeds =
    N sum_s e_s^2 / (S - 1), MS rest = sum_si (e_si - e_i - e_s)^2 / ((N - 1) (S - 1)), with e_i and
    e_s the means by image and by seed; and their degrees of freedom. MS seeds and rest of one seed
    are 0.
    """
    e = (d - (d * weights).mean()) * weights
    if people is not None:
        share = np.bincount(people) / people.size
        e = by_person(e, people) * (len(share) - 1) / people.size / np.maximum(1 - share, 1e-9)
    seeds, images = e.shape
    by_image, by_seed = e.mean(0), e.mean(1, keepdims=True)
    squares = [seeds * (by_image**2).sum(), images * (by_seed**2).sum(),
               ((e - by_image - by_seed) ** 2).sum()]
    free = [images - 1, seeds - 1, (images - 1) * (seeds - 1)]
    return [s / max(1, f) for s, f in zip(squares, free)], free


def by_person(values, people):
    """Sums of values (.., N) over each person's images, (.., C). people (N,), 0..C-1"""
    return np.stack([np.bincount(people, row) for row in values])


def interval(d, weights, people=None):
    """95 % interval of two methods' difference: images, or people, and seeds are random, and
    crossed.

    d (S, N) by seed and image, weights (N,), people (N,) -> low, high. The variance of the mean is
    (MS images + MS seeds - MS rest) / (S N) with Satterthwaite's degrees of freedom, or
    MS images / (S N) with N - 1 where seeds differ no more than the rest does.
    """
    (images, seeds, rest), free = mean_squares(d, weights, people)
    if free[0] == 0:
        return -1.0, 1.0  # one image tells nothing
    variance, df = images, free[0]
    if len(d) > 1 and seeds > rest:
        variance = images + seeds - rest
        df = variance**2 / sum(ms**2 / f for ms, f in zip((images, seeds, rest), free))
        df = max(df, free[1])  # a difference of mean squares can bring it below the seeds' own
    half = t_quantile(df) * math.sqrt(variance / (len(d) * (free[0] + 1)))
    mean = (d * weights).mean()
    return max(mean - half, -1.0), min(mean + half, 1.0)


def gain(d, weights, people=None):
    """A difference over seeds, its interval and whether it is signal, as text in percent. d (S, N)
    by seed and image, weights and people (N,). Fewer than three seeds are never signal."""
    low, high = interval(d, weights, people)
    text = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(round(100 * v, 2) + 0.0
                                                for v in ((d * weights).mean(), low, high)))
    signal = len(d) > 2 and (low > 1e-9 or high < -1e-9)  # 0 but for rounding is 0
    return f"{text} **signal**" if signal else text


def by_seed(one, other):
    """McNemar's test of two runs, as text."""
    b, c = ((x & ~y).sum() for x, y in ((one.right, other.right), (other.right, one.right)))
    p = mcnemar(by_person([one.right.astype(int) - other.right], one.people)[0])
    return f"{b}:{c} p" + (f"={p:.3f}" if p >= 0.0005 else "<0.001")


def comparisons(rows):
    """A line for each two methods with a seed in common, the later ones of Table 3 first."""
    first, lines = next(iter(rows[0].seeds.values())), []
    weights = [image_weights(first.truth, by_expression) for by_expression in (False, True)]
    for one, other in itertools.combinations(reversed(rows), 2):
        pairs = [(one.seeds[s], other.seeds[s]) for s in sorted({*one.seeds} & {*other.seeds})]
        if not pairs:
            continue
        d = np.array([a.right.astype(float) - b.right for a, b in pairs])
        gains = [gain(d, w, first.people) for w in weights]
        lines.append([f"{one.title} - {other.title}", len(pairs), *gains,
                      ", ".join(by_seed(*pair) for pair in pairs)])
    header = ["pair", "seeds", "Acc.", "Diag.", "McNemar, by seed"]
    return markdown(header, lines) if lines else "No pair of methods with a seed in common."


def results(folder):
    """Tables 2 and 3 of the runs below a folder and the paired comparisons, as Markdown."""
    rows = read_results(folder)
    runs = [run for row in rows for run in row.seeds.values()]
    rafce, truth = all(run.rafce for run in runs), runs[0].truth
    people, folds = max(runs[0].people) + 1, len(runs[0].folds)
    text = Path(__file__).with_name("results.md").read_text("utf-8")
    return string.Template(text).substitute(
        data="RAF-CE" if rafce else "Not RAF-CE (by its counts), and so not the paper's columns",
        images=len(truth), folds=f" in {folds} folds" * (folds > 1),
        persons=PERSONS.format(people) if people < len(truth) else "", table_3=table_3(rows, rafce),
        table_2=table_2(rows, truth, runs[0].emotions), comparisons=comparisons(rows))


def export_results(folder, out):
    """Write what tables and curves need of the finished runs below a folder."""
    if (out.exists() and any(out.iterdir())) or folder.resolve() in out.resolve().parents:
        raise InputError(f"{out}: not empty, or among the runs; name a new folder elsewhere")
    wholes, rows, logs = read_runs(folder), [], []
    runs, whole = [run for joined in wholes for run in joined.folds], wholes[0]
    for run in runs:
        name = run.path.parent.relative_to(folder).as_posix()
        config = read_part(run.path.with_name("config.yaml"), lambda text: {**yaml.safe_load(text)},
                           run.texts)
        rows.append({"run": name, **row_of_run(run.content, config, run.names)})
        log = read_part(run.path.with_name("log.csv"), str.splitlines, run.texts)
        logs += [{"run": name, **row} for row in csv.DictReader(log)]
    labels, pred = {"truth": whole.truth}, np.zeros((len(runs), len(whole.truth)), int)
    labels["fold"] = np.concatenate([0 * run.truth + run.fold for run in whole.folds])
    if max(whole.people) + 1 < len(whole.people):
        labels["people"] = whole.people
    for run, row in zip(runs, pred):
        row[labels["fold"] == run.fold] = run.pred
    write_export(out, rows, logs, pred=pred, **labels)


@click.command("table")
@click.argument("runs", type=PATH)
@click.option("--out", default="results.md", type=PATH, help="Markdown file, - for none.")
@click.option("--export", "to", type=PATH, help="Also write the runs' results there, in three "
              "files (no image names, no paths).")
def command(runs, out, to):
    """Make Tables 2 and 3 of every finished run below the folder RUNS, compared in pairs.

    Runs of one row have the same options but for seed, device and the places of files; statistics,
    labels, images and backbone are the same by content.
    """
    paths = find_files(runs, "test.json") + find_files(runs, FILES[0])
    check_output(out, *(path.parent / name for path in paths for name in RUN_FILES + FILES))
    text = results(runs)
    if to:
        export_results(runs, to)
    if str(out) != "-":
        write_whole(out, text.encode())
    click.echo(text)
