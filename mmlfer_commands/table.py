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
from mmlfer_commands._results import PRINTED, read_part, read_results, read_runs


def spread(values):
    """Mean and standard deviation over seeds, in percent, as text."""
    values = [100 * v for v in values]
    if np.isnan(values).any():  # no test image
        return "-"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if values[1:] else "")


def spreads(row):
    """spread of Acc., Diag. and each expression's rate."""
    return [spread(values) for values in zip(*(run.rates for run in row.seeds.values()))]


def table_2(rows, truth, emotions):
    accuracy, diag, *lines = zip(*map(spreads, rows))
    images = np.bincount(truth, minlength=len(emotions))
    body = [[emotion, n, *line] for emotion, n, line in zip(emotions, images, lines)]
    body += [["**Acc.**", len(truth), *accuracy], ["**Diag.**", "", *diag]]
    return markdown(["expression", "images", *(row.title for row in rows)], body)


def table_3(rows, rafce):
    header, body = ["method", "seeds", "Acc.", "Diag."], []
    for row in rows:
        body.append([row.title, len(row.seeds), *spreads(row)[:2]])
        if rafce:
            body[-1].append("{} / {}".format(*PRINTED[row.name]) if row.name in PRINTED else "")
    return markdown([*header, "paper's Acc. / Diag."] if rafce else header, body)


def mcnemar(b, c):
    """Exact two-sided p of b images that only one model has right and c that only the other."""
    n = b + c
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n)


def t_quantile(df):
    """The t with 95 % of Student's distribution between -t and t, of df >= 1 degrees of freedom.

    The share up to t = sqrt(df) tan(a) is proportional to the integral of cos(x)^(df - 1) from 0
    to a: by Gauss and Legendre's rule, and t by bisection.
    """
    scale = 2 * math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    low, high = 1.9, 12.8  # 1.96 of infinitely many degrees of freedom, 12.71 of one
    for _ in range(50):
        t = (low + high) / 2
        half = math.atan(t / math.sqrt(df)) / 2
        share = scale * half * (weights @ np.cos(half * (nodes + 1)) ** (df - 1))
        low, high = (t, high) if share < 0.95 else (low, t)
    return t


def image_weights(truth, by_expression):
    """What each image counts, (N,), 1 in the mean: alike for Acc., by_expression for Diag."""
    images = np.bincount(truth)[truth]  # of an image's expression
    return len(truth) / (len(np.unique(truth)) * images) if by_expression else np.ones(len(truth))


def mean_squares(d, weights):
    """Two-way analysis of variance, without replication, of e = weights (d - m), m the weighted
    mean of d.

    d (S, N) by seed and image, weights (N,) -> MS images = S sum_i e_i^2 / (N - 1), MS seeds =
    N sum_s e_s^2 / (S - 1), MS rest = sum_si (e_si - e_i - e_s)^2 / ((N - 1) (S - 1)), with e_i and
    e_s the means by image and by seed; and their degrees of freedom. MS seeds and rest of one seed
    are 0.
    """
    seeds, images = d.shape
    e = (d - (d * weights).mean()) * weights
    by_image, by_seed = e.mean(0), e.mean(1, keepdims=True)
    squares = [seeds * (by_image**2).sum(), images * (by_seed**2).sum(),
               ((e - by_image - by_seed) ** 2).sum()]
    free = [images - 1, seeds - 1, (images - 1) * (seeds - 1)]
    return [s / max(1, f) for s, f in zip(squares, free)], free


def interval(d, weights):
    """95 % interval of two methods' difference: images and seeds are random, and crossed.

    d (S, N) by seed and image, weights (N,) -> low, high. The variance of the mean is
    (MS images + MS seeds - MS rest) / (S N) with Satterthwaite's degrees of freedom, or
    MS images / (S N) with N - 1 where seeds differ no more than the rest does.
    """
    if d.shape[1] == 1:
        return -1.0, 1.0  # one image tells nothing
    (images, seeds, rest), free = mean_squares(d, weights)
    variance, df = images, free[0]
    if len(d) > 1 and seeds > rest:
        variance = images + seeds - rest
        df = variance**2 / sum(ms**2 / f for ms, f in zip((images, seeds, rest), free))
        df = max(df, free[1])  # a difference of mean squares can bring it below the seeds' own
    half = t_quantile(df) * math.sqrt(variance / d.size)
    mean = (d * weights).mean()
    return max(mean - half, -1.0), min(mean + half, 1.0)


def gain(d, weights):
    """A difference over seeds, its interval and whether it is signal, as text in percent. d (S, N)
    by seed and image, weights (N,). Fewer than three seeds are never signal."""
    low, high = interval(d, weights)
    text = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(round(100 * v, 2) + 0.0
                                                for v in ((d * weights).mean(), low, high)))
    signal = len(d) > 2 and (low > 1e-9 or high < -1e-9)  # 0 but for rounding is 0
    return f"{text} **signal**" if signal else text


def by_seed(one, other):
    """McNemar's test of two runs, as text."""
    b, c = ((x & ~y).sum() for x, y in ((one.right, other.right), (other.right, one.right)))
    p = mcnemar(int(b), int(c))
    return f"{b}:{c} p" + (f"={p:.3f}" if p >= 0.0005 else "<0.001")


def comparisons(rows):
    """A line for each two methods with a seed in common, the later ones of Table 3 first."""
    truth = next(iter(rows[0].seeds.values())).truth
    weights = [image_weights(truth, by_expression) for by_expression in (False, True)]
    lines = []
    for one, other in itertools.combinations(reversed(rows), 2):
        pairs = [(one.seeds[s], other.seeds[s]) for s in sorted({*one.seeds} & {*other.seeds})]
        if not pairs:
            continue
        d = np.array([a.right.astype(float) - b.right for a, b in pairs])
        lines.append([f"{one.title} - {other.title}", len(pairs), *(gain(d, w) for w in weights),
                      ", ".join(by_seed(*pair) for pair in pairs)])
    header = ["pair", "seeds", "Acc.", "Diag.", "McNemar, by seed"]
    return markdown(header, lines) if lines else "No pair of methods with a seed in common."


def results(folder):
    """Tables 2 and 3 of the runs below a folder and the paired comparisons, as Markdown."""
    rows = read_results(folder)
    runs = [run for row in rows for run in row.seeds.values()]
    rafce, truth = all(run.rafce for run in runs), runs[0].truth
    text = Path(__file__).with_name("results.md").read_text("utf-8")
    data = "RAF-CE" if rafce else "Not RAF-CE (by its counts), and so not the paper's columns"
    return string.Template(text).substitute(
        data=data, images=len(truth), table_2=table_2(rows, truth, runs[0].emotions),
        table_3=table_3(rows, rafce), comparisons=comparisons(rows))


def export_results(runs, folder, out):
    """Write what tables and curves need of the Tested runs below a folder."""
    if (out.exists() and any(out.iterdir())) or folder.resolve() in out.resolve().parents:
        raise InputError(f"{out}: not empty, or among the runs; name a new folder elsewhere")
    rows, logs = [], []
    for run in runs:
        name = run.path.parent.relative_to(folder).as_posix()
        config = read_part(run.path.with_name("config.yaml"), lambda text: {**yaml.safe_load(text)},
                           run.texts)
        rows.append({"run": name, **row_of_run(run.content, config, run.names)})
        log = read_part(run.path.with_name("log.csv"), str.splitlines, run.texts)
        logs += [{"run": name, **row} for row in csv.DictReader(log)]
    preds = [run.content["best"]["pred"] for run in runs]
    write_export(out, rows, logs, runs[0].content["truth"], preds)


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
        export_results(read_runs(runs), runs, to)
    if str(out) != "-":
        write_whole(out, text.encode())
    click.echo(text)
