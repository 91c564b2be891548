"""Layouts of faces and labels that people have, each read as Labelled faces: see formats.md."""

import collections
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmlfer import EMOTIONS, InputError, image_index, plural, progress, refused, stem
from mmlfer_commands._inputs import (
    files_below, find_files, images_among, images_below, is_hidden, read_list)
from mmlfer_commands._labels import NONE, PARTS, SPLIT_NAMES, Rows, read_columns, read_rows
from mmlfer_commands._rafce import read_labels

RAFDB = tuple(name for name in EMOTIONS if name not in (
    "fearfully disgusted", "happily fearful", "happily sad"))  # its classes 1..11
BASIC = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")  # 1..7
ATTRIBUTES = {"gender": ("male", "female", "unsure"),
              "race": ("Caucasian", "African-American", "Asian"),
              "age": ("0-3", "4-19", "20-39", "40-69", "70+")}  # RAF-DB's, each from 0
ABAW = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other")
ABAW_AUS = "1,2,4,6,7,10,12,15,23,24,25,26"  # the challenge's order, as of the classes 0..7
AFFECTNET = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
FER = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
JAFFE = {name[:2].upper(): name for name in FER}
FER_PARTS = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
BYTES = {str(value) for value in range(256)}
NOT_CODED = {"aus": "?"}


class Labelled(NamedTuple):
    """An image and its labels, as a format gives them."""

    image: Path
    expression: str  # NONE where nobody named it, "" if the row is to be left out for that
    split: str = ""  # train, val, test; "" where none is published
    labels: dict = NOT_CODED  # labels.csv's other columns
    place: str = ""  # where they stand, if not in the image's own path
    code: str = ""  # what stands there for the expression, if not its name
    aus: dict | None = None  # {AU: True, False or None for not coded}, in place of columns
    pixels: object = None  # a picture that is to be written, in place of one that is there


# ---------------------------------------------------------------- reading


def part_of(name):
    """The part that a folder's name or a cell stands for: train, val, test, or "" for none."""
    return SPLIT_NAMES.get(PARTS.get(name.lower()), "")


def part_in(name):
    """The part that a word in a file's name stands for: train in training_set_annotations.txt."""
    found = {*map(part_of, re.split("[^A-Za-z]+", name))} - {""}
    return found.pop() if len(found) == 1 else ""


def class_name(code, expressions, where, first=0, what="a class"):
    """The expression of a class number, which is text and counts from `first`."""
    last = first + len(expressions) - 1
    if not re.fullmatch("[0-9]{1,4}", code) or not first <= int(code) <= last:
        fix = "fix this row" + ", or name all classes with --expressions" * (what == "a class")
        raise InputError(f"{where}: expected {what} {first}..{last}, got {code[:20]!r}; {fix}")
    return expressions[int(code) - first]


class Coding(NamedTuple):
    """How a table says whether an AU is seen."""

    top: float = 1  # the largest value
    present_from: float = 1
    unknown: float = -1  # not coded


ONE = Coding()  # 0, 1, and -1 for not coded


def is_seen(value, au, where, coding=ONE):
    """Whether a cell says that an AU is seen; None where it is not coded."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if number == coding.unknown:
        return None
    whole = number % 1 == 0 or coding.present_from % 1  # fractions where the bound is one
    if not (0 <= number <= coding.top and whole):
        values = "0, 1" if coding.top == 1 else f"0..{coding.top:g}"
        raise InputError(f"{where}: expected {values} or {coding.unknown:g} (not coded) for AU "
                         f"{au}, got {value[:20]!r}; fix this row")
    return number >= coding.present_from


def code_aus(columns, values, where, coding=ONE):
    """{AU: True, False or None} of the values of columns [(AU, side)]. An AU is seen if its column
    or a side's says so; else its column decides or, if not coded, the sides, if all are coded."""
    if len(values) != len(columns):
        raise InputError(f"{where}: {plural(len(values), 'AU value')}, expected {len(columns)}; "
                         "fix this row, or see --help for the columns")
    by_au = collections.defaultdict(dict)
    for (au, side), value in zip(columns, values):
        by_au[au][side] = is_seen(value, f"{side}{au}", where, coding)
    aus = {}
    for au, sides in by_au.items():
        own = sides.pop("", None)
        if own is None and sides and None not in sides.values():
            own = False
        aus[au] = True in sides.values() or own
    return aus


def au_labels(coded):
    """labels.csv's columns for rows of {AU: True, False or None}: `aus` if each row is coded as a
    whole or not at all, else one for each AU. AUs that no row has coded are left out."""
    known = {au for row in coded for au, seen in row.items() if seen is not None}
    coded = [{au: row.get(au) for au in known} for row in coded]
    whole = [set(row.values()) == {None} or None not in row.values() for row in coded]
    if not all(whole):
        cells = {True: "1", False: "0", None: ""}
        return [{f"AU{au}": cells[seen] for au, seen in sorted(row.items())} for row in coded]
    return [NOT_CODED if None in row.values() else
            {"aus": "+".join(str(au) for au in sorted(row) if row[au])} for row in coded]


# ---------------------------------------------------------------- formats


def rafdb(folder, expressions):
    kaggle = (folder / "train_labels.csv").is_file()
    rows = list(rafdb_copy(folder) if kaggle else rafdb_list(folder))
    compound = any(len(code) > 1 or code > "7" for _, _, code, _ in rows)
    if not (kaggle or compound or expressions or any(len(stem(row[1])) > 10 for row in rows)):
        raise InputError(f"{folder}: no class above 7, no name with five digits as in the basic "
                         f"part: name the classes, from 1, with --expressions {','.join(BASIC)}")
    for where, name, code, image in rows:
        if not (part := part_of(name.split("_")[0])):
            raise InputError(f"{where}: expected train_ or test_ in the name; fix this row")
        names = expressions or (RAFDB if compound else BASIC)
        expression = class_name(code, names, where, first=1)
        manual = folder / "Annotation" / "manual" / f"{stem(name)}_manu_attri.txt"
        yield Labelled(image, expression, part, NOT_CODED | attributes(manual), where, code)


def rafdb_list(folder):
    """Yield (place, image's name, class, image) of the rows of RAF-DB's list."""
    path = folder / "EmoLabel" / "list_patition_label.txt"
    if not path.is_file():
        raise InputError(f"{path}: not there; give RAF-DB's folder `basic` or `compound`")
    index = image_index(folder / "Image", folder / "Image" / "original")
    for name, (number, code) in read_labels(path, str).items():
        image = index.get(stem(name), folder / "Image" / "aligned" / name)
        yield f"{path}:{number}", name, code, image


def rafdb_copy(folder):
    """Yield the same of Kaggle's copy."""
    for part in ("train", "test"):
        path = folder / f"{part}_labels.csv"
        for number, row in read_columns(path, "image", "label")[1]:
            image = folder / "DATASET" / part / row["label"] / row["image"]
            yield f"{path}:{number}", row["image"], row["label"], image


def attributes(path):
    """The columns gender, race and age by lines 6 to 8 of a file of RAF-DB, if it is there."""
    if not path.is_file():
        return {}
    lines = [*read_list(path), *[""] * 8]
    return {name: class_name(lines[number - 1], words, f"{path}:{number}", what=name)
            for number, (name, words) in enumerate(ATTRIBUTES.items(), 6)}


def affectnet(folder, images):
    rows = affectnet_arrays if (folder / "train_set").is_dir() else affectnet_lists
    for where, image, split, code in rows(folder, images):
        name = class_name(code, (*AFFECTNET, "", "", ""), where, what="one of AffectNet's classes")
        yield Labelled(image, name, split, place=where, code=code)


def affectnet_arrays(folder, _):
    """Yield (place, image, part, class) of the files N_exp.npy."""
    for part in ("train", "val"):
        inside = sorted((folder / f"{part}_set" / "annotations").glob("*_exp.npy"))
        for path in progress(inside, f"reading {part}_set", unit=" files"):
            with refused(path, "not one class in NumPy's form; take the published file",
                         OSError, ValueError, EOFError):
                code = str(np.load(path).item()).removesuffix(".0")
            image = path.parent.parent / "images" / path.name.replace("_exp.npy", ".jpg")
            yield str(path), image, part, code


def affectnet_lists(folder, images):
    """Yield the same of the rows of training.csv and validation.csv."""
    paths = {part: folder / f"{part}.csv" for part in ("training", "validation")}
    if not images:
        raise InputError(f"{folder}: lists of whole photographs (or no AffectNet); cut out the "
                         "faces first, mmlfer crop PHOTOS --out CROPS, and add --images CROPS")
    crops = crops_of(images) if (images / "faces.csv").is_file() else None
    for part, path in paths.items():
        for number, line in enumerate(read_list(path), 1):
            cells, where = line.split(","), f"{path}:{number}"
            if cells[0] == "subDirectory_filePath":
                continue
            if len(cells) != 9:
                raise InputError(f"{where}: expected 9 fields, got {len(cells)}; fix this row")
            with refused(where, "expected numbers for the face's box; fix this row", ValueError):
                image = images / cells[0] if crops is None else nearest(crops, cells, images)
            yield where, image, part_of(part), cells[6]


def crops_of(folder):
    """{last two names of a photograph's path: [(file, middle of the face)]} by `crop`'s table."""
    crops = collections.defaultdict(list)
    box = ("left", "top", "width", "height")
    for number, row in read_columns(folder / "faces.csv", "image", "file", *box)[1]:
        with refused(f"{folder}/faces.csv:{number}", f"expected numbers for {', '.join(box)}; take "
                     "the file as `mmlfer crop` wrote it", ValueError):
            left, top, width, height = (float(row[x]) for x in box)
        middle = left + width / 2, top + height / 2
        crops["/".join(Path(row["image"]).parts[-2:])].append((row["file"], middle))
    return crops


def nearest(crops, cells, folder):
    """The crop of a row of AffectNet's lists: of the faces found in its photograph the one nearest
    to the row's, if its middle lies in that face's box."""
    x, y, width, height = map(float, cells[1:5])
    found = {math.hypot(a - x - width / 2, b - y - height / 2): file
             for file, (a, b) in crops.get("/".join(Path(cells[0]).parts[-2:]), ())
             if x <= a <= x + width and y <= b <= y + height}
    return folder / (found[min(found)] if found else cells[0])


def fer2013(path, votes):
    """The faces of FER2013, with FERPlus's votes if given."""
    _, rows = read_columns(path, "emotion", "pixels", "Usage")
    faces = []
    for i, (number, row) in enumerate(progress(rows, "reading", unit=" faces")):
        where, values = f"{path}:{number}", row["pixels"].split()
        if len(values) != 48 * 48 or not {*values} <= BYTES:
            raise InputError(f"{where}: expected 48x48 values 0..255, got {len(values)}; fix them")
        if row["Usage"] not in FER_PARTS:
            raise InputError(f"{where}: expected a Usage of {', '.join(FER_PARTS)}, got "
                             f"{row['Usage'][:20]!r}; fix this row")
        faces.append(Labelled(
            Path("fer2013", f"fer{i:07d}.png"), class_name(row["emotion"], FER, where),
            FER_PARTS[row["Usage"]], place=where, code=row["emotion"],
            pixels=np.array(values, np.uint8).reshape(48, 48)))
    return with_votes(faces, path, votes) if votes else faces


def with_votes(faces, path, votes):
    """The faces of FER2013 with FERPlus's votes in place of its classes."""
    rows = list(read_columns(votes, *FERPLUS, "unknown", "NF", "Image name")[1])
    if len(rows) != len(faces):
        raise InputError(f"{votes}: {plural(len(rows), 'row')} for the {len(faces)} of {path}; "
                         "take the two that belong together")
    for face, (number, row) in zip(faces, rows):
        if not all(row[name].isdecimal() for name in (*FERPLUS, "unknown", "NF")):
            raise InputError(f"{votes}:{number}: expected whole numbers of votes; fix this row")
        given = {name: int(row[name]) for name in FERPLUS}
        most = [name for name in FERPLUS if given[name] == max(given.values())]
        none = max(int(row["unknown"]), int(row["NF"])) >= max(given.values())
        name = "" if none or not row["Image name"] else most[0] if len(most) == 1 else NONE
        labels = NOT_CODED | {f"p_{name}": str(n) for name, n in given.items()}
        yield face._replace(expression=name, labels=labels, place=f"{votes}:{number}", code="")


def jaffe(folder):
    for path in images_below(folder):
        match = re.fullmatch(f"([A-Z]{{2}})[.]({'|'.join(JAFFE)})[0-9]+[.][0-9]+", path.stem)
        if not match:
            raise InputError(f"{path}: expected a name like KA.AN1.39.tiff; move it away")
        person, face = match.groups()
        yield Labelled(path, JAFFE[face], labels=NOT_CODED | {"person": person}, code=face)


def mafw(folder, images, fold):
    if not (folder / f"set_{fold}").is_dir():
        raise InputError(f"{folder}: no set_{fold} in it; give MAFW's folder of set_1 to set_5")
    lists = {(k, part): read_labels(folder / f"set_{k}" / f"{part}.txt", str)
             for k in range(1, 6) for part in ("train", "test")}
    tested = {name: str(k) for (k, part), rows in lists.items() if part == "test" for name in rows}
    for part in ("train", "test"):
        for name, (number, expression) in lists[fold, part].items():
            place = f"{folder}/set_{fold}/{part}.txt:{number}"
            labels = NOT_CODED | {"person": Path(name).stem, "fold": tested.get(name, "train")}
            clip = images / Path(name).stem
            for frame in frames_in(clip).values() or [clip / "00001.jpg"]:
                yield Labelled(frame, expression, part, labels, place)


def frames_in(folder):
    """{number: image} of a folder of frames: 1.jpg, 00001.png, SN001_0001.jpg."""
    frames = {}
    for path in images_below(folder) if folder.is_dir() else ():
        smaller = re.fullmatch("[0-9]+[.][0-9]+", path.stem)  # face of a frame, as `crop` has it
        if (match := re.search("[0-9]+$", path.stem)) and not smaller:
            first = frames.setdefault(int(match[0]), path)
            if first != path:
                raise InputError(f"{path}: is frame {int(match[0])}, as {first.name} is; keep one")
    return frames


def subfolders(folder):
    """The folders in a folder that has no images of its own: they would have no class."""
    inside = [path for path in sorted(folder.iterdir()) if not is_hidden(path.name)]
    for path in images_among([path for path in inside if not path.is_dir()], folder):
        raise InputError(f"{path}: lies beside the folders of the classes; move it into one")
    return [path for path in inside if path.is_dir()]


def folders(folder):
    """The images of a folder for each class."""
    tops = subfolders(folder)
    parts = [part_of(top.name) for top in tops]
    if any(parts) and not all(parts):
        raise InputError(f"{tops[parts.index('')]}: no train, val or test, as others are; move it")
    for part, top in zip(parts, tops):
        for place in subfolders(top) if part else [top]:
            yield from (Labelled(path, place.name, part) for path in images_below(place))


def class_column(columns, column, path):
    """The index of metadata.csv's column of expressions, which --column may name."""
    found = [i for i, name in enumerate(columns) if name == column
             or not column and name.lower() in ("expression", "label", "emotion")]
    if len(found) != 1:
        raise InputError(f"{path}: name the expressions' --column: {', '.join(columns)[:200]}")
    return found[0]


def huggingface(folder, column, expressions):
    """The images of Hugging Face's imagefolder."""
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
            yield labelled_row(table, cells, folder, where)._replace(code=label * bool(expressions))


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


def abaw(paths, images, aus, expressions):
    """The frames of ABAW's lists or of Aff-Wild2's text files."""
    lists = [path for path in paths if path.is_file()]
    faces = [face for path in lists for face in abaw_list(path, images, aus, expressions)]
    files = [file for path in paths if path.is_dir() for file in sorted(files_below(path))
             if file.suffix.lower() == ".txt"]
    if files and not images:
        raise InputError(f"{files[0]}: names no images; add --images, the videos' parent folder")
    for face in [*faces, *affwild2(files, images, expressions)]:
        yield face._replace(labels={"person": face.image.parent.name})


def abaw_list(path, images, aus, expressions):
    """Yield the rows of one of ABAW's lists."""
    rows = read_rows(path)
    if next(rows, (1, []))[1][:5] != ["image", "valence", "arousal", "expression", "aus"]:
        raise InputError(f"{path}: expected the header image,valence,arousal,expression,aus")
    for number, cells in rows:
        name, _, _, code, *values = cells + [""] * (4 - len(cells))
        where = f"{path}:{number}"
        face = Labelled((images or path.parent) / name, NONE, part_in(path.name), {}, where)
        if code != "-1":
            face = face._replace(expression=class_name(code, expressions, where), code=code)
        yield face._replace(aus=code_aus(aus, values, where))


def affwild2(files, images, expressions):
    """The rows of Aff-Wild2's text files; what several files say of a frame is put together."""
    faces = {}
    for path in progress(files, "reading", unit=" files"):
        rows, frames = read_rows(path), frames_in(images / path.stem)
        header = next(rows, (1, []))[1]
        aus = [int(name[2:]) for name in header if re.fullmatch("AU[0-9]{1,2}", name)]
        if len(aus or expressions) != len(header):
            raise InputError(f"{path}: expected a header of AUs, AU1,AU2,..., or of "
                             f"{len(expressions)} classes; give the folders of these alone")
        for number, cells in rows:
            where, frame, part = f"{path}:{number}", number - 1, part_in(path.parent.name)
            image = frames.get(frame, images / path.stem / f"{frame:05d}.jpg")
            face = faces.get((path.stem, frame)) or Labelled(image, NONE, part, {}, where, "", {})
            if face.split != part:
                raise InputError(f"{where}: not in the part of {face.place}; give lists that agree")
            if aus:
                face = face._replace(aus=code_aus([(au, "") for au in aus], cells, where))
            elif cells[0] != "-1":
                name = class_name(cells[0], expressions, where)
                face = face._replace(expression=name, code=cells[0])
            faces[path.stem, frame] = face
    return faces.values()
