"""A checkpoint's answer for one face, as JSON and as a row of a table with every probability.

`state` is a checkpoint's dict, of K expressions and J AUs; p_emo (K,) and p_au (J,) are the
probabilities for one face.
"""

import re
from collections import Counter

import numpy as np

from mmlfer import ACTIVE, AU_NAMES, InputError


def answer(state, p_emo, p_au, top):
    """The answer for one face as --json prints it, with the `top` most probable expressions. None
    stands for the probability of an AU that is not trained, and for both lists if none is."""
    names, trained = state["emotions"], state["trained_aus"]
    p_aus = {au: float(p) if au in trained else None for au, p in zip(state["aus"], p_au)}
    result = {
        "expressions": [{"name": names[k], "p": float(p_emo[k])}
                        for k in np.argsort(-p_emo, kind="stable")[:top]],
        "aus": [{"au": au, "name": AU_NAMES[au], "p": float(p)}
                for au, p in p_aus.items() if p is not None and p > ACTIVE],
        "p_expressions": dict(zip(names, map(float, p_emo))),
        "p_aus": {str(au): p for au, p in p_aus.items()}}
    if not trained:
        result |= {"aus": None, "p_aus": None}
    return result


def active_aus(result, text, between):
    """The AUs present, each formatted by `text`, as one string; or "none", or "not trained"."""
    if result["aus"] is None:
        return "not trained"
    return between.join(text.format(**au) for au in result["aus"]) or "none"


def expression_column(name):
    """The column with the probability of an expression: p_NAME, or p_class_NAME where p_NAME may be
    another column's name, as p_1 is of the most probable expression's and p_smooth of a video's."""
    name = name.replace(" ", "_")
    return f"p_class_{name}" if re.fullmatch("[0-9]+|(.*_)?smooth", name) else f"p_{name}"


def au_column(au):
    """OpenFace's name of an AU, AU01 for 1."""
    return f"AU{int(au):02d}"


def probability_columns(state):
    """p_NAME of every expression, then AU01_p (probability) and AU01_c (0 or 1) of every AU. There
    is no AU01_r, which in OpenFace's tables is an intensity."""
    return [*map(expression_column, state["emotions"]),
            *(f"{au_column(au)}_{kind}" for au in state["aus"] for kind in "pc")]


def probability_row(result):
    """The values of probability_columns for an `answer`; none for AUs that are not trained."""
    row = {expression_column(name): round(p, 6) for name, p in result["p_expressions"].items()}
    for au, p in (result["p_aus"] or {}).items():
        if p is not None:
            row |= {f"{au_column(au)}_p": round(p, 6), f"{au_column(au)}_c": int(p > ACTIVE)}
    return row


def check_columns(columns):
    """Refuse a table with two columns of one name: expressions may be called anything."""
    for name, times in Counter(columns).items():
        if times > 1:
            raise InputError(f"{times} columns of the table would be called {name}; train with "
                             "expressions of other names, or write --jsonl")
