"""What a checkpoint answers of one face: as JSON, and every probability as columns of a table.

A checkpoint's dict, `state`, names its expressions (state["emotions"], K) and its AUs
(state["aus"], J); p_emo (K,) and p_au (J,) are the probabilities of one face, in that order.
"""

from collections import Counter

import numpy as np

from mmlfer import AU_NAMES, InputError, trains_aus

ACTIVE = 0.5  # an AU above this probability is present


def answer(state, p_emo, p_au, top):
    """What --json has of one face: the `top` likeliest expressions and the AUs that are present,
    with their names, and every probability; of AUs that are not trained, None."""
    names, aus = state["emotions"], state["aus"]
    told = {
        "expressions": [{"name": names[k], "p": float(p_emo[k])}
                        for k in np.argsort(-p_emo, kind="stable")[:top]],
        "aus": [{"au": au, "name": AU_NAMES[au], "p": float(p)}
                for au, p in zip(aus, p_au) if p > ACTIVE],
        "p_expressions": dict(zip(names, map(float, p_emo))),
        "p_aus": dict(zip(map(str, aus), map(float, p_au))),
    }
    if not trains_aus(state["config"]):
        told |= {"aus": None, "p_aus": None}
    return told


def expression_column(name):
    return f"p_{name.replace(' ', '_')}"


def au_column(au):
    return f"AU{int(au):02d}"


def probability_columns(state):
    """p_NAME of every expression, then AU01_p (probability), AU01_c (0 or 1) of every AU; never
    AU01_r, which in OpenFace's tables is an intensity."""
    columns = [expression_column(name) for name in state["emotions"]]
    columns += [f"{au_column(au)}_{kind}" for au in state["aus"] for kind in "pc"]
    return columns


def probability_row(told):
    """The values of probability_columns, of an `answer`; none of AUs that are not trained."""
    row = {expression_column(name): round(p, 6) for name, p in told["p_expressions"].items()}
    for au, p in (told["p_aus"] or {}).items():
        row |= {f"{au_column(au)}_p": round(p, 6), f"{au_column(au)}_c": int(p > ACTIVE)}
    return row


def check_columns(columns):
    """Refuse a table with two columns of one name: expressions may be called anything."""
    for name, times in Counter(columns).items():
        if times > 1:
            raise InputError(f"{times} columns of the table would be called {name}; train with "
                             "expressions of other names, or write --jsonl")
