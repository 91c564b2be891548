"""mmlfer convert: labels.csv from other layouts of faces and labels."""

import collections
import os
import re
from functools import partial
from pathlib import Path

import click
import numpy as np
from PIL import Image

from mmlfer import AU_NAMES, PATH, SEED, TRAIN, VAL, InputError, Program, plural, progress
from mmlfer_commands._rafce import parse_aus
from mmlfer_commands._au_tables import TOOLS, bp4d, ckplus, disfa, emotionet, opengraphau, tool_aus
from mmlfer_commands._formats import (
    ABAW, ABAW_AUS, Labelled, abaw, affectnet, au_labels, fer2013, folders, huggingface, jaffe,
    mafw, part_in, rafdb)
from mmlfer_commands._inputs import files_below
from mmlfer_commands._labels import (
    LABELS, NONE, Rows, check_names, describe, read_rows, split_people)
from mmlfer_commands._outputs import new_folder, write_rows


def labels_file(ctx, parameter, out):
    """The path of labels.csv for OUT, which is a folder or that file itself."""
    if not out.is_dir() and out.name != LABELS:
        raise click.UsageError(f"OUT is a folder, or {LABELS} in it, which train looks for.")
    return out / LABELS if out.is_dir() else out


def below(images, out):
    """The paths of images from the folder of labels.csv, which must lie above them."""
    folder = os.path.abspath(out.parent)
    paths = [os.path.abspath(image) for image in images]
    for image, path in zip(images, paths):
        if os.path.commonpath([folder, path]) != folder:
            above = Path(os.path.commonpath([os.path.dirname(one) for one in images]), LABELS)
            raise InputError(f"{out}: is not above the images, such as {image}; write to {above}")
    return [Path(os.path.relpath(path, folder)).as_posix() for path in paths]


def usable(faces, skip_missing):
    """The faces that have labels and an image, and lines that say what was left out."""
    known = [face for face in faces if face.expression != "" and (
        face.expression != NONE or face.aus is None or {*face.aus.values()} - {None})]
    there = [face for face in known if face.pixels is not None or face.image.is_file()]
    if not known:
        raise InputError("no images found; see `mmlfer convert --help` for the layouts")
    if len(there) < len(known) and not (skip_missing and there):
        first = next(face.image for face in known if not face.image.is_file())
        raise InputError(f"{len(known) - len(there)} of {plural(len(known), 'image')} are not "
                         f"there, {first} the first; --skip-missing leaves such rows out")
    left = ((len(faces) - len(known), "expression is not known"),
            (len(known) - len(there), "image is not there"))
    return there, [f"left out {plural(n, 'row')} whose {reason}" for n, reason in left if n]


def hold_out(faces, seed):
    """The faces, a quarter of the training ones now validation, by expression and by person."""
    train = [i for i, face in enumerate(faces) if face.split == "train"]
    _, y_emo = np.unique([faces[i].expression for i in train], return_inverse=True)
    people = [faces[i].labels.get("person") or f"\0{i}" for i in train]
    parts = split_people(y_emo, people, seed, {TRAIN: 0.75, VAL: 0.25})
    held = {i for i, part in zip(train, parts) if part == VAL}
    return [face._replace(split="val") if i in held else face for i, face in enumerate(faces)]


def complete(faces, seed):
    """The faces in the parts that `train` needs, and lines that say what was done: where no test
    part is published, the validation part is it, and then a quarter of the training images that."""
    parts, notes = {face.split for face in faces}, []
    if "" in parts and len(parts) > 1:
        odd = next(face.image for face in faces if not face.split)
        raise InputError(f"{odd}: is in no part, and other images are; say which for all or none")
    if parts == {"train"}:  # the reader draws all three
        return [face._replace(split="") for face in faces], []
    if "train" not in parts:
        return faces, []
    if "test" not in parts:
        faces = [face._replace(split=face.split.replace("val", "test")) for face in faces]
        notes.append("no test part is published: the validation part is tested here")
    if not {"val", "test"} <= parts:
        faces = hold_out(faces, seed)
        n = sum(face.split == "val" for face in faces)
        notes.append(f"validation: {n} of the training images, drawn by expression, seed {seed}; "
                     "--as-published leaves the parts as published")
    return faces, notes


def check_table(rows, places, out):
    """Check that rows can be read from labels.csv: what is wrong is named by the place that a row
    comes from. -> what labels.csv will have, as `train` reads it, in lines"""
    columns = list(rows[0])
    table = Rows(out, columns)
    for place, row in zip(places, rows):
        table.add(place, [row[name] for name in columns])
    return describe(table.faces(), out.parent)


def write_faces(faces, out):
    """Write labels.csv of Labelled faces, and their pictures. -> what it has, in lines"""
    aus = au_labels([face.aus or {} for face in faces])
    faces = [face if face.aus is None else face._replace(labels=face.labels | labels)
             for face, labels in zip(faces, aus)]
    more = {name: "?" if name == "aus" else "" for face in faces for name in face.labels}
    published = ["split"] if any(face.split for face in faces) else []
    paths = below([face.image for face in faces], out)
    check_names(paths, {face.expression for face in faces}, out)
    rows = [{"image": path, "expression": face.expression, **dict.fromkeys(published, face.split),
             **more, **face.labels} for path, face in zip(paths, faces)]
    written = check_table(rows, [face.place or str(face.image) for face in faces], out)
    if any(face.pixels is not None for face in faces):
        with new_folder(faces[0].image.parent) as folder:
            for face in progress(faces, "writing", unit=" faces"):
                Image.fromarray(face.pixels).save(folder / face.image.name)
    write_rows(rows, list(rows[0]), out)
    return written


def not_coded_rows(out):
    """{image's path: Labelled} of labels.csv's rows, none of them coded, and whether they have
    parts. A row's labels are all its cells, but for AUs."""
    if not out.is_file():
        raise InputError(f"{out}: not there; write it first, as mmlfer convert folders does")
    rows, read = read_rows(out), []
    columns = next(rows, (1, []))[1]
    table = Rows(out, columns, aus_needed=False)
    for number, cells in rows:
        table.add(number, cells)
        row = dict(zip(columns[: table.width], cells))
        if table.aus or "aus" in table.places and row.pop(columns[table.places["aus"]]) != "?":
            raise InputError(f"{out}:{number}: is coded already, and the labels of two sources are "
                             "not mixed; put ? in all rows of the column aus, in a copy")
        read.append(Labelled(None, table.expressions[-1], "", row, f"{out}:{number}"))
    return dict(zip(table.names, read)), "split" in table.places


def add_aus(faces, found, notes, out):
    """Put {image: {AU: True, False or None}} into the rows of labels.csv, {image: Labelled}. ->
    how many images have AUs, the notes, and what labels.csv has, in lines"""
    labels = dict(zip(found, au_labels(list(found.values()))))
    names = {name: "?" if name == "aus" else "" for row in labels.values() for name in row}
    n = len(faces.keys() & found.keys())
    if not n:
        given = f", such as {next(iter(found))}" if found else ""
        raise InputError(f"{out}: none of its images, such as {next(iter(faces), None)}, is among "
                         f"those with AUs{given}")
    rows = [{**face.labels, **({"split": face.split} if face.split else {}), **names,
             **labels.get(image, {})} for image, face in faces.items()]
    said = check_table(rows, [face.place for face in faces.values()], out)
    write_rows(rows, list(rows[0]), out)
    return [f"AUs for {n} of {plural(len(rows), 'image')}; the others are not coded", *notes, said]


def add_lists(paths, out, as_published, seed, images, aus):
    """Put OpenGraphAU's AUs into labels.csv, and parts, if it has none. -> what was done, lines"""
    found, parts, notes = {}, {}, []
    for path in paths:
        for name, coded in opengraphau(path, aus):
            image = os.path.relpath((images or path.parent.parent / "img") / name, out.parent)
            image = Path(image).as_posix()
            if image in found:
                raise InputError(f"{path}: {name} has two rows; keep one")
            found[image], parts[image] = coded, part_in(path.name)
    faces, divided = not_coded_rows(out)
    if not divided and all(parts.get(image) for image in faces):
        rows = [face._replace(split=parts[image]) for image, face in faces.items()]
        rows, notes = (rows, []) if as_published else complete(rows, seed)
        faces = dict(zip(faces, rows))
    return add_aus(faces, found, notes, out)


def add_files(tool, paths, out):
    """Put the AUs of a tool's files into labels.csv. Returns lines that say what was done."""
    faces, _ = not_coded_rows(out)
    files = []
    for path in paths:
        inside = sorted(files_below(path)) if path.is_dir() else [path]
        files += [file for file in inside if file == path or file.suffix.lower() == ".csv"]
    seen = {image: aus for file in files if file.name != LABELS
            for image, aus in tool_aus(tool, file).items()}
    matched = match_by_name(seen, faces)
    found = {image: seen[path] for image, path in matched.items()}
    left = ((list(found.values()).count({}), "in which no face was found"),
            (len(seen) - len(matched), "without an image of that name"))
    notes = [f"{plural(n, 'file')} {reason}" for n, reason in left if n]
    return add_aus(faces, {image: aus for image, aus in found.items() if aus}, notes, out)


def match_by_name(paths, images):
    """{image: file} by their names without suffix, and if several images have one by folders."""
    of_name, matched = collections.defaultdict(list), {}
    for image in images:
        of_name[Path(image).stem].append(image)
    for path in paths:
        same = of_name.get(path.stem, [])
        if len(same) > 1:
            same = [image for image in same if Path(image).parent.name == path.parent.name]
            if len(same) != 1:
                raise InputError(f"{path}: several images are called {path.stem}; write the "
                                 "tool's files to folders that are called as the images' folders")
        for image in same:
            if image in matched:
                raise InputError(f"{path}: {image} has the file {matched[image]} too; give one")
            matched[image] = path
    return matched


def parse_names(ctx, parameter, value):
    """'anger, fear' -> ("anger", "fear")"""
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    if "" in names or len({*names}) < len(names):
        raise click.BadParameter("expected different names with commas between them")
    return names


def parse_columns(ctx, parameter, value):
    """'1,2,L12' -> [(1, ""), (2, ""), (12, "L")]"""
    try:
        return [token for name in value.split(",") for token in parse_aus(name.strip(), AU_NAMES)]
    except ValueError as error:
        raise click.BadParameter(f"{error}; write AUs as 1,2,L12") from None


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PLACE = click.Path(exists=True, path_type=Path)
expressions_option = partial(click.Option, ["--expressions"], callback=parse_names, metavar="NAMES")
aus_option = partial(click.Option, ["--aus"], callback=parse_columns, metavar="NUMBERS",
                     help="The AUs of the columns, in their order.")
images_option = partial(click.Option, ["--images"], type=FOLDER, help="Where the paths start.")
present_option = partial(click.Option, ["--present-from"], metavar="X",
                         help="The least value of an AU that is present.")
unknown_option = partial(click.Option, ["--unknown"], metavar="X", help="The value for not coded.")
OF_PARTS = (click.Option(["--as-published"], is_flag=True, help="Leave parts as published."),
            click.Option(["--seed"], default=0, type=SEED, metavar="N",
                         help="Seed of a validation part drawn here."))
skipping = click.Option(["--skip-missing"], is_flag=True, help="Leave out rows without an image.")


def convert(faces, out, as_published, seed, skip_missing):
    """Write labels.csv of these faces to OUT; print what it has, and which code has which name."""
    if out.exists():
        raise InputError(f"{out}: is there already; move it away first")
    faces = [face if face.pixels is None else face._replace(image=out.parent / face.image)
             for face in faces]
    there, notes = usable(faces, skip_missing)
    there, more = (there, []) if as_published else complete(there, seed)
    written = write_faces(there, out)
    counted = collections.Counter((face.code, face.expression) for face in faces if face.code)
    rows = sorted(counted.items(), key=lambda row: (len(row[0][0]), row[0]))
    if named := [f"{code} {name or 'left out'} ({n})" for (code, name), n in rows]:
        click.echo(f"classes, with their images: {', '.join(named)}")
    click.echo("\n".join([*notes, *more, written]))


class Formats(click.Group):
    format_commands = Program.format_commands  # one whole sentence for each format

    def list_commands(self, ctx):  # in the order below
        return list(self.commands)


@click.group("convert", cls=Formats, subcommand_metavar="FORMAT IN... OUT")
def command():
    """Write labels.csv, as `train` reads it, from other layouts of faces and labels.

    labels.csv has a row for each image: its path, its expression, its part (train, val, test), its
    AUs. OUT is the folder to write it to. This must lie above the images: their paths start there.
    Images stay where they are. Sets of AUs alone have ? for each expression.

    Parts that are missing are made so that `train` can start. Without a test part, the published
    validation part is tested, as papers do; without a validation part, it is a quarter of the
    training images. Where no parts are published, all are drawn when labels.csv is read.
    """


TEXT = Path(__file__).with_name("formats.md").read_text("utf-8")
HELP = dict(re.findall(r"^## (\w+)\n\n(.+?)(?=^## |\Z)", TEXT, re.M | re.S))


def add_format(name, run, *options, several=False, source=FOLDER):
    """Add the command of a format, with its help."""
    shown = {"nargs": -1, "required": True, "metavar": "IN..."} if several else {"metavar": "IN"}
    params = [click.Argument(["source"], type=source, **shown),
              click.Argument(["out"], type=PATH, callback=labels_file), *options]
    command.add_command(click.Command(name, params=params, callback=run, help=HELP[name]))


def writes(read, *options, **source):
    """Add a format with images of its own, for which labels.csv is written, by what reads it."""
    def run(source, out, as_published, seed, skip_missing, **own):
        convert(read(source, **own), out, as_published, seed, skip_missing)

    add_format(read.__name__, run, *OF_PARTS, skipping, *options, **source)


def adds(name, add, *options, source):
    """Add a format with AUs alone, which are put into a labels.csv."""
    def run(source, out, **own):
        click.echo("\n".join(add(source, out, **own)))

    add_format(name, run, *options, several=True, source=source)


frames_option = images_option(required=True, help="The folder of the images' folders.")
writes(rafdb, expressions_option(help="The classes' names, from 1, if not RAF-DB's own."))
writes(affectnet, images_option(help="The folder of the aligned faces, for the older lists."))
writes(fer2013, click.Option(["--votes"], type=FILE, help="FERPlus's fer2013new.csv."), source=FILE)
writes(folders)
writes(huggingface,
       click.Option(["--column"], help="Of the expressions, if not expression, label or emotion."),
       expressions_option(help="The classes' names, from 0, where the column has numbers."))
writes(disfa, frames_option, present_option(default=2.0), unknown_option(default=-1.0))
writes(bp4d, frames_option, present_option(default=1.0), unknown_option(default=9.0))
writes(emotionet, images_option(required=True, help="The folder of the images."),
       present_option(default=1.0), unknown_option(default=999.0), several=True, source=FILE)
writes(ckplus, click.Option(["--frames"], default=3, type=click.IntRange(1), metavar="N",
                            help="How many last frames to take."), present_option(default=0.0))
writes(jaffe)
writes(abaw, images_option(), aus_option(default=ABAW_AUS), expressions_option(
    default=",".join(ABAW), help="The classes' names, from 0."), several=True, source=PLACE)
writes(mafw, frames_option, click.Option(["--fold"], default=1, type=click.IntRange(1, 5),
                                         metavar="N", help="Whose parts are taken."))
adds("opengraphau", add_lists, *OF_PARTS, images_option(), aus_option(required=True), source=FILE)
for name, tool in TOOLS.items():
    adds(name, partial(add_files, tool), source=PATH)
