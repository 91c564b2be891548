"""mmlfer build: RAF-CE from RAF-ML and RAF-AU (Sec. 3.1)."""

import itertools
import shutil
from pathlib import Path

import click
import numpy as np

from mmlfer import (
    EMOTIONS,
    FOLDER,
    LABEL_FILES,
    SEED,
    TEST,
    TRAIN,
    VAL,
    InputError,
    describe,
    image_index,
    load_labels,
    parse_aus,
    parse_code,
    read_labels,
    same_images,
    stem,
    write_whole,
)  # fmt: skip

BASIC = ("surprised", "fearful", "disgusted", "happy", "sad", "angry")  # RAF-ML's columns
ADVERBS = {"happily": "happy", "sadly": "sad", "fearfully": "fearful", "angrily": "angry",
           "disgustedly": "disgusted"}  # fmt: skip
PAIRS = {frozenset((BASIC.index(ADVERBS[adverb]), BASIC.index(basic))): k
         for k, (adverb, basic) in enumerate(name.split() for name in EMOTIONS)}


def compound(p):
    """The compound expression of six basic probabilities, 0..13, or None if it is none of the 14.

    The two most probable; of ties the first pair in column order that is one of the 14.
    """
    second = sorted(p)[-2]
    for pair in itertools.combinations(range(len(p)), 2):
        rest = [q for i, q in enumerate(p) if i not in pair]
        if min(p[i] for i in pair) == second and max(rest) <= second and frozenset(pair) in PAIRS:
            return PAIRS[frozenset(pair)]
    return None


def parse_distribution(*texts):
    p = tuple(map(float, texts))
    if not all(0 <= q <= 1 for q in p):
        raise ValueError(f"expected six probabilities 0..1, got {' '.join(texts)}")
    return p


def find_file(name, *folders):
    """The first of these folders' files of this name, or None."""
    return next((f / name for f in folders if (f / name).is_file()), None)


def needed_file(name, given, inner):
    path = find_file(name, given / inner, given)
    if path is None:
        raise InputError(f"{given}: no {name} there; give the folder as it is distributed")
    return path


def build_rafce(raf_ml, raf_au, out, seed, copy):
    """Make RAF-CE in `out`; returns what to say of it."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: not empty; name a new folder")
    ml = read_labels(needed_file("distribution.txt", raf_ml, "EmoLabel"), parse_distribution, 6)
    au_path = needed_file("RAFAU_label.txt", raf_au, "RAF-AU")
    au = read_labels(au_path, str)
    shared = [name for name in au if name in ml]
    y_emo = {name: compound(ml[name][1]) for name in shared}
    names = [name for name in shared if y_emo[name] is not None]
    if len({stem(name) for name in names}) < len(names):
        raise InputError(f"{au_path}: two rows of one image under different endings; keep one")
    for name in names:
        try:
            parse_aus(au[name][1])
        except ValueError as error:
            raise InputError(f"{au_path}:{au[name][0]}: {error}; mend this row") from None
    if not names:
        raise InputError(f"{au_path}: no image of it with a compound expression is in {raf_ml}")
    official = find_file(LABEL_FILES[1], raf_ml, raf_au, raf_ml / "EmoLabel")
    if official:
        rows = read_labels(official, parse_code(2))
        same_images({n: au[n] for n in names}, au_path, rows, official)
        split = [rows[name][1] for name in names]
    else:
        split = split_faces([y_emo[name] for name in names], seed)
    index = {**image_index(raf_ml / "Image"), **image_index(raf_ml), **image_index(raf_au)}
    found = [(index[stem(n)], stem(n)) for n in names if stem(n) in index]
    write_labels(out, names, [y_emo[n] for n in names], split, [au[n][1] for n in names])
    (out / "aligned").mkdir()
    for source, key in found:
        target = out / "aligned" / f"{key}_aligned{source.suffix}"
        shutil.copyfile(source, target) if copy else target.symlink_to(source.resolve())
    return (f"{len(ml)} images in RAF-ML, {len(au)} in RAF-AU, {len(shared)} in both\n"
            f"discarded {len(shared) - len(names)} whose two most probable emotions make none of "
            f"the 14\nkept {len(names)}, {len(names) - len(found)} of them without an image file\n"
            f"partition: {official or f'drawn, seed {seed}'}")


def split_faces(y_emo, seed):
    """20 % test, a quarter of the rest validation, within each expression. -> (N,)"""
    rng = np.random.default_rng([seed, 20])
    split = np.full(len(y_emo), TRAIN)
    for k in range(len(EMOTIONS)):
        of_k = rng.permutation(np.flatnonzero(np.asarray(y_emo) == k))
        n_test = round(0.2 * len(of_k))
        split[of_k[:n_test]] = TEST
        split[of_k[n_test : n_test + round(0.25 * (len(of_k) - n_test))]] = VAL
    return split


def write_labels(folder, names, *columns):
    """Write label files in RAF-CE's form, a column of strings for each of LABEL_FILES."""
    for file, column in zip(LABEL_FILES, columns):
        rows = (f"{name} {value}\n" for name, value in zip(names, column))
        write_whole(Path(folder) / file, "".join(rows).encode())


@click.command("build")
@click.option("--raf-ml", required=True, type=FOLDER, help="RAF-ML (EmoLabel/distribution.txt).")
@click.option("--raf-au", required=True, type=FOLDER, help="RAF-AU (RAFAU_label.txt, aligned/).")
@click.option("--out", default="rafce", type=FOLDER, help="New folder.")
@click.option("--seed", default=0, type=SEED, help="Of a partition drawn here.")
@click.option("--copy", is_flag=True, help="Copy the images; else they are linked.")
def command(raf_ml, raf_au, out, seed, copy):
    """Make RAF-CE from RAF-ML and RAF-AU (Sec. 3.1).

    An official RAFCE_partition.txt beside either is used if it is there.
    """
    click.echo(build_rafce(raf_ml, raf_au, out, seed, copy))
    click.echo(describe(load_labels(out), out))
