"""Layouts of faces and labels that people have, each read as Labelled faces."""

import collections
import re
from pathlib import Path
from typing import NamedTuple

from mmlfer import (
    TEST,
    TRAIN,
    VAL,
    InputError,
    image_index,
    parse_code,
    plural,
    read_labels,
    stem,
)
from mmlfer_commands._inputs import find_files, images_among, images_below, is_hidden
from mmlfer_commands._labels import PARTS, Rows, read_columns, read_rows

RAFDB = ("happily surprised", "happily disgusted", "sadly fearful", "sadly angry",
         "sadly surprised", "sadly disgusted", "fearfully angry", "fearfully surprised",
         "angrily surprised", "angrily disgusted", "disgustedly surprised")  # its classes 1..11
ABAW = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other")
ABAW_AUS = "1,2,4,6,7,10,12,15,23,24,25,26"  # the challenge's order, as of the classes 0..7
NOT_CODED = {"aus": "?"}
CODES = {1: True, 0: False, -1: None}  # whether an AU is seen


class Labelled(NamedTuple):
    """An image and its labels, as a format gives them."""

    image: Path
    expression: str  # "" where it is unknown
    split: str = ""  # train, val, test; "" where none is published
    labels: dict = NOT_CODED  # labels.csv's other columns
    place: str = ""  # where they stand, if not in the image's own path


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
    return {TRAIN: "train", VAL: "val", TEST: "test"}.get(PARTS.get(name.lower()), "")


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
        yield Labelled(image, (expressions or RAFDB)[code - 1], part, place=f"{path}:{number}")


def subfolders(folder):
    """The folders in a folder that has no images of its own: they would have no class."""
    inside = [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
    for path in images_among([path for path in inside if not path.is_dir()], folder):
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
            yield from (Labelled(path, place.name, part) for path in images_below(place))


def class_column(columns, column, path):
    """The index of metadata.csv's column of expressions, which --column may name."""
    known = [name for name in columns if name.lower() in ("expression", "label", "emotion")]
    if column and column not in columns:
        raise InputError(f"{path}: no column {column}; it has {', '.join(columns)[:200]}")
    if not column and len(known) != 1:
        raise InputError(f"{path}: which column has the expressions? Name one with --column: "
                         f"{', '.join(columns)[:200]}")
    return columns.index(column or known[0])


def huggingface(folder, column, expressions):
    """Read Hugging Face's imagefolder with metadata.csv.

    metadata.csv lies in the data set's folder IN, or in each of its train, validation and test. Its
    columns are called as those of labels.csv: file_name is a path from where it lies; the part
    stands in a column split or is the name of a folder; person, aus and AU1, AU2 ... are taken.
    """
    paths = find_files(folder, "metadata.csv")
    if not paths:
        raise InputError(f"{folder}: no metadata.csv in it or below it; name the data set's folder")
    for path in paths:
        rows = read_rows(path)
        columns = next(rows, (1, []))[1]
        which = class_column(columns, column, path)
        columns = [f"other {name}" if name.lower() == "expression" else name for name in columns]
        columns[which] = "expression"
        table = Rows(path, columns, aus_needed=False)
        for number, cells in rows:
            where, label = f"{path}:{number}", "".join(cells[which : which + 1])
            if expressions:
                cells[which] = class_name(label, expressions, where)
            elif label.isdigit():
                raise InputError(f"{where}: expression {label}: --expressions names the classes, "
                                 "from 0, as in --expressions anger,fear,joy")
            table.add(number, cells)
            yield labelled_row(table, cells, folder, where)


def labelled_row(table, cells, folder, place):
    """The row of a metadata.csv that a table has just read, as Labelled."""
    name = cells[table.places["image"]]
    words = [*table.path.relative_to(folder).parts[:-1], *Path(name).parts[:-1]]
    if "split" in table.places:
        words = [cells[table.places["split"]]]
    labels = {what: cells[table.places[what]] for what in ("person", "aus") if what in table.places}
    labels |= {f"AU{au}": cells[i] for au, i in table.aus.items()}
    return Labelled(table.path.parent / name, table.expressions[-1],
                    next(filter(None, map(part_of, words)), ""),
                    labels if {*labels} - {"person"} else labels | NOT_CODED, place)


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
            image = (images or path.parent) / name
            faces.append(Labelled(image, known, part_in(path.name), place=where))
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
    if "action_units" in columns:
        raise InputError(f"{path}: OpenFace 3's file has eight AUs without names, which cannot be "
                         "used; run OpenFace 2")
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
