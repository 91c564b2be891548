"""mmlfer build: RAF-CE from RAF-ML and RAF-AU (Sec. 3.1)."""

import collections
import itertools
import shutil
from pathlib import Path

import click
import numpy as np

from mmlfer import (
    EMOTIONS, LABEL_FILES, PATH, SEED, InputError, image_index, is_aligned, progress, refused, stem)
from mmlfer_commands._compounds import meaning
from mmlfer_commands._labels import describe, load_faces, split_faces, write_labels_csv
from mmlfer_commands._outputs import new_folder
from mmlfer_commands._rafce import one_image_a_row, parse_aus, parse_code, read_labels, write_labels

BASIC = ("surprised", "fearful", "disgusted", "happy", "sad", "angry")  # RAF-ML's columns
COMPOUNDS = {frozenset(i for i, basic in enumerate(BASIC) if meaning(basic) <= meaning(name)): k
             for k, name in enumerate(EMOTIONS)}


def name_compound(p):
    """The compound expression 0..13 of the two most probable of six basic emotions, or why there
    is none. If several pairs tie, it is the first one in column order that is one of the 14."""
    top = sorted(p)[-2:]
    if top[0] == 0:
        return "have no second emotion of a probability above 0"
    for pair in itertools.combinations(range(len(p)), 2):
        compound = COMPOUNDS.get(frozenset(pair))
        if sorted(p[i] for i in pair) == top and compound is not None:
            return compound
    return "have two most probable emotions that make none of the 14"


def parse_distribution(*texts):
    """Six probabilities 0..1, or ValueError."""
    p = tuple(map(float, texts))
    if not all(0 <= q <= 1 for q in p):
        raise ValueError(f"expected six probabilities 0..1, got {' '.join(texts)}")
    return p


def find_file(name, *folders, needed=True):
    """The file of this name in the first folder that has it where RAF-ML and RAF-AU keep labels."""
    places = (folder / sub / name for folder in folders for sub in ("", "EmoLabel", "RAF-AU"))
    found = next(filter(Path.is_file, places), None)
    if needed and not found:
        raise InputError(f"{folders[0]}: no {name} there; give the folder as distributed")
    return found


def compound_shares(p):
    """The compounds' shares: of {a, b} in proportion to the basic p_a p_b. -> (14,), sum 1"""
    q = np.zeros(len(EMOTIONS))
    for pair, k in COMPOUNDS.items():
        q[k] = np.prod([p[i] for i in pair])
    return q / q.sum()


def join_labels(raf_ml, raf_au):
    """The images in both sets with a compound expression: names, y_emo, AUs, shares; and lines."""
    ml = read_labels(find_file("distribution.txt", raf_ml), parse_distribution, 6)
    au_path = find_file("RAFAU_label.txt", raf_au)
    au = read_labels(au_path, str)
    y_emo = {name: name_compound(ml[name][1]) for name in au if name in ml}
    discarded = collections.Counter(k for k in y_emo.values() if isinstance(k, str))
    names = [name for name, k in y_emo.items() if not isinstance(k, str)]
    shares = [compound_shares(ml[name][1]) for name in names]
    if not names:
        raise InputError(f"{au_path}: no image of it with a compound expression is in {raf_ml}")
    for name in names:
        with refused(f"{au_path}:{au[name][0]}", "{}; fix this row", ValueError):
            parse_aus(au[name][1])
    one_image_a_row({name: au[name] for name in names}, au_path)
    notes = [f"{len(ml)} images in RAF-ML, {len(au)} in RAF-AU, {len(y_emo)} in both",
             *(f"discarded {n} that {reason}" for reason, n in sorted(discarded.items()))]
    return names, [y_emo[name] for name in names], [au[name][1] for name in names], shares, notes


def find_partition(names, y_emo, seed, *folders):
    """The official partition, if a folder has it, else a drawn one. -> codes (N,), its origin"""
    official = find_file(LABEL_FILES[1], *folders, needed=False)
    if not official:
        return split_faces(y_emo, seed), f"drawn, seed {seed}"
    rows = read_labels(official, parse_code)
    if missing := [name for name in names if name not in rows]:
        raise InputError(f"{official}: {len(missing)} of the {len(names)} compound images have no "
                         f"row, {missing[0]} the first; take the published file, or none")
    return [rows[name][1] for name in names], str(official)


def place_of(key, index):
    """Where an image is placed: crops, and what is missing, in aligned/, originals beside it."""
    if key not in index:
        return f"aligned/{key}_aligned.jpg"
    name = f"aligned/{key}_aligned" if is_aligned(index[key]) else key
    return f"{name}{index[key].suffix}"


def place_images(keys, index, out, copy):
    """Link or copy images into `out`. -> numbers of crops, originals and missing images"""
    kind = collections.Counter(None if key not in index else is_aligned(index[key]) for key in keys)
    for key in progress([key for key in keys if key in index], "images"):
        source, target = index[key], out / place_of(key, index)
        with refused(source, "cannot be copied ({}); fix or remove it, or free some space" if copy
                     else "cannot be linked ({}); --copy copies the images"):
            shutil.copyfile(source, target) if copy else target.symlink_to(source.resolve())
    return kind[True], kind[False], kind[None]


@click.command("build")
@click.option("--raf-ml", required=True, type=PATH, help="RAF-ML (EmoLabel/distribution.txt).")
@click.option("--raf-au", required=True, type=PATH, help="RAF-AU (RAFAU_label.txt, aligned/).")
@click.option("--out", default="rafce", type=PATH, help="New folder.")
@click.option("--seed", default=0, type=SEED, help="Seed of the partition, if none is published.")
@click.option("--copy", is_flag=True, help="Copy the images instead of linking them.")
@click.option("--soft", is_flag=True, help="Write labels.csv with the shares of the expressions "
              "that RAF-ML's annotators gave, for train --labels soft.")
def command(raf_ml, raf_au, out, seed, copy, soft):
    """Make RAF-CE from RAF-ML and RAF-AU (Section 3.1).

    An official RAFCE_partition.txt beside the labels of either is used where there is one.
    """
    names, y_emo, aus, shares, notes = join_labels(raf_ml, raf_au)
    split, origin = find_partition(names, y_emo, seed, raf_ml, raf_au)
    index, keys = image_index(raf_au, raf_ml, raf_ml / "Image"), list(map(stem, names))
    with new_folder(out) as part:
        if soft:
            write_labels_csv(part, [place_of(key, index) for key in keys], y_emo, split, aus,
                             EMOTIONS, np.round(shares, 6))
        else:
            write_labels(part, names, y_emo, split, aus)
        (part / "aligned").mkdir()
        crops, originals, without = place_images(keys, index, part, copy)
    if originals:
        click.echo(f"Warning: {originals} of {crops + originals} images are originals, not crops "
                   "called or in `aligned`; a net should see only one kind", err=True)
    click.echo("\n".join([*notes, f"kept {len(names)}, {without} of them without an image file",
                          f"partition: {origin}", describe(load_faces(out), out)]))
