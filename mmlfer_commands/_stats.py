"""AU statistics (Sec. 3.2): p(AU | expression), the paper's Table 1 or your own, as an array."""

import math
from pathlib import Path

import numpy as np
import yaml

from mmlfer import (
    AUS, AU_NAMES, HERE, NOT_CODED, OBSERVED, RAFCE, InputError, Vocabulary, brief, plural,
    tell_once, torch)
from mmlfer_commands._labels import recode

PAPERS = ("wild", "lab")


def load_stats(name, vocabulary=RAFCE):
    """p(AU | expression) of "wild", "lab" (Table 1) or a YAML file. -> (K, J) float array.

    Values below 20 % are set to 0; an expression whose values are all 0 is left out of L^AM. What
    the vocabulary does not have is dropped, such as AU 11 of the lab table for RAF-CE.
    """
    rows = rows_of_stats(name, vocabulary)
    aus = sorted({au for row in rows.values() for au in row} - {*vocabulary.aus})
    emotions = [emotion for emotion in rows if emotion not in vocabulary.emotions]
    for what, left in (("AU", aus), ("expression", emotions)):
        if left and name not in PAPERS:
            tell_once(f"{name}: left out, not in the labels: {what} {', '.join(map(str, left))}")
    p = [rows[emotion].get(au, 0) for emotion in vocabulary.emotions for au in vocabulary.aus]
    table = np.array(p, float).reshape(len(vocabulary.emotions), len(vocabulary.aus))
    return np.where(table >= OBSERVED, table, 0)


def rows_of_stats(name, vocabulary):
    """The rows of "wild", "lab" or a YAML file, {expression: {AU: fraction}}, none lacking."""
    if name in PAPERS:
        installed = HERE / "mmlfer_stats"
        own = installed if installed.is_dir() else HERE / "stats"
        rows = yaml.safe_load((own / f"{name}.yaml").read_text(encoding="utf-8"))
    else:
        rows = read_stats(name)
    missing = [emotion for emotion in vocabulary.emotions if emotion not in rows]
    if missing and name in PAPERS:
        raise InputError(f"statistics {name}: for RAF-CE, without {missing[0]!r}; --stats train "
                         "counts your training rows, `mmlfer stats --out` writes such a file")
    if missing:
        raise InputError(f"{name}: no row for {', '.join(missing)}, as the labels have; add it, or "
                         "{} in its place to leave an expression out of L^AM")
    return rows


def frequencies(faces):
    """p(AU | expression) of the coded rows (K, J), NaN without any, and their numbers (K, J)."""
    y_au = [faces.y_au[faces.y_emo == k] for k in range(len(faces.vocabulary.emotions))]
    coded = np.stack([(y != NOT_CODED).sum(0) for y in y_au])
    with np.errstate(invalid="ignore"):
        return np.stack([(y == 1).sum(0) for y in y_au]) / coded, coded


def find_table(name, least, faces, folder):
    """The faces and the table (K, J) that --stats gives them. With "train" it is counted on the
    coded training rows, of expressions that have at least so many."""
    if name == "train":
        p, coded = frequencies(faces.of("train"))
        table = np.where((coded >= least) & (p >= OBSERVED), p, 0)
    else:
        faces = with_aus(faces, name, folder)
        table = load_stats(name, faces.vocabulary)
    if not table.any():
        few = name == "train" and not (coded >= least).any()
        lacked = plural(least, "coded training image") if few else "an AU at 20 % or more"
        if few and not coded.any():
            raise InputError(f"statistics train: no training row of {folder} has both an "
                             "expression and coded AUs; give a file, or for RAF-CE wild or lab")
        raise InputError(f"statistics {name}: no expression has {lacked} in {folder}; give another "
                         "--stats, or --stats-least with train")
    return faces, table


def with_aus(faces, name, folder):
    """Faces whose labels name no AU take those of the statistics; none of them is coded."""
    own = faces.vocabulary
    if own.aus:
        return faces
    rows = rows_of_stats(name, own)
    aus = sorted({au for emotion in own.emotions for au in rows[emotion]})
    return recode(faces, Vocabulary(own.emotions, tuple(aus)), folder)


def without_statistics(faces, folder):
    """The faces and a table of zeros, for methods that do not read p(AU | expression). Faces whose
    labels name no AU take RAF-CE's, so that the AU classifier has some; none of them is coded."""
    own = faces.vocabulary
    faces = recode(faces, Vocabulary(own.emotions, own.aus or AUS), folder)
    return faces, np.zeros((len(own.emotions), len(faces.vocabulary.aus)))


def left_out(name, least, faces, table):
    """Lines that name the expressions without statistics, and why they have none."""
    enough = np.ones(len(table), bool)
    if name == "train":
        enough = (frequencies(faces.of("train"))[1] >= least).any(1)
    for why, rows in ((f"with fewer than {least} coded training images", ~enough),
                      ("without AUs of 20 % or more", enough)):
        if names := [faces.vocabulary.emotions[k] for k in np.flatnonzero(rows & ~table.any(1))]:
            yield f"{why}, left out of L^AM: {', '.join(names)}"


class StatsLoader(yaml.SafeLoader):
    """Plain YAML: no aliases, whose nesting can grow without end, and no key twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*); write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if twice := [str(key) for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"{twice[0]} is there twice; keep one")
        return super().construct_mapping(node, deep)


def read_stats(path):
    """The rows of a file as `stats --out` writes them, checked: {expression: {AU: fraction}}."""

    def expect(ok, message):
        if not ok:
            raise InputError(f"{path}: {message}")

    try:
        rows = yaml.load(Path(path).read_text(encoding="utf-8"), StatsLoader)
    except Exception as error:  # yaml raises many kinds for odd tags and nesting
        raise InputError(f"{path}: cannot be read as YAML ({brief(error)}); --stats takes wild, "
                         "lab, train or a file of `mmlfer stats --out`") from None
    expect(isinstance(rows, dict) and rows, "expected expressions and AUs, as in stats/wild.yaml")
    for emotion, row in rows.items():
        expect(isinstance(emotion, str), f"{emotion!r:.40} is no name; put it in quotes")
        expect(isinstance(row, dict), f"{emotion}: expected AUs with fractions, like {{12: 0.58}}")
        for au, p in row.items():
            expect(type(au) is int and au in AU_NAMES,
                   f"{emotion}: unknown AU {au!r:.20}; the AUs are those of FACS, 1 to 46")
            expect(type(p) in (int, float) and 0 <= p <= 1,
                   f"{emotion}: AU {au}: expected a fraction 0..1, got {str(p)[:20]!r}")
    return rows


def log_prior(prior):
    """log p(expression), (K,), of K probabilities; 0 for expressions without a training row."""
    return torch.tensor([math.log(p) if p else 0.0 for p in prior])
