"""mmlfer table: Tables 2 and 3 of finished runs, with paired tests."""

import json
import math
from pathlib import Path

import click
import numpy as np

from mmlfer import EMOTIONS, FOLDER, METHODS, InputError, write_whole

PAPER = {  # Acc. / Diag. by method and statistics
    ("stl", ""): (51.49, 28.12), ("mtl", ""): (53.25, 29.58), ("mal", ""): (52.37, 30.73),
    ("am", "lab"): (54.12, 30.15), ("am", "wild"): (53.36, 28.02),
    ("mml", "lab"): (55.01, 30.85), ("mml", "wild"): (55.23, 31.68),
}  # fmt: skip
COMPARED = ("stl", "mtl", "mal", "mal2", "am")  # each with mml, of the same form where it has one


def mcnemar(b, c):
    """Exact two-sided p of b images that only one model has right and c that only the other."""
    n = b + c
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n)


def read_run(path):
    """A test.json, checked, and its (method, statistics if they matter)."""
    try:
        run = json.loads(path.read_text())
        best = run["best"]
        whole = (len(best["pred"]) == len(run["truth"]) == len(run["names"]) == best["n"]
                 and set(best["per_class"]) == set(EMOTIONS) and len(best["confusion"]) == 14
                 and best["accuracy"] + best["diag"] >= 0 and run["seed"] >= 0
                 and isinstance(run["rafce"], bool))
        if not whole:
            raise ValueError("numbers that do not fit each other")
        stats = Path(run["stats"]).name if METHODS[run["method"]][2] else ""
        if stats and run["form"] != ("lab" if stats == "lab" else "wild"):
            stats += f", {run['form']} form"
        return run, (run["method"], stats)
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not a run's test.json ({error!r:.80}); take it away") from None


def read_runs(folder):
    """{(method, statistics): {seed: test.json}} of the finished runs below a folder."""
    runs, first = {}, None
    for path in sorted(Path(folder).rglob("test.json")):
        run, key = read_run(path)
        first = first or (run, path)
        if (run["names"], run["truth"]) != (first[0]["names"], first[0]["truth"]):
            raise InputError(f"{path}: other test images than {first[1]}; one table takes one data "
                             "set, name the folder of its runs alone")
        if run["seed"] in runs.setdefault(key, {}):
            raise InputError(f"{path}: {' '.join(key).strip()} with seed {run['seed']} stands "
                             f"below {folder} twice; take one away")
        runs[key][run["seed"]] = run
    if not runs:
        raise InputError(f"{folder}: no test.json below it; `train` writes one at its end")
    return {key: runs[key] for key in sorted(runs, key=lambda k: (list(METHODS).index(k[0]), k[1]))}


def spread(values):
    """Mean and standard deviation over seeds, in percent, as text."""
    values = [100 * v for v in values if v is not None]
    if not values:
        return "-"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if values[1:] else "")


def best_of(seeds, key):
    return [run["best"][key] for run in seeds.values()]


def markdown(header, rows):
    return "\n".join(["| " + " | ".join(map(str, r)) + " |"
                      for r in [header, ["---"] * len(header), *rows]])


def table_2(runs):
    rows = []
    for k, emotion in enumerate(EMOTIONS):
        n = sum(next(iter(next(iter(runs.values())).values()))["best"]["confusion"][k])
        rows.append([emotion, n, *(spread([run["best"]["per_class"][emotion] for run in s.values()])
                                   for s in runs.values())])
    for name, key in (("Acc.", "accuracy"), ("Diag.", "diag")):
        rows.append([f"**{name}**", "", *(spread(best_of(s, key)) for s in runs.values())])
    return markdown(["expression", "images", *(" ".join(k).strip() for k in runs)], rows)


def table_3(runs, rafce):
    rows = []
    for key, seeds in runs.items():
        paper = "{} / {}".format(*PAPER[key]) if key in PAPER else ""
        rows.append([" ".join(key).strip(), len(seeds), spread(best_of(seeds, "accuracy")),
                     spread(best_of(seeds, "diag")), *([paper] if rafce else [])])
    header = ["method", "seeds", "Acc.", "Diag.", *(["paper's Acc. / Diag."] if rafce else [])]
    return markdown(header, rows)


def compare(one, other):
    """A row of the paired comparison of two methods' runs, by the seeds that both have."""
    gains, tests = [], []
    for seed in sorted(set(one) & set(other)):
        a, b = one[seed], other[seed]
        right_a, right_b = (np.equal(r["best"]["pred"], r["truth"]) for r in (a, b))
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        gains.append(a["best"]["accuracy"] - b["best"]["accuracy"])
        tests.append((only_a, only_b, mcnemar(only_a, only_b)))
    agree = all(g > 0 for g in gains) or all(g < 0 for g in gains)
    signal_ = agree and all(p < 0.05 for *_, p in tests)
    return [spread(gains), ", ".join(f"{a}:{b} p" + (f"={p:.3f}" if p >= 0.0005 else "<0.001")
                                     for a, b, p in tests),
            "signal" if signal_ else "within noise"]


def comparisons(runs):
    rows = []
    for key in [k for k in runs if k[0] == "mml"]:
        for other in [k for k in runs if k[0] in COMPARED and k[1] in ("", key[1])]:
            if set(runs[key]) & set(runs[other]):
                name = f"{' '.join(key)} - {' '.join(other).strip()}"
                rows.append([name, *compare(runs[key], runs[other])])
    header = ["pair", "Acc. gained", "McNemar, by seed", "signal: every seed p < 0.05, one sign"]
    return markdown(header, rows) if rows else "No pair of methods with a seed in common."


def results(folder):
    """Tables 2 and 3 of the runs below a folder and the paired tests, as Markdown."""
    runs = read_runs(folder)
    every = [run for seeds in runs.values() for run in seeds.values()]
    rafce, n = all(run["rafce"] for run in every), every[0]["best"]["n"]
    data = ("RAF-CE" if rafce else "Not RAF-CE (by its counts), and so not the paper's columns")
    return f"""# Test results

{data}: {n} test images. Percent, of each run's best epoch by validation; mean ± standard deviation
over seeds.

## Table 2: each expression

{table_2(runs)}

## Table 3: methods

{table_3(runs, rafce)}

## Paired comparisons over the same test images

McNemar's exact test: images that only the first : only the second of a pair has right.

{comparisons(runs)}
"""


@click.command("table")
@click.argument("runs", type=FOLDER)
@click.option("--out", default="results.md", type=FOLDER, help="Markdown file.")
def command(runs, out):
    """Tables 2 and 3 of every finished run below the folder RUNS, with paired tests."""
    text = results(runs)
    write_whole(out, text.encode())
    click.echo(text)
