"""A checkpoint's answer for one face, as JSON and as columns of a table with every probability.

A checkpoint's dict, `state`, names its expressions (state["emotions"], K) and its AUs
(state["aus"], J); p_emo (K,) and p_au (J,) are the probabilities for one face, in that order.
"""

from collections import Counter

import numpy as np

from mmlfer import AU_NAMES, InputError, trains_aus

ACTIVE = 0.5  # an AU above this probability is present


def answer(state, p_emo, p_au, top):
    """The answer for one face as --json prints it: the `top` most probable expressions, the AUs
    that are present, with names, and every probability. If AUs are not trained, theirs are None."""
    names, aus = state["emotions"], state["aus"]
    result = {
        "expressions": [{"name": names[k], "p": float(p_emo[k])}
                        for k in np.argsort(-p_emo, kind="stable")[:top]],
        "aus": [{"au": au, "name": AU_NAMES[au], "p": float(p)}
                for au, p in zip(aus, p_au) if p > ACTIVE],
        "p_expressions": dict(zip(names, map(float, p_emo))),
        "p_aus": dict(zip(map(str, aus), map(float, p_au))),
    }
    if not trains_aus(state["config"]):
        result |= {"aus": None, "p_aus": None}
    return result


def expression_column(name):
    """The column with the probability of an expression."""
    return f"p_{name.replace(' ', '_')}"


def au_column(au):
    """OpenFace's name of an AU, AU01 for 1."""
    return f"AU{int(au):02d}"


def probability_columns(state):
    """p_NAME of every expression, then AU01_p (probability) and AU01_c (0 or 1) of every AU. There
    is no AU01_r, which in OpenFace's tables is an intensity."""
    columns = [expression_column(name) for name in state["emotions"]]
    columns += [f"{au_column(au)}_{kind}" for au in state["aus"] for kind in "pc"]
    return columns


def probability_row(result):
    """The values of probability_columns for an `answer`; none for AUs that are not trained."""
    row = {expression_column(name): round(p, 6) for name, p in result["p_expressions"].items()}
    for au, p in (result["p_aus"] or {}).items():
        row |= {f"{au_column(au)}_p": round(p, 6), f"{au_column(au)}_c": int(p > ACTIVE)}
    return row


def check_columns(columns):
    """Refuse a table with two columns of one name: expressions may be called anything."""
    for name, times in Counter(columns).items():
        if times > 1:
            raise InputError(f"{times} columns of the table would be called {name}; train with "
                             "expressions of other names, or write --jsonl")
