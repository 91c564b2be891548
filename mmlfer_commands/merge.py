"""mmlfer merge: one folder with one labels.csv of several data sets."""

import collections
import hashlib
from pathlib import Path

import click
import numpy as np

from mmlfer import NOT_CODED, NOT_NAMED, PATH, InputError, image_paths, plural, progress, stem
from mmlfer_commands._labels import (
    LABELS, NONE, SPLIT_NAMES, describe, load_faces, read_labels_csv, share_column, spelling_of)
from mmlfer_commands._outputs import name_of, new_folder, numbered, write_rows


def read_set(folder):
    """A data set's Faces, each face's person ("" if not known) and path below the folder."""
    if (folder / LABELS).is_file():
        table = read_labels_csv(folder / LABELS, keep=None)
        people = table.people or [""] * len(table.names)
        return table.faces(), ["" if "\0" in person else person for person in people], table.names
    faces = load_faces(folder)
    places = [path.relative_to(folder) if path else f"aligned/{stem(name)}_aligned.jpg"
              for name, path in zip(faces.names, image_paths(faces, folder))]
    return faces, [""] * len(places), places


def columns_of(read, emotions):
    """The columns of the merged labels.csv: AUs and shares are those that some row has."""
    aus, voted = set(), set()
    for (faces, *_), own in zip(read, emotions):
        coded = (faces.y_au != NOT_CODED).any(0)
        aus |= {au for au, any_row in zip(faces.vocabulary.aus, coded) if any_row}
        voted |= {share_column(name) for name in own if faces.shares is not None}
    further = dict.fromkeys(name for faces, *_ in read for name in faces.columns)
    person = ["person"] if any(any(people) for _, people, _ in read) else []
    return ["image", "source", "expression", "split", *person, *further,
            *([f"AU{au}" for au in sorted(aus)] or ["aus"]), *sorted(voted)]


def rows_of(source, faces, people, places, emotions, columns):
    """Yield the rows of labels.csv of one data set. What it does not code is empty, its people are
    its own, two expressions under one new name add their shares."""
    for i, (place, k, code) in enumerate(zip(places, faces.y_emo, faces.split)):
        row = {name: "?" if name == "aus" else "" for name in columns}
        row |= {"image": f"{source}/{Path(place).as_posix()}", "source": source, "split":
                SPLIT_NAMES[code], "expression": NONE if k == NOT_NAMED else emotions[k]}
        aus = zip(faces.vocabulary.aus, faces.y_au[i])
        row |= {f"AU{au}": int(y) for au, y in aus if y != NOT_CODED}
        row |= {name: texts[i] for name, texts in faces.columns.items()}
        if people[i]:
            row["person"] = f"{source}/{people[i]}"
        if faces.shares is not None and not np.isnan(faces.shares[i]).any():
            row |= {name: 0 for name in columns if name.startswith("p_")}
            for name, q in zip(emotions, faces.shares[i].tolist()):
                row[share_column(name)] += round(q, 6)
        yield row


def same_pictures(files):
    """{(source, source): [(path, part, path, part)]} of the pictures that two data sets hold in
    different parts, by their content. files: (source, path, part) of all pictures"""
    sizes = collections.defaultdict(list)  # only files of one size can be equal
    for file in files:
        sizes[file[1].stat().st_size].append(file)
    alike = [group for group in sizes.values() if len({source for source, *_ in group}) > 1]
    seen, pairs = collections.defaultdict(list), collections.defaultdict(list)
    for source, path, part in progress([file for group in alike for file in group], "comparing"):
        digest = hashlib.sha256(path.read_bytes()).digest()
        for its, other, its_part in seen[digest]:
            if its != source and its_part != part:
                pairs[its, source].append((other, its_part, path, part))
        seen[digest].append((source, path, part))
    return pairs


def merge(folders, out, names):
    """Put data sets together in the new folder `out`; names: new names of expressions."""
    sources = numbered([name_of(folder.resolve()) for folder in folders])
    read = [read_set(folder) for folder in folders]
    emotions = [[names.get(name, name) for name in faces.vocabulary.emotions] for faces, *_ in read]
    known = {name for faces, *_ in read for name in faces.vocabulary.emotions}
    if odd := [name for name in names if name not in known]:
        raise InputError(f"--rename {odd[0]}: no set has it; they have {', '.join(sorted(known))}")
    seen = {}
    for source, name in ((source, name) for source, own in zip(sources, emotions) for name in own):
        first, where = seen.setdefault(spelling_of(name), (name, source))
        if first != name:
            raise InputError(f"{source}: {name!r} is {first!r} of {where} in another spelling; "
                             f"--rename '{name}={first}'")
    columns = columns_of(read, emotions)
    rows = (row for source, one, own in zip(sources, read, emotions)
            for row in rows_of(source, *one, own, columns))
    with new_folder(out) as part:
        for source, folder in zip(sources, folders):
            (part / source).symlink_to(folder.resolve())
        write_rows(rows, columns, part / LABELS)
        load_faces(part)
    files = [(source, path, SPLIT_NAMES[code])
             for source, folder, (faces, *_) in zip(sources, folders, read)
             for path, code in zip(image_paths(faces, folder), faces.split) if path]
    for (first, second), found in same_pictures(files).items():
        one, part, other, its_part = found[0]
        click.echo(f"Warning: {first} and {second} hold {plural(len(found), 'picture')} in "
                   f"different parts, such as {one} ({part}) and {other} ({its_part}); remove them "
                   "from one set, or faces are tested that are trained on", err=True)


def parse_renames(ctx, parameter, values):
    """('happy=happiness',) -> {"happy": "happiness"}"""
    pairs = [tuple(name.strip() for name in value.split("=")) for value in values]
    if not all(len(pair) == 2 and all(pair) and pair[1] != NONE for pair in pairs):
        raise click.BadParameter("expected OLD=NEW, two names, such as happy=happiness")
    return dict(pairs)


@click.command("merge")
@click.argument("folders", nargs=-1, required=True, metavar="IN...",
                type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=PATH, help="New folder.")
@click.option("--rename", multiple=True, callback=parse_renames, metavar="OLD=NEW",
              help="Give an expression the name that it has in another set; may be repeated.")
def command(folders, out, rename):
    """Put data sets together: one labels.csv, with the sets' folders linked beside it.

    Each IN is laid out like RAF-CE or has a labels.csv. An expression or AU that a set does not
    code is ? or empty in its rows; the column source has each set's name. Pictures that two sets
    hold in different parts are named.
    """
    if len(folders) < 2:
        raise click.UsageError("Name two data sets or more.")
    merge(folders, out, rename)
    click.echo(describe(load_faces(out), out))
