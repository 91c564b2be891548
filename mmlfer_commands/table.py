"""mmlfer table: Tables 2 and 3 of finished runs, compared in pairs; the best run of a search."""

import itertools
import json
import math
from pathlib import Path

import click
import numpy as np
import yaml

from mmlfer import (
    EMOTIONS,
    PATH,
    RUN_FILES,
    InputError,
    check_output,
    markdown,
    write_whole,
)
from mmlfer_commands._results import PAPER, digest_of_names, find_files, read_rows

DRAWS = 10_000  # of the bootstrap


# ---------------------------------------------------------------- Tables 2 and 3


def spread(values):
    """Mean and standard deviation over seeds, in percent, as text."""
    values = [100 * v for v in values]
    if np.isnan(values).any():  # no test image
        return "-"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if values[1:] else "")


def spreads(row):
    """spread of Acc., Diag. and each expression's rate."""
    return [spread(values) for values in zip(*(run.rates for run in row.seeds.values()))]


def table_2(rows, truth):
    accuracy, diag, *lines = zip(*map(spreads, rows))
    images = np.bincount(truth, minlength=len(EMOTIONS))
    body = [[emotion, n, *line] for emotion, n, line in zip(EMOTIONS, images, lines)]
    body += [["**Acc.**", len(truth), *accuracy], ["**Diag.**", "", *diag]]
    return markdown(["expression", "images", *(row.title for row in rows)], body)


def table_3(rows, rafce):
    header, body = ["method", "seeds", "Acc.", "Diag."], []
    for row in rows:
        body.append([row.title, len(row.seeds), *spreads(row)[:2]])
        if rafce:
            body[-1].append("{} / {}".format(*PAPER[row.name]) if row.name in PAPER else "")
    return markdown([*header, "paper's Acc. / Diag."] if rafce else header, body)


# ---------------------------------------------------------------- pairs of methods


def mcnemar(b, c):
    """Exact two-sided p of b images that only one model has right and c that only the other."""
    n = b + c
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n)


def resample(right, truth, by_expression):
    """Bootstrap over test images: R runs' shares of right answers, Diag. by_expression.

    right (R, N) bool, truth (N,) -> (DRAWS, R). Each draw takes N images, by_expression as many
    of each expression as there are, with the same images for all runs.
    """
    rng = np.random.RandomState(0)  # its numbers are the same in every version of numpy
    groups = [truth == k for k in np.unique(truth)] if by_expression else [truth >= 0]
    shares = np.zeros((DRAWS, len(right)))
    for group in groups:
        n = group.sum()
        for part in np.array_split(shares, 10):  # views, for the memory's sake
            times = rng.multinomial(n, np.full(n, 1 / n), len(part))  # of each image, (part, n)
            part += times.astype(float) @ right[:, group].T.astype(float) / (n * len(groups))
    return shares


def interval(differences):
    """95 % of the bootstrap's means over seeds, drawn as well. (DRAWS, seeds) -> low, high"""
    n = differences.shape[1]
    times = np.random.RandomState(1).multinomial(n, np.full(n, 1 / n), len(differences))
    return np.percentile((times * differences).sum(1) / n, [2.5, 97.5])


def gain(rates, differences):
    """A difference over seeds, its interval and whether it is signal, as text in percent.

    rates (seeds,) as measured, differences (DRAWS, seeds) of the bootstrap.
    """
    low, high = interval(differences)
    text = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(round(100 * v, 2) + 0.0
                                                for v in (np.mean(rates), low, high)))
    signal = len(rates) > 1 and (low > 1e-9 or high < -1e-9)  # 0 but for rounding is 0
    return f"{text} **signal**" if signal else text


def by_seed(one, other):
    """McNemar's test of two runs, as text."""
    b, c = ((x & ~y).sum() for x, y in ((one.right, other.right), (other.right, one.right)))
    p = mcnemar(int(b), int(c))
    return f"{b}:{c} p" + (f"={p:.3f}" if p >= 0.0005 else "<0.001")


def comparisons(rows):
    """A line for each two methods with a seed in common, the later ones of Table 3 first."""
    runs = [run for row in rows for run in row.seeds.values()]
    right = np.array([run.right for run in runs])
    draws = [resample(right, runs[0].truth, by_expression) for by_expression in (False, True)]
    place = {run.path: i for i, run in enumerate(runs)}
    lines = []
    for one, other in itertools.combinations(reversed(rows), 2):
        pairs = [(one.seeds[s], other.seeds[s]) for s in sorted({*one.seeds} & {*other.seeds})]
        if not pairs:
            continue
        gains = [a.rates[:2] - b.rates[:2] for a, b in pairs]
        a, b = ([place[run.path] for run in side] for side in zip(*pairs))
        lines.append([f"{one.title} - {other.title}", len(pairs),
                      *(gain(g, d[:, a] - d[:, b]) for g, d in zip(zip(*gains), draws)),
                      ", ".join(by_seed(*pair) for pair in pairs)])
    header = ["pair", "seeds", "Acc.", "Diag.", "McNemar, by seed"]
    return markdown(header, lines) if lines else "No pair of methods with a seed in common."


PAIRS = """\
The first method minus the second, in points, over the seeds that both have, with a 95 % interval:
bootstrap over test images (within each expression for Diag.) and seeds together, 10,000 draws.
**signal**: the interval leaves out 0; where two methods do not differ, that still happens about
once in twenty pairs. Two or three seeds make the interval too narrow if they differ by several
points; of one seed it holds for the two nets alone and is never called signal. McNemar's exact
test: images that only the first : only the second has right."""


def results(folder):
    """Tables 2 and 3 of the runs below a folder and the paired comparisons, as Markdown."""
    rows = read_rows(folder)
    runs = [run for row in rows for run in row.seeds.values()]
    rafce, truth = all(run.rafce for run in runs), runs[0].truth
    data = "RAF-CE" if rafce else "Not RAF-CE (by its counts), and so not the paper's columns"
    return f"""# Test results

{data}: {len(truth)} test images. Percent, of each run's best epoch by validation;
mean ± standard deviation over seeds.

## Table 2: each expression

{table_2(rows, truth)}

## Table 3: methods

{table_3(rows, rafce)}

## Paired comparisons over the same test images

{PAIRS}

{comparisons(rows)}
"""


# ---------------------------------------------------------------- searches, raw results


def export_results(paths, folder, out):
    """Copy what tables and curves need of the runs below a folder: test.json without images' names
    and the last epoch's predictions, log.csv and config.yaml; of the data's place its name."""
    if (out.exists() and any(out.iterdir())) or folder.resolve() in out.resolve().parents:
        raise InputError(f"{out}: not empty, or among the runs; name a new folder elsewhere")
    for path in paths:
        run = json.loads(path.read_text(encoding="utf-8"))
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        if "names" in run:
            run["names_sha256"] = digest_of_names(run.pop("names"))
        run["last"].pop("pred", None)
        for content in (run, run.get("options", run), config):
            content["data"] = Path(content["data"]).name
        place = out / path.parent.relative_to(folder)
        write_whole(place / "test.json", (json.dumps(run) + "\n").encode())
        write_whole(place / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        write_whole(place / "log.csv", (path.parent / "log.csv").read_bytes())


@click.command("table")
@click.argument("runs", type=PATH)
@click.option("--out", default="results.md", type=PATH, help="Markdown file, - for none.")
@click.option("--export", "to", type=PATH, help="Copy the results there as well, without images' "
              "names and places: enough for `table` and `plot`.")
def command(runs, out, to):
    """Tables 2 and 3 of every finished run below the folder RUNS, compared in pairs.

    Runs of one row have the same options but for seed, device and the place of the data.
    """
    paths = find_files(runs, "test.json")
    check_output(out, *(path.parent / name for path in paths for name in RUN_FILES))
    text = results(runs)
    if to:
        export_results(paths, runs, to)
    if str(out) != "-":
        write_whole(out, text.encode())
    click.echo(text)
