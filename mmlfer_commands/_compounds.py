"""Compound expressions of a net that knows basic ones: p(a and b) in proportion to p_a p_b."""

import dataclasses
import re
from pathlib import Path

import click
import numpy as np

from mmlfer import EMOTIONS, InputError, plural, refused, torch
from mmlfer_commands._inputs import read_list
from mmlfer_commands._labels import spelling_of

C_EXPR = ("fearfully surprised", "happily surprised", "sadly surprised", "disgustedly surprised",
          "angrily surprised", "sadly fearful", "sadly angry")  # C-EXPR-DB's classes 0..6
LISTS = {"rafce": EMOTIONS, "c-expr": C_EXPR}
BASIC = {word: words.split()[0] for words in (
    "happiness happy happily joy joyful joyfully", "sadness sad sadly",
    "surprise surprised surprisedly", "fear fearful fearfully afraid scared", "anger angry angrily",
    "disgust disgusted disgustedly", "contempt contemptuous contemptuously", "neutral",
) for word in words.split()}  # {spelling: the basic expression that it means}
compounds_option = click.option(
    "--compounds", metavar="LIST", help="Answer with compounds of the checkpoint's basic "
    "expressions: the 14 of rafce, the 7 of c-expr, or those of a file with rows `happily "
    "surprised` or `NAME: a + b`. p(a and b) is in proportion to p_a p_b.")


def meaning(name):
    """What an expression's name stands for, as a set: {"happiness"} for happy and Joy, {"anger",
    "disgust"} for angrily disgusted and anger_disgust, another name's own spelling."""
    words = {*re.split(r"[\s_+-]+", name.strip().casefold())} - {"and"}
    known = frozenset(map(BASIC.get, words))
    return frozenset([spelling_of(name)]) if None in known else known


def read_compounds(source):
    """The compounds of --compounds, {name: the set of the two that it means}."""
    if source not in LISTS and not Path(source).exists():
        raise InputError(f"--compounds {source}: neither {', nor '.join(LISTS)}, nor a file")
    wanted = {}
    for number, line in enumerate(LISTS.get(source) or read_list(Path(source)), 1):
        name, colon, parts = (part.strip() for part in line.partition(":"))
        pair = frozenset().union(*map(meaning, parts.split("+"))) if colon else meaning(name)
        if line and (len(pair) != 2 or pair in wanted.values() or name in wanted or not name):
            raise InputError(f"{source}:{number}: {line:.60}: expected another two expressions, as "
                             "in `happily surprised`, or in `NAME: a + b` with the checkpoint's "
                             "own names; fix this row")
        wanted |= {name: pair} if line else {}
    if len(wanted) < 2:
        raise InputError(f"{source}: {plural(len(wanted), 'compound')}; name two or more")
    return wanted


def places_of(wanted, emotions, where):
    """Where each compound's two basic expressions are in a checkpoint's outputs, (C, 2); where it
    has all of the compounds itself, where they are, (C, 1)."""
    own, parts = {}, [[pair] for pair in wanted.values()]
    for k, name in enumerate(emotions):
        own.setdefault(meaning(name), []).append(k)
    if not {*wanted.values()} <= {*own}:
        parts = [[frozenset([one]) for one in sorted(pair)] for pair in wanted.values()]
    for key in sorted({*sum(parts, [])}, key=sorted):
        if (n := len(own.get(key, ()))) != 1:
            raise InputError(f"{where}: --compounds: {n or 'none'} of its expressions mean "
                             f"{' '.join(key)}, and one should: {', '.join(emotions)}; a file may "
                             "have NAME: a + b in its own names")
    return [[own[key][0] for key in part] for part in parts]


def with_compounds(state, source, where):
    """A checkpoint's dict with the compounds of --compounds for its expressions: z_ab = z_a + z_b,
    by sums of the FE classifier's rows, because the softmax of that is p_a p_b over the sum of all
    pairs'. Its test and p(AU | expression) are of others, and left out."""
    wanted, emotions = read_compounds(source), state["emotions"]
    places = places_of(wanted, emotions, where)
    unused = [name for k, name in enumerate(emotions) if k not in sum(places, [])]
    how = "products of basic expressions" if len(places[0]) > 1 else "the checkpoint's own"
    click.echo(f"--compounds {source}: {how}; not used: {', '.join(unused) or 'none'}", err=True)
    with refused(where, "damaged ({}); take another copy", IndexError):
        net = {name: rows[torch.tensor(places)].sum(1) if name.startswith("fe.") else rows
               for name, rows in state["net"].items()}
    return {**state, "net": net, "emotions": list(wanted), "test": None, "compounds": how,
            "table": torch.zeros(len(wanted), state["table"].shape[1])}


def only_compounds(faces, emotions, folder):
    """Faces with these compounds' names for those that mean the same; those of other expressions
    are left out, and a line says so."""
    names = {meaning(name): name for name in emotions}
    own = tuple(names.get(meaning(name), name) for name in faces.vocabulary.emotions)
    other = np.array([*(name not in emotions for name in own), False])[faces.y_emo]
    if other.any():
        left = ", ".join(sorted({own[k] for k in faces.y_emo[other]}))
        click.echo(f"{folder}: left out {plural(int(other.sum()), 'image')} of other expressions: "
                   f"{left}", err=True)
    vocabulary = dataclasses.replace(faces.vocabulary, emotions=own)
    return dataclasses.replace(faces, vocabulary=vocabulary).select(~other)
