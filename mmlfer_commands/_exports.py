"""Many runs' results in three files: runs.csv, a row for each test.json and what config.yaml has
beyond the options; logs.csv, their log.csv; predictions.npz, truth (N,) and the best epochs' pred
(runs, N) in the order of the rows, fold (N,), of whose images alone a row has predictions, and
people (N,), as numbers, where the runs have them."""

import csv
import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import yaml

from mmlfer import refused, write_whole
from mmlfer_commands._outputs import write_rows
from mmlfer_commands._runs import WORDS

LABELS = ("truth", "people")  # of each test image
FILES = ("runs.csv", "logs.csv", "predictions.npz")
READING = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError,
           RecursionError, yaml.YAMLError, csv.Error, zipfile.BadZipFile, zlib.error)


def value_of(cell):
    """The value of a cell, which is JSON, or a text that could be no JSON."""
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def flat(run):
    """A run's content as a row: {"method": "mml", "best": {"n": 4}} -> method, best.n."""
    row = {}
    for name, value in run.items():
        for key, one in (value if isinstance(value, dict) else {"": value}).items():
            plain = isinstance(one, str) and one and value_of(one) is one
            row[f"{name}.{key}" if key else name] = one if plain else json.dumps(one)
    return row


def unflat(row):
    """`flat` backwards; empty cells are left out."""
    run = {}
    for name, cell in row.items():
        outer, dot, key = name.partition(".")
        if cell:
            (run.setdefault(outer, {}) if dot else run)[key or outer] = value_of(cell)
    return run


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_export(path):
    """Yield the path of each run's test.json, its content, and {name: text} of other files."""
    with refused(path, f"not, with {FILES[1]} and {FILES[2]}, as `table --export` writes it ({{}})",
                 *READING):
        logs = {}
        for row in read_csv(path.with_name("logs.csv")):
            name = row.pop("run")
            logs.setdefault(name, [",".join(row)]).append(",".join(row.values()))
        with np.load(path.with_name("predictions.npz")) as labels:
            labels = dict(labels)
        for row, pred in zip(read_csv(path), labels.pop("pred"), strict=True):
            name, run = row.pop("run"), unflat(row)
            config = yaml.safe_dump({**run["options"], **run.pop("config", {})})
            here = labels["fold"] == run.get("fold", 1) if "fold" in labels else ...
            run["best"]["pred"] = pred[here].tolist()
            run |= {name: labels[name][here].tolist() for name in LABELS if name in labels}
            yield (path.parent / name / "test.json", run,
                   {"config.yaml": config, "log.csv": "\n".join(logs.get(name, ()))})


def row_of_run(run, config, names_sha256):
    """A run's row of runs.csv: of every path its name, of the images' names the digest."""
    run = {**run, "names_sha256": names_sha256, "options": {**run["options"]}}
    run["config"] = {name: config[name] for name in config if name not in run["options"]}
    for epoch in ("best", "last"):
        run[epoch] = {name: value for name, value in run[epoch].items()
                      if name not in ("pred", "confusion")}  # the second follows from the first
    for content in (run, run["options"]):
        for name, words in WORDS.items():
            if name in content:
                file = Path(str(content[name])).name
                own = file in words and content[name] not in words  # a file called as a word is
                content[name] = f"./{file}" if own else file
    return flat({name: run[name] for name in run if name not in ("names", *LABELS)})


def write_export(out, rows, logs, **labels):
    """Write the three files: the runs' rows, their logs' rows, and labels, arrays by name."""
    content = io.BytesIO()
    np.savez_compressed(content, **{name: values.astype(np.min_scalar_type(values.max()))
                                    for name, values in labels.items()})
    for name, lines in zip(FILES, (rows, logs)):
        write_rows(lines, dict.fromkeys(name for line in lines for name in line), out / name)
    write_whole(out / FILES[2], content.getvalue())
