"""Finished runs as rows: what `table` and `plot` read."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import numpy as np

from mmlfer import (
    METHODS, Config, InputError, Vocabulary, confusion_matrix, expression_metrics, loss_sources,
    mean_defined, ratio, refused)
from mmlfer_commands._exports import READING, read_export
from mmlfer_commands._inputs import by_numbers, find_files
from mmlfer_commands._outputs import name_of
from mmlfer_commands._runs import WORDS

PRINTED = {  # the paper's Acc. / Diag. by method and statistics
    "stl": (51.49, 28.12), "mtl": (53.25, 29.58), "mal": (52.37, 30.73),
    "am lab": (54.12, 30.15), "am wild": (53.36, 28.02),
    "mml lab": (55.01, 30.85), "mml wild": (55.23, 31.68),
}
READERS = {"rho": "rho", "rho_am": "rho_am", "lr_meta": "meta", "hypergrad": "meta",
           "weight_max": "meta"}  # {option: the source, in METHODS, of methods that read it}
NO_TRAITS = ("method", "stats", "stats_least", "form", "seed", "data", "folds", "fold", "device",
             "weights", "weights_bgr", "weights_norm")  # compared by content, or not at all
OWN = ("form", "statistics", "rho", "rho_am")  # traits that may differ from method to method


@dataclasses.dataclass(frozen=True)
class Tested:
    """The checked content of a run's test.json."""

    path: Path
    method: str
    stats: str  # name of p(AU | expression), "" if the method does not use it
    traits: dict  # what may tell it from other runs, {name: (value, value as shown)}
    seed: int
    rafce: bool
    emotions: tuple  # the K expressions
    names: str  # digest of the test images' names
    truth: np.ndarray  # (N,)
    pred: np.ndarray  # (N,)
    people: list  # N persons, by name or number; of joined and checked runs 0..C-1, (N,)
    au_counts: np.ndarray  # (J, 2), as au_metrics has them
    content: dict  # all of test.json
    texts: dict  # in an export, those of log.csv and config.yaml
    fold: int  # the fold that is tested; 1 without folds
    folds: tuple = ()  # where this joins them, the runs of 1 to K, or one

    @property
    def right(self):
        """Whether the prediction is the truth, (N,)."""
        return self.truth == self.pred

    @functools.cached_property
    def numbers(self):
        """What expression_metrics gives, and the macro F1 of the AUs."""
        confusion = confusion_matrix(self.truth, self.pred, len(self.emotions))
        of_aus = [ratio(2 * both, total) for both, total in self.au_counts.tolist()]
        own = expression_metrics(confusion, self.emotions)
        return {**own, "au_f1_macro": mean_defined(of_aus)}

    def row(self):
        """What runs must have in common to be in one row."""
        return self.method, frozenset((name, value) for name, (value, _) in self.traits.items())


def stats_name(run):
    """The name of a test.json's statistics; a file of the user is never called wild or lab."""
    if not loss_sources(run)[2]:
        return ""
    stats, form = run["stats"], run["form"]
    name = stats if Path(stats).name in WORDS["stats"] else name_of(stats)
    return name if form == ("lab" if stats == "lab" else "wild") else f"{name}, {form} form"


def find_traits(run):
    """The traits of a test.json's run: what it reads, by content, and its method's options; of
    those that the version which wrote it lacked, the defaults."""
    sources, traits = METHODS[run["method"]], {}
    options = {**vars(Config()), **run["options"]}
    if sources[2]:
        content = run["table_sha256"]
        if "fold" in run and run["stats"] == "train":  # each fold has its own
            content = f"{options['stats_least']} or more"
        traits["form"] = (run["form"], run["form"])
        traits["statistics"] = (content, f"{name_of(run['stats'])} ({content:.8})")
    for trait in ("data", "images"):
        content = run[f"{trait}_sha256"]
        traits[trait] = (content, f"{name_of(options['data'])} ({content:.8})")
    traits["backbone"] = (run["backbone"], shown_backbone(run["backbone"], options))
    return traits | {name: (value, value) for name, value in options.items()
                     if name not in NO_TRAITS and READERS.get(name) in (None, *sources)}


def shown_backbone(backbone, options):
    """A backbone's record as text: none, imagenet, or the file's name and digest."""
    if backbone.startswith(("none", "imagenet")):
        return backbone.replace(",", " with")
    file = f"{options['arch']}_casia.pth" if options["weights"] == "auto" else options["weights"]
    return f"{name_of(file)} ({backbone:.8})"


def rates(numbers, emotions):
    """Acc., Diag. and each expression's rate, NaN where it has no image, (2 + K,), from a
    test.json's numbers."""
    per_class = [numbers["per_class"][emotion] for emotion in emotions]
    return np.array([numbers["accuracy"], numbers["diag"], *per_class], float)


def read_run(path, content=None, texts=()):
    """A run's test.json, of an export its content; its numbers must follow from its predictions."""
    try:
        run = content or json.loads(path.read_text(encoding="utf-8"))
        best, truth, pred = run["best"], run["truth"], run["best"]["pred"]
        emotions = Vocabulary.of(run).emotions
        k = len(emotions)
        if not truth or len(truth) != len(pred) or not {*truth, *pred} <= {*range(k)}:
            raise ValueError("predictions that are not of these expressions")
        fold = run.get("fold", 1)
        people = run.get("people") or [(fold, i) for i in range(len(truth))]
        names = (run["names_sha256"] if "names_sha256" in run else
                 hashlib.sha256(json.dumps(run["names"]).encode()).hexdigest())
        au_counts = np.array([*best.get("au_counts", {}).values()], int).reshape(-1, 2)
        tested = Tested(path, run["method"], stats_name(run), find_traits(run), run["seed"],
                        run["rafce"], emotions, names, np.array(truth), np.array(pred), people,
                        au_counts, run, texts, fold)
        own = tested.numbers
        whole = (best.get("confusion", own["confusion"]) == own["confusion"]
                 and best["n"] == len(truth)
                 and np.allclose(rates(best, emotions), rates(own, emotions), equal_nan=True)
                 and len(run.get("names", truth)) == len(people) == len(truth)
                 and type(fold) is int and fold in range(1, run.get("folds", 1) + 1)
                 and ("fold" not in run or len(au_counts) == len(run["aus"]))
                 and type(run["seed"]) is int and isinstance(run["rafce"], bool))
        if not whole:
            raise ValueError("numbers that do not fit each other")
        hash((tested.row(), names, *people))  # no lists among the options
        return tested
    except READING as error:
        raise InputError(f"{path}: not a run's test.json ({error!r:.80}); remove it") from None


def read_part(path, parse, texts=(), command="train", wanted="the folder of a run of `train`"):
    """`parse` of the text of a file, or of an export's; InputError if that is not as expected."""
    with (refused(path, f"not as `{command}` writes it ({{}})", *READING),
          refused(path, f"not there; give {wanted}", FileNotFoundError)):
        return parse(texts[path.name] if texts else path.read_text(encoding="utf-8"))


def read_runs(folder):
    """The finished runs below a folder, folds joined: all of one test set, and of the people that
    one of them knows, or else of as many as there are images."""
    tests = [read_run(path) for path in find_files(folder, "test.json")]
    exports = find_files(folder, "runs.csv")
    tests += [read_run(*one) for path in exports for one in read_export(path)]
    if not tests:
        raise InputError(f"{folder}: no test.json below it; `train` writes one at its end")
    found = {}
    for run in tests:
        other = found.setdefault((run.row(), run.seed), {}).setdefault(run.fold, run)
        if other is not run:
            fold = f"fold {run.fold} of " * ("fold" in run.content)
            raise InputError(f"{run.path}: {fold}the same method, options and seed as "
                             f"{other.path}; remove one")
    runs = [joined(folds) for folds in found.values()]
    first, known = runs[0], min(runs, key=lambda run: len({*run.people}))
    for run in runs:
        if run.emotions != first.emotions:
            raise InputError(f"{run.path}: other expressions, or in another order, than "
                             f"{first.path}; one table takes one vocabulary, name the folder of "
                             "its runs alone")
        if run.names != first.names or not np.array_equal(run.truth, first.truth):
            raise InputError(f"{run.path}: other test images than {first.path}; one table takes "
                             "one data set, name the folder of its runs alone")
        pairs = {*zip(run.people, known.people)}
        if "people" in run.content and len(pairs) != len({*known.people}):
            raise InputError(f"{run.path}: other persons of the same images than {known.path}; "
                             "name the folder of the runs of one labels.csv alone")
    numbers = {person: i for i, person in enumerate(dict.fromkeys(known.people))}
    people = np.array([numbers[person] for person in known.people])
    return [dataclasses.replace(run, people=people) for run in runs]


def joined(folds):
    """Runs that differ in their fold alone, {fold: Tested}, as one of all images. InputError if a
    fold is not there."""
    first = next(iter(folds.values()))
    k = first.content.get("folds", 1)
    if missing := [str(i) for i in range(1, k + 1) if i not in folds]:
        raise InputError(f"{first.path}: of the {k} folds of this method, options and seed there "
                         f"is no test.json of {', '.join(missing)}; train with --fold {missing[0]}")
    runs = tuple(folds[i] for i in range(1, k + 1))
    return dataclasses.replace(
        first, folds=runs, truth=np.concatenate([run.truth for run in runs]),
        pred=np.concatenate([run.pred for run in runs]),
        people=[person for run in runs for person in run.people],
        au_counts=np.sum([run.au_counts for run in runs], 0),
        names=hashlib.sha256("".join(run.names for run in runs).encode()).hexdigest())


@dataclasses.dataclass(frozen=True)
class Row:
    """The runs of one method, by seed."""

    method: str
    name: str  # method and statistics
    traits: dict
    seeds: dict  # {seed: Tested}
    title: str = ""  # the name, and what tells the row from others


def row_of(method, seeds):
    """The Row of a method's runs, {seed: Tested}, without its title."""
    stats = min((run.stats for run in seeds.values()),  # of two names of a file, the paper's
                key=lambda name: (f"{method} {name}" not in PRINTED, name))
    traits = next(iter(seeds.values())).traits
    return Row(method, f"{method} {stats}".strip(), traits, seeds)


def tells_apart(trait, row, rows):
    """Whether another row, if the two are to be compared in a trait, has another value of it.
    Rows of one name are compared in every trait: two of mtl in rho. Others are compared in what
    both have, except OWN: stl and mtl in epochs, but not mtl and am in rho, searched for each."""
    value, _ = row.traits[trait]
    return any(other.traits.get(trait, (None,))[0] != value for other in rows
               if other.name == row.name or (trait in other.traits and trait not in OWN))


def title(row, rows):
    """A row's name, and the traits that tell it from the other rows."""
    traits = [f"{trait.replace('_', '-')} {shown}" for trait, (_, shown) in row.traits.items()
              if tells_apart(trait, row, rows)]
    return ", ".join([row.name, *traits])


def read_results(folder):
    """The Rows of the finished runs below a folder, in the order of Table 3."""
    groups = {}
    for run in read_runs(folder):
        groups.setdefault(run.row(), {})[run.seed] = run
    rows = [row_of(method, seeds) for (method, _), seeds in groups.items()]
    rows = [dataclasses.replace(row, title=title(row, rows)) for row in rows]
    return sorted(rows, key=lambda row: (list(METHODS).index(row.method), by_numbers(row.title)))
