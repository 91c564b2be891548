"""mmlfer convert: labels.csv from other layouts of faces and labels."""

import collections
import functools
import os
import re
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from mmlfer import (
    AU_NAMES,
    IMAGE_SUFFIXES,
    PATH,
    SEED,
    TRAIN,
    VAL,
    InputError,
    Program,
    image_index,
    parse_aus,
    parse_code,
    plural,
    read_labels,
    stem,
    write_rows,
)
from mmlfer_commands._labels import (
    COLUMNS,
    LABELS,
    check_names,
    describe,
    load_faces,
    parse_place,
    read_columns,
    read_rows,
    split_people,
)
from mmlfer_commands._results import files_below, find_files

RAFDB = ("happily surprised", "happily disgusted", "sadly fearful", "sadly angry",
         "sadly surprised", "sadly disgusted", "fearfully angry", "fearfully surprised",
         "angrily surprised", "angrily disgusted", "disgustedly surprised")  # its classes 1..11
ABAW = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other")
ABAW_AUS = "1,2,4,6,7,10,12,15,23,24,25,26"  # the challenge's order, as of the classes 0..7
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
         "dev": "val", "test": "test", "testing": "test"}
NOT_CODED = {"aus": "?"}
CODES = {1: True, 0: False, -1: None}  # whether an AU is seen


class Face(NamedTuple):
    """An image and its labels, as a format gives them."""

    image: Path
    expression: str  # "" where it is unknown
    split: str = ""  # train, val, test; "" where none is published
    labels: dict = NOT_CODED  # labels.csv's other columns


# ---------------------------------------------------------------- reading


def read_list(path):
    """The lines of a text file, without spaces around them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
        raise InputError(f"{path}: cannot be read ({reason})") from None
    return [line.strip() for line in text.rstrip().split("\n")]


def part_of(name):
    """The part that a folder's name or a cell stands for: train, val, test, or "" for none."""
    return PARTS.get(name.lower(), "")


def part_in(name):
    """The part that a word in a file's name stands for: train in training_set_annotations.txt."""
    found = {*map(part_of, re.split("[^A-Za-z]+", name))} - {""}
    return found.pop() if len(found) == 1 else ""


def class_name(code, expressions, where):
    """The expression of a class number, which is text and counts from 0."""
    if not re.fullmatch("[0-9]{1,4}", code) or int(code) >= len(expressions):
        raise InputError(f"{where}: expected a class 0..{len(expressions) - 1}, got "
                         f"{code[:20]!r}; fix this row, or name all classes with --expressions")
    return expressions[int(code)]


def is_seen(value, au, where):
    """Whether a cell says that an AU is seen; None where it is not coded."""
    try:
        return CODES[float(value)]
    except (ValueError, KeyError):
        raise InputError(f"{where}: expected 0, 1 or -1 (not coded) for AU {au}, got "
                         f"{value[:20]!r}; fix this row") from None


def code_aus(columns, values, where):
    """{AU: True, False or None} of the values 1, 0 and -1 (not coded) of columns [(AU, side)].

    An AU is seen if its own column or one of its sides' says so. Otherwise its own column decides.
    If that is not coded, the AU is not seen if all its sides are 0, and else not coded.
    """
    if len(values) != len(columns):
        raise InputError(f"{where}: {plural(len(values), 'AU value')}, expected {len(columns)}; "
                         "fix this row, or name all columns with --aus")
    by_au = collections.defaultdict(dict)
    for (au, side), value in zip(columns, values):
        by_au[au][side] = is_seen(value, f"{side}{au}", where)
    aus = {}
    for au, sides in by_au.items():
        own = sides.pop("", None)
        if own is None and sides and None not in sides.values():
            own = False
        aus[au] = True in sides.values() or own
    return aus


def au_labels(coded):
    """labels.csv's columns for rows of {AU: True, False or None}: `aus` if each row is coded as a
    whole or not at all; else a column for each AU, empty where it is not coded."""
    whole = [set(row.values()) == {None} or None not in row.values() for row in coded]
    if not all(whole):
        cells = {True: "1", False: "0", None: ""}
        return [{f"AU{au}": cells[seen] for au, seen in sorted(row.items())} for row in coded]
    return [NOT_CODED if None in row.values() else
            {"aus": "+".join(str(au) for au in sorted(row) if row[au])} for row in coded]


# ---------------------------------------------------------------- formats


def rafdb(folder, expressions):
    """Read RAF-DB's compound part.

    EmoLabel/list_patition_label.txt (sic) has rows `train_0001.jpg 3`: the name gives the part,
    train or test, the number is one of 11 classes, from 1. Images are
    Image/aligned/train_0001_aligned.jpg or else Image/original/train_0001.jpg. (The basic part has
    a list of the same name, with 7 classes.)
    """
    path = folder / "EmoLabel" / "list_patition_label.txt"
    if not path.is_file():
        raise InputError(f"{path}: not there; give RAF-DB's folder `compound`")
    rows = read_labels(path, parse_code(len(expressions or RAFDB)))
    if not expressions and max(code for _, code in rows.values()) <= 7:
        raise InputError(f"{path}: no class above 7: is this RAF-DB's basic part? Give the folder "
                         "`compound`, or name the classes, from 1, with --expressions")
    index = image_index(folder / "Image", folder / "Image" / "original")
    for name, (number, code) in rows.items():
        part = part_of(name.split("_")[0])
        if not (code and part):
            raise InputError(f"{path}:{number}: expected train_ or test_ in the name and a class "
                             "from 1; fix this row")
        image = index.get(stem(name), folder / "Image" / "aligned" / name)
        yield Face(image, (expressions or RAFDB)[code - 1], part)


def subfolders(folder):
    """The folders in a folder that has no images of its own: they would have no class."""
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
    for path in inside:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise InputError(f"{path}: lies beside the folders of the classes; move it into one")
    return [path for path in inside if path.is_dir()]


def folders(folder):
    """Read a folder of images for each class.

    Its name is the expression. The folders may lie in train, val and test, as torchvision's
    ImageFolder and Hugging Face's imagefolder have them.
    """
    tops = subfolders(folder)
    parts = [part_of(top.name) for top in tops]
    if any(parts) and not all(parts):
        raise InputError(f"{tops[parts.index('')]}: is no train, val or test, as the folder beside "
                         "it is; move it away")
    for part, top in zip(parts, tops):
        for place in subfolders(top) if part else [top]:
            for path in sorted(files_below(place)):
                hidden = any(name.startswith(".") for name in path.relative_to(place).parts)
                if path.suffix.lower() in IMAGE_SUFFIXES and not hidden:
                    yield Face(path, place.name, part)


def huggingface(folder, column, expressions):
    """Read Hugging Face's imagefolder with metadata.csv.

    metadata.csv lies in the data set's folder IN, or in each of its train, validation and test.
    Its column file_name is a path from where it lies; the part stands in a column split or is the
    name of a folder. Columns person, aus and AU1, AU2 ... are taken over as they are.
    """
    paths = find_files(folder, "metadata.csv")
    if not paths:
        raise InputError(f"{folder}: no metadata.csv in it or below it; name the data set's folder")
    for path in paths:
        columns, rows = read_columns(path, "file_name", *([column] if column else []))
        known = [name for name in ("expression", "label", "emotion") if name in columns]
        if not column and len(known) != 1:
            raise InputError(f"{path}: which column has the expressions? Name one with --column: "
                             f"{', '.join(columns)[:200]}")
        taken = [name for name in columns
                 if name in ("person", "aus") or re.fullmatch("AU0?[1-9][0-9]?", name)]
        for number, row in rows:
            where, label = f"{path}:{number}", row[column or known[0]]
            if expressions:
                label = class_name(label, expressions, where)
            elif label.isdigit():
                raise InputError(f"{where}: expression {label}: --expressions names the classes, "
                                 "from 0, as in --expressions anger,fear,joy")
            places = [*path.relative_to(folder).parts[:-1], *Path(row["file_name"]).parts[:-1]]
            parts = map(part_of, [row["split"]] if "split" in columns else places)
            given = {name: row[name] for name in taken}
            labels = given if set(given) - {"person"} else given | NOT_CODED
            yield Face(path.parent / row["file_name"], label, next(filter(None, parts), ""), labels)


def abaw(paths, images, columns, expressions):
    """Read the lists of ABAW's multi-task challenge (s-Aff-Wild2).

    training_set_annotations.txt and validation_set_annotations.txt have the header
    `image,valence,arousal,expression,aus` and rows `video/00001.jpg,0.1,-0.2,4,1,0,...`, with as
    many values as there are AUs; -1 is unknown. Rows without an expression are left out. The
    images of a video stay in one part: it stands in the column person.
    """
    faces, coded = [], []
    for path in paths:
        rows = read_rows(path)
        if next(rows, (1, []))[1][:5] != ["image", "valence", "arousal", "expression", "aus"]:
            raise InputError(f"{path}: expected the header image,valence,arousal,expression,aus")
        for number, cells in rows:
            name, _, _, expression, *values = cells + [""] * (4 - len(cells))
            where = f"{path}:{number}"
            known = "" if expression == "-1" else class_name(expression, expressions, where)
            faces.append(Face((images or path.parent) / name, known, part_in(path.name)))
            coded.append(code_aus(columns, values, where))
    for face, labels in zip(faces, au_labels(coded)):
        yield face._replace(labels=labels | {"person": face.image.parent.name})


def opengraphau(path, columns):
    """Add AUs to labels.csv from OpenGraphAU's or ME-GraphAU's lists.

    IN... are the lists of paths, hybrid_train_img_path.txt; beside each lies its
    hybrid_train_label.txt, whose lines have 1, 0 or -1 (not coded) for each AU. The lists have no
    expressions: OUT must have them, and no AUs yet. Which AUs the columns are stands in neither
    file. OpenGraphAU's own are 1,2,4,5,6,7,9,10,11,12,13,14,15,16,17,18,19,20,22,23,24,25,26,27,
    32,38,39, then L1,R1 and so on of 2, 4, 6, 10, 12 and 14.
    """
    beside = path.with_name(path.name.replace("img_path", "label"))
    if beside == path:
        raise InputError(f"{path}: expected a list called ..._img_path.txt, and ..._label.txt "
                         "beside it")
    names, rows = read_list(path), read_list(beside)
    if len(names) != len(rows):
        raise InputError(f"{beside}: {plural(len(rows), 'row')} for the {len(names)} paths of "
                         f"{path}; take the two that belong together")
    for number, (name, row) in enumerate(zip(names, rows), 1):
        yield name, code_aus(columns, row.split(), f"{beside}:{number}")


def openface(path):
    """Add AUs to labels.csv from OpenFace's CSV files.

    IN... are files NAME.csv, each of the image NAME.jpg, or folders of them. Of face 0 the columns
    AU01_c, AU02_c ... are taken, which are 1 where OpenFace sees the AU (AU01_r, its intensity, is
    not used). OUT must have the expressions, and no AUs yet. These are labels of a tool, not of
    coders.
    """
    columns, rows = read_columns(path)
    aus = {name: int(name[2:4]) for name in columns if re.fullmatch("AU[0-9]{2}_c", name)}
    if not aus:
        raise InputError(f"{path}: no columns AU01_c, AU02_c ...: give CSV files of OpenFace, "
                         "run with -aus")
    faces = [(number, row) for number, row in rows if row.get("success", "1") == "1"
             and row.get("face_id", row.get("face", "0")) == "0"]
    if len(faces) > 1:
        raise InputError(f"{path}: {len(faces)} frames, and no image's name with them; run "
                         "FaceLandmarkImg, which writes a file for each image")
    return {au: is_seen(row[name], au, f"{path}:{number}") for number, row in faces
            for name, au in aus.items()}


# ---------------------------------------------------------------- labels.csv


def labels_file(out):
    """The path of labels.csv for OUT, which is a folder or that file itself."""
    if out.is_dir():
        return out / LABELS
    if out.name != LABELS:
        raise click.UsageError(f"OUT is a folder, or {LABELS} in it: that is the name that train "
                               "looks for.")
    return out


def below(images, out):
    """The paths of images from the folder of labels.csv, which must lie above them."""
    folder = os.path.abspath(out.parent)
    paths = [os.path.abspath(image) for image in images]
    for image, path in zip(images, paths):
        if os.path.commonpath([folder, path]) != folder:
            above = os.path.commonpath([os.path.dirname(image) for image in images])
            raise InputError(f"{out}: does not lie above the images, such as {image}; write to "
                             f"{os.path.join(above, LABELS)}")
    return [Path(os.path.relpath(path, folder)).as_posix() for path in paths]


def usable(faces, skip_missing):
    """The faces that have an expression and an image, and lines that say what was left out."""
    notes, faces = [], list(faces)
    known = [face for face in faces if face.expression]
    there = [face for face in known if face.image.is_file()]
    if not known:
        raise InputError("no images found; see `mmlfer convert --help` for the layouts")
    if len(there) < len(known) and not (skip_missing and there):
        first = next(face.image for face in known if not face.image.is_file())
        raise InputError(f"{len(known) - len(there)} of {plural(len(known), 'image')} are not "
                         f"there, {first} the first; --skip-missing leaves such rows out")
    for left, reason in ((len(faces) - len(known), "expression is not known"),
                         (len(known) - len(there), "image is not there")):
        if left:
            notes.append(f"left out {plural(left, 'row')} whose {reason}")
    return there, notes


def hold_out(faces, seed):
    """The faces, a quarter of the training ones now validation, by expression and by person."""
    train = [i for i, face in enumerate(faces) if face.split == "train"]
    _, y_emo = np.unique([faces[i].expression for i in train], return_inverse=True)
    people = [faces[i].labels.get("person") or f"\0{i}" for i in train]
    parts = split_people(y_emo, people, seed, {TRAIN: 0.75, VAL: 0.25})
    held = {i for i, part in zip(train, parts) if part == VAL}
    return [face._replace(split="val") if i in held else face for i, face in enumerate(faces)]


def complete(faces, seed):
    """The faces in the parts that `train` needs, and lines that say what was done. If no test part
    is published, the validation part becomes it, as in papers on sets without test labels. If there
    is no validation part then, a quarter of the training images becomes it."""
    parts, notes = {face.split for face in faces}, []
    if "" in parts and len(parts) > 1:
        odd = next(face.image for face in faces if not face.split)
        raise InputError(f"{odd}: is in no part, and other images are in train, val or test; say "
                         "which for all or for none")
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


def write_faces(faces, out):
    """Write labels.csv."""
    more = {name: "?" if name == "aus" else "" for face in faces for name in face.labels}
    published = ["split"] if any(face.split for face in faces) else []
    paths = below([face.image for face in faces], out)
    check_names(paths, {face.expression for face in faces}, out)
    rows = [{"image": path, "expression": face.expression, **dict.fromkeys(published, face.split),
             **more, **face.labels} for path, face in zip(paths, faces)]
    write_rows(rows, ["image", "expression", *published, *more], out)


def not_coded_rows(out):
    """The columns of a labels.csv whose rows are not coded, and {image's path: row}."""
    if not out.is_file():
        raise InputError(f"{out}: not there; write it first, with the expressions of the images, "
                         "for instance by: mmlfer convert folders")
    columns, rows = read_columns(out, "expression")
    image = next((name for name in COLUMNS["image"] if name in columns), None)
    if image is None:
        raise InputError(f"{out}: no column image; it has {', '.join(columns)[:200]}")
    wide, faces = [name for name in columns if re.fullmatch("AU[0-9]+", name, re.I)], {}
    for number, row in rows:
        if wide or row.get("aus", "?") != "?":
            raise InputError(f"{out}:{number}: is coded already, and the labels of two sources are "
                             "not mixed; put ? in all rows of the column aus, in a copy")
        try:
            faces[parse_place(row[image], f"{out.parent.resolve()}/")] = row
        except ValueError as error:
            raise InputError(f"{out}:{number}: {error}") from None
    return columns, faces


def add_aus(out, found, parts=()):
    """Put {image: {AU: True, False or None}} into the rows of labels.csv, and, if they are given,
    the parts, {image: train, val or test}. Returns a line that says how many images have AUs."""
    columns, faces = not_coded_rows(out)
    labels = dict(zip(found, au_labels(list(found.values()))))
    names = {name: "?" if name == "aus" else "" for row in labels.values() for name in row}
    n = len(faces.keys() & found.keys())
    if not n:
        given = f", such as {next(iter(found))}" if found else ""
        raise InputError(f"{out}: none of its images, such as {next(iter(faces), None)}, is among "
                         f"those with AUs{given}")
    columns = [name for name in columns if name != "aus"]
    if parts:
        columns.append("split")
        faces = {image: {**row, "split": parts[image]} for image, row in faces.items()}
    columns += names
    rows = [{**row, **names, **labels.get(image, {})} for image, row in faces.items()]
    write_rows([{name: row[name] for name in columns} for row in rows], columns, out)
    return f"AUs for {n} of {plural(len(rows), 'image')}; the others are not coded"


def match_by_name(paths, images):
    """{image: OpenFace's file}, matched by the name without its suffix. If several images have one
    name, it is the image whose folder has the name of the file's folder."""
    of_name, matched = collections.defaultdict(list), {}
    for image in images:
        of_name[Path(image).stem].append(image)
    for path in paths:
        same = of_name.get(path.stem, [])
        if len(same) > 1:
            same = [image for image in same if Path(image).parent.name == path.parent.name]
            if len(same) != 1:
                raise InputError(f"{path}: several images are called {path.stem}; write OpenFace's "
                                 "files to folders that are called as the images' folders")
        for image in same:
            if image in matched:
                raise InputError(f"{path}: {image} has the file {matched[image]} too; give one")
            matched[image] = path
    return matched


# ---------------------------------------------------------------- command line


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
expressions_option = functools.partial(
    click.option, "--expressions", callback=parse_names, metavar="NAMES")
aus_option = functools.partial(click.option, "--aus", callback=parse_columns, metavar="NUMBERS")
images_option = click.option("--images", type=FOLDER, help="The folder that the paths start from.")
seed_option = click.option("--seed", default=0, type=SEED, metavar="N",
                           help="Seed of a validation part drawn here.")
published_option = click.option("--as-published", is_flag=True, help="Leave parts as published.")
missing_option = click.option("--skip-missing", is_flag=True, help="Leave out rows without image.")


def writes_faces(function):
    """Add the argument OUT and the options of a format that has expressions to a command."""
    for option in (missing_option, seed_option, published_option, click.argument("out", type=PATH)):
        function = option(function)
    return function


def convert(faces, out, as_published, seed, skip_missing):
    """Write labels.csv of these faces to OUT, and print what it has."""
    out = labels_file(out)
    if out.exists():
        raise InputError(f"{out}: is there already; move it away first")
    faces, notes = usable(faces, skip_missing)
    faces, more = (faces, []) if as_published else complete(faces, seed)
    write_faces(faces, out)
    tell(out, [*notes, *more])


def tell(out, notes):
    """Print these lines, and what labels.csv has, as `train` reads it."""
    click.echo("\n".join([*notes, describe(load_faces(out.parent), out.parent)]))


class Formats(click.Group):
    format_commands = Program.format_commands  # one whole sentence for each format

    def list_commands(self, ctx):  # in the order below
        return list(self.commands)


@click.group("convert", cls=Formats, subcommand_metavar="FORMAT IN... OUT")
def command():
    """Write labels.csv, as `train` reads it, from other layouts of faces and labels.

    labels.csv has a row for each image: its path, its expression, its part (train, val, test), its
    AUs. OUT is the folder to write it to. This must lie above the images: their paths start there.
    Images stay where they are.

    Parts that are missing are made so that `train` can start. Without a test part, the published
    validation part is tested, as papers do; without a validation part, it is a quarter of the
    training images. Where no parts are published, all are drawn when labels.csv is read.
    """


@command.command("rafdb", help=rafdb.__doc__)
@click.argument("folder", metavar="IN", type=FOLDER)
@writes_faces
@expressions_option(help="The classes' names, from 1, if not the 11 of the compound part.")
def rafdb_command(folder, expressions, **options):
    convert(rafdb(folder, expressions), **options)


@command.command("folders", help=folders.__doc__)
@click.argument("folder", metavar="IN", type=FOLDER)
@writes_faces
def folders_command(folder, **options):
    convert(folders(folder), **options)


@command.command("huggingface", help=huggingface.__doc__)
@click.argument("folder", metavar="IN", type=FOLDER)
@writes_faces
@click.option("--column", help="Which has the expressions, if not expression, label or emotion.")
@expressions_option(help="The classes' names, from 0, where the column has numbers.")
def huggingface_command(folder, column, expressions, **options):
    convert(huggingface(folder, column, expressions), **options)


@command.command("abaw", help=abaw.__doc__)
@click.argument("paths", metavar="IN...", nargs=-1, required=True, type=FILE)
@writes_faces
@images_option
@aus_option(default=ABAW_AUS, help="The AUs of the columns, in their order.")
@expressions_option(default=",".join(ABAW), help="The classes' names, from 0.")
def abaw_command(paths, images, aus, expressions, **options):
    convert(abaw(paths, images, aus, expressions), **options)


@command.command("opengraphau", help=opengraphau.__doc__)
@click.argument("paths", metavar="IN...", nargs=-1, required=True, type=FILE)
@click.argument("out", type=PATH)
@published_option
@seed_option
@images_option
@aus_option(required=True, help="The AUs of the columns, in their order.")
def opengraphau_command(paths, out, as_published, seed, images, aus):
    out, found, parts, notes = labels_file(out), {}, {}, []
    for path in paths:
        for name, coded in opengraphau(path, aus):
            image = os.path.relpath((images or path.parent.parent / "img") / name, out.parent)
            image = Path(image).as_posix()
            if image in found:
                raise InputError(f"{path}: {name} has two rows; keep one")
            found[image], parts[image] = coded, part_in(path.name)
    columns, rows = not_coded_rows(out)
    faces = [Face(image, row["expression"], parts.get(image, ""), row)
             for image, row in rows.items()]
    if {*COLUMNS["split"]} & {*columns} or not all(face.split for face in faces):
        faces = []  # parts in labels.csv stay; and parts of only some images are not used
    elif not as_published:
        faces, notes = complete(faces, seed)
    parts = {face.image: face.split for face in faces if face.split}
    tell(out, [add_aus(out, found, parts), *notes])


@command.command("openface", help=openface.__doc__)
@click.argument("paths", metavar="IN...", nargs=-1, required=True, type=PATH)
@click.argument("out", type=PATH)
def openface_command(paths, out):
    out = labels_file(out)
    _, faces = not_coded_rows(out)
    files = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in files_below(path) if file.suffix == ".csv")
        else:
            files.append(path)
    matched = match_by_name(files, faces)
    found = {name: openface(path) for name, path in matched.items()}
    notes = [add_aus(out, {name: aus for name, aus in found.items() if aus})]
    for n, reason in ((list(found.values()).count({}), "in which OpenFace found no face"),
                      (len(files) - len(matched), "without an image of that name")):
        if n:
            notes.append(f"{plural(n, 'file')} {reason}")
    tell(out, notes)
