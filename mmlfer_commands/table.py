"""mmlfer table: Tables 2 and 3 of finished runs, compared in pairs; the best run of a search."""

import csv
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shlex
from pathlib import Path

import click
import numpy as np
import yaml

from mmlfer import (
    EMOTIONS,
    FOLDER,
    METHODS,
    RUN_FILES,
    InputError,
    confusion_matrix,
    expression_metrics,
    write_whole,
)
from mmlfer_commands.crop import check_output

PAPER = {  # Acc. / Diag. by method and statistics
    "stl": (51.49, 28.12), "mtl": (53.25, 29.58), "mal": (52.37, 30.73),
    "am lab": (54.12, 30.15), "am wild": (53.36, 28.02),
    "mml lab": (55.01, 30.85), "mml wild": (55.23, 31.68),
}
SEARCHED = ("rho", "rho_am")
OWN = ("form", "statistics", *SEARCHED)  # differ from method to method as a matter of course

# ---------------------------------------------------------------- finished runs


def find_files(folder, name):
    """The files of a name below a folder, in order; links are followed, no folder is read twice."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if os.path.realpath(place) in seen:
            folders.clear()
        elif name in files and os.path.isfile(os.path.join(place, name)):
            found.append(Path(place, name))
        seen.add(os.path.realpath(place))
    return sorted(found)


@dataclasses.dataclass(frozen=True)
class Tested:
    """What a run's test.json says, checked."""

    path: Path
    method: str
    stats: str  # what p(AU | expression) is called, "" where the method does not use it
    traits: dict  # what makes the method, {name: (value, value as shown)}
    seed: int
    rafce: bool
    names: str  # digest of the test images' names
    truth: np.ndarray  # (N,)
    right: np.ndarray  # (N,) whether the prediction is the truth
    rates: np.ndarray  # (2 + K,) Acc., Diag. and each expression's; NaN where it has no image

    def row(self):
        """What the runs of one row have in common."""
        return self.method, frozenset((name, value) for name, (value, _) in self.traits.items())


def digest(names):
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def stats_name(run):
    """A test.json's statistics in a word; a file of one's own is never called wild or lab."""
    if not METHODS[run["method"]][2]:
        return ""
    stats, form = run["stats"], run["form"]
    name = stats if Path(stats).name in ("wild", "lab") else Path(stats).name
    return name if form == ("lab" if stats == "lab" else "wild") else f"{name}, {form} form"


def find_traits(run):
    """What makes a test.json's method: the options that it reads, but seed, data place and device;
    the contents of its statistics and, where they are known, of the data's labels."""
    sources, options = METHODS[run["method"]], run.get("options")
    traits = {}
    if sources[2]:
        traits["form"] = (run["form"], run["form"])
        traits["statistics"] = (run["stats"], run["stats"])
    if options is None:  # written by an older version
        return {**traits, "options": ("unknown", "unknown")}
    if sources[2]:
        content = run["table_sha256"]
        traits["statistics"] = (content, f"{run['stats']} ({content:.8})")
    if "data_sha256" in run:
        place = Path(options["data"]).name
        traits["data"] = (run["data_sha256"], f"{place} ({run['data_sha256']:.8})")
    unread = {"method", "stats", "form", "seed", "data", "device"} | {*SEARCHED} - {*sources}
    if "meta" not in sources:
        unread |= {"lr_meta", "hypergrad"}
    return traits | {name: (value, value) for name, value in options.items() if name not in unread}


def rates(numbers):
    """Acc., Diag. and each expression's rate among a test.json's numbers, (2 + K,)."""
    per_class = [numbers["per_class"][emotion] for emotion in EMOTIONS]
    return np.array([numbers["accuracy"], numbers["diag"], *per_class], float)


def read_run(path):
    """A run's test.json; its numbers must follow from its predictions."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if "truth" not in run and "confusion" in run["best"] and "pred" not in run["best"]:
            raise InputError(f"{path}: written by an early version, which kept no predictions; "
                             "take it away or train anew")
        best, truth, pred = run["best"], run["truth"], run["best"]["pred"]
        if not truth or len(truth) != len(pred) or not {*truth, *pred} <= {*range(len(EMOTIONS))}:
            raise ValueError("predictions that are none")
        own = expression_metrics(confusion_matrix(truth, pred))
        names = run["names_sha256"] if "names_sha256" in run else digest(run["names"])
        whole = (best["confusion"] == own["confusion"] and best["n"] == len(truth)
                 and np.allclose(rates(best), rates(own), equal_nan=True)
                 and len(run.get("names", truth)) == len(truth)
                 and type(run["seed"]) is int and isinstance(run["rafce"], bool))
        if not whole:
            raise ValueError("numbers that do not fit each other")
        tested = Tested(path, run["method"], stats_name(run), find_traits(run), run["seed"],
                        run["rafce"], names, np.array(truth), np.equal(truth, pred), rates(own))
        hash((tested.row(), names))  # no lists among the options
        return tested
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
            OSError) as error:
        raise InputError(f"{path}: not a run's test.json ({error!r:.80}); take it away") from None


def read_runs(folder):
    """The finished runs below a folder, all of one test set."""
    runs = [read_run(path) for path in find_files(folder, "test.json")]
    if not runs:
        raise InputError(f"{folder}: no test.json below it; `train` writes one at its end")
    for run in runs:
        if run.names != runs[0].names or not np.array_equal(run.truth, runs[0].truth):
            raise InputError(f"{run.path}: other test images than {runs[0].path}; one table takes "
                             "one data set, name the folder of its runs alone")
    return runs


# ---------------------------------------------------------------- rows: the runs of one method


@dataclasses.dataclass(frozen=True)
class Row:
    """The runs of one method, by seed."""

    name: str  # method and statistics
    traits: dict
    seeds: dict  # {seed: Tested}
    title: str = ""  # the name, and what tells the row from others


def gather(runs):
    """The Rows of runs, without their titles."""
    groups = {}
    for run in runs:
        seeds = groups.setdefault(run.row(), {})
        if run.seed in seeds:
            raise InputError(f"{run.path}: the same method, options and seed as "
                             f"{seeds[run.seed].path}; take one away")
        seeds[run.seed] = run
    rows = []
    for (method, _), seeds in groups.items():
        stats = min((run.stats for run in seeds.values()),  # if one file has two names: the paper's
                    key=lambda name: (f"{method} {name}" not in PAPER, name))
        rows.append(Row(f"{method} {stats}".strip(), next(iter(seeds.values())).traits, seeds))
    return rows


def differs(trait, row, rows):
    """Whether other rows have another value: those of the row's name in what methods have of
    their own, such as what is searched for each; all rows in everything else."""
    if trait == "options":  # unknown here; known elsewhere?
        return any(trait not in other.traits for other in rows)
    age = "options" in row.traits
    peers = [other.traits for other in rows if ("options" in other.traits) == age
             and (other.name == row.name or (trait in other.traits and trait not in OWN))]
    return any(traits.get(trait, (None,))[0] != row.traits[trait][0] for traits in peers)


def title(row, rows):
    """A row's name, and the traits that tell it from others."""
    traits = [f"{trait.replace('_', '-')} {shown}" for trait, (_, shown) in row.traits.items()
              if differs(trait, row, rows)]
    return ", ".join([row.name, *traits])


def read_rows(folder):
    """The Rows of the finished runs below a folder, in the order of Table 3."""
    rows = gather(read_runs(folder))
    rows = [dataclasses.replace(row, title=title(row, rows)) for row in rows]
    return sorted(rows, key=lambda row: (list(METHODS).index(row.name.split()[0]), row.title))


# ---------------------------------------------------------------- Tables 2 and 3


def markdown(header, rows):
    return "\n".join(["| " + " | ".join(map(str, r)) + " |"
                      for r in [header, ["---"] * len(header), *rows]])


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
    """A difference over seeds, its interval and whether it is signal, as text in percent.

    d (S, N) by seed and image, weights (N,). Fewer than three seeds are never signal.
    """
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


PAIRS = """\
The first method minus the second, in points, over the seeds that both have, with a 95 % interval
for the methods, not for these nets: analysis of variance by seed and image, both taken as random;
for Diag. an image counts by its expression. **signal**: at least three seeds, and the interval
leaves out 0. In simulations of two equal methods with three or five seeds, 2 to 4 % of the
intervals did so where seeds made no difference (they are rather too wide then), and 5 to 8 % where
seeds differed by 2 points (rather too narrow). With two seeds it was up to 12 %, and none is called
signal. Of one seed the interval is of these two nets alone. McNemar's exact test: images that only
the first : only the second has right."""


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


def export(paths, folder, out):
    """Copy what tables and curves need of the runs below a folder: test.json without images' names
    and the last epoch's predictions, log.csv and config.yaml; of the data's place its name."""
    if (out.exists() and any(out.iterdir())) or folder.resolve() in out.resolve().parents:
        raise InputError(f"{out}: not empty, or among the runs; name a new folder elsewhere")
    for path in paths:
        run = json.loads(path.read_text(encoding="utf-8"))
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        if "names" in run:
            run["names_sha256"] = digest(run.pop("names"))
        run["last"].pop("pred", None)
        for content in (run, run.get("options", run), config):
            content["data"] = Path(content["data"]).name
        place = out / path.parent.relative_to(folder)
        write_whole(place / "test.json", (json.dumps(run) + "\n").encode())
        write_whole(place / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        write_whole(place / "log.csv", (path.parent / "log.csv").read_bytes())


@click.command("table")
@click.argument("runs", type=FOLDER)
@click.option("--out", default="results.md", type=FOLDER, help="Markdown file, - for none.")
@click.option("--best", multiple=True, metavar="OPTION", help="Print instead this option of the "
              "run with the highest validation accuracy, as `train` takes it; may be repeated.")
@click.option("--export", "to", type=FOLDER, help="Copy the results there as well, without images' "
              "names and places: enough for `table` and `plot`.")
def command(runs, out, best, to):
    """Tables 2 and 3 of every finished run below the folder RUNS, compared in pairs.

    Runs of one row have the same options but for seed, device and the place of the data.
    """
    if best:
        return click.echo(best_options(runs, best))
    paths = find_files(runs, "test.json")
    check_output(out, *(path.parent / name for path in paths for name in RUN_FILES))
    text = results(runs)
    if to:
        export(paths, runs, to)
    if str(out) != "-":
        write_whole(out, text.encode())
    click.echo(text)
