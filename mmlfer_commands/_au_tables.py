"""Tables of AUs, by coders, without expressions, or by tools. formats.md describes each layout."""

import collections
import re
from pathlib import Path
from typing import NamedTuple

from mmlfer import AU_NAMES, InputError, plural
from mmlfer_commands._formats import (
    NOT_CODED, ONE, Coding, Labelled, class_name, code_aus, frames_in, is_seen)
from mmlfer_commands._inputs import images_below, read_list
from mmlfer_commands._labels import NONE, read_columns, read_rows

CKPLUS = ("neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")


def frames_of(folder, rows, person):
    """Faces of a clip's frames, which lie in a folder, by {frame: (place, {AU: seen})}."""
    frames = frames_in(folder)
    for number, (place, aus) in rows.items():
        image = frames.get(number, folder / f"{number:05d}.jpg")
        yield Labelled(image, NONE, "", {"person": person}, place, aus=aus)


def whole(text, what, where):
    """A whole number that stands in a table."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise InputError(f"{where}: expected {what}, an integer, got {text[:20]!r}; fix this row")
    return int(text)


def disfa(folder, images, present_from, unknown):
    for person in sorted((folder / "ActionUnit_Labels").glob("SN*")):
        rows = {}
        for path in sorted(person.glob(f"{person.name}_au*.txt")):
            au = whole(path.stem.rpartition("_au")[2], "an AU in the name", path)
            for number, cells in read_rows(path):
                where = f"{path}:{number}"
                if len(cells) != 2:
                    raise InputError(f"{where}: expected frame,intensity; fix this row")
                aus = rows.setdefault(whole(cells[0], "a frame", where), (where, {}))[1]
                aus[au] = is_seen(cells[1], au, where, Coding(5, present_from, unknown))
        yield from frames_of(images / person.name, rows, person.name)


def bp4d(folder, images, present_from, unknown):
    coding = Coding(1 if present_from <= 1 else 5, present_from, unknown)
    for path in sorted(folder.glob("*_*.csv")):
        (first, header), *table = list(read_rows(path)) or [(1, [])]
        aus = [(whole(au, "an AU", f"{path}:{first}"), "") for au in header[1:]]
        person, task = path.stem.split("_")[:2]
        rows = {}
        for number, (frame, *values) in table:
            where = f"{path}:{number}"
            rows[whole(frame, "a frame", where)] = where, code_aus(aus, values, where, coding)
        yield from frames_of(images / person / task, rows, person)


def emotionet(paths, images, present_from, unknown):
    coding = Coding(1 if present_from <= 1 else 5, present_from, unknown)
    for path in paths:
        for number, (_, *cells) in read_rows(path):
            name, *values = cells or [""]
            if number == 1 and not re.match("[0-9]", "".join(values)):
                continue  # a header
            where = f"{path}:{number}"
            aus = code_aus([(au, "") for au in range(1, 61)], values, where, coding)
            aus = {au: seen for au, seen in aus.items() if au in AU_NAMES}
            yield Labelled(images / Path(name).name, NONE, "", {}, where, aus=aus)


def ckplus(folder, frames, present_from):
    """The last frames and the first of CK+'s sequences."""
    for facs in sorted((folder / "FACS").glob("*/*/*_facs.txt")):
        person, sequence = facs.parts[-3:-1]
        images = images_below(folder / "cohn-kanade-images" / person / sequence)
        emotion = next((folder / "Emotion" / person / sequence).glob("*_emotion.txt"), None)
        code = "".join(str(x) for x, in numbers_in(emotion, 1)) if emotion else ""
        name = class_name(code, CKPLUS, emotion, what="one of CK+'s classes") if emotion else NONE
        rows = numbers_in(facs, 2)
        aus = sorted(au for au, x in rows if au in AU_NAMES and (x == 0 or x >= present_from))
        labels = {"aus": "+".join(map(str, aus)), "person": person}
        for image in images[-frames:]:
            yield Labelled(image, name, "", labels, str(facs), code)
        if emotion and len(images) > frames:
            yield Labelled(images[0], CKPLUS[0], "", NOT_CODED | {"person": person}, str(facs), "0")


def numbers_in(path, fields):
    """The rows of a file of whole numbers, written as 3.0000000e+00, as lists of so many."""
    rows, known = [], re.compile(r"[0-9]+[.]?[0-9]*(e[+-]?[0-9]{1,2})?")
    for number, line in enumerate(read_list(path), 1):
        row = [float(word) for word in line.split() if known.fullmatch(word)]
        if line and not sum(x % 1 == 0 for x in row) == len(line.split()) == fields:
            raise InputError(f"{path}:{number}: expected {plural(fields, 'whole number')}, got "
                             f"{line[:30]!r}; fix this row")
        rows += [[*map(int, row)]] if row else []
    return rows


def opengraphau(path, aus):
    """Yield (image, {AU: True, False or None}) of a list of OpenGraphAU."""
    beside = path.with_name(path.name.replace("img_path", "label"))
    if beside == path:
        raise InputError(f"{path}: expected a list ..._img_path.txt, and ..._label.txt beside it")
    names, rows = read_list(path), read_list(beside)
    if len(names) != len(rows):
        raise InputError(f"{beside}: {plural(len(rows), 'row')} for the {len(names)} paths of "
                         f"{path}; take the two that belong together")
    for number, (name, row) in enumerate(zip(names, rows), 1):
        yield name, code_aus(aus, row.split(), f"{beside}:{number}")


class Tool(NamedTuple):
    """A program that names AUs, and its CSV files."""

    title: str
    pattern: str  # of the columns that say whether an AU is seen
    columns: str  # the first of them
    coding: Coding = ONE


TOOLS = {"openface": Tool("OpenFace", "AU([0-9]{2})_c", "AU01_c, AU02_c"),
         "pyfeat": Tool("py-feat", "AU([0-9]{2})", "AU01, AU02", Coding(present_from=0.5)),
         "libreface": Tool("LibreFace", "au_([0-9]{1,2})", "au_1, au_2")}


def tool_aus(tool, path):
    """{image, or the file itself: {AU: seen}, {} if no face} of a tool's file, by first faces."""
    columns, rows = read_columns(path)
    if "action_units" in columns:
        raise InputError(f"{path}: OpenFace 3 does not name its eight AUs; run OpenFace 2")
    aus = {name: int(match[1]) for name in columns if (match := re.fullmatch(tool.pattern, name))}
    if not aus:
        raise InputError(f"{path}: no columns {tool.columns} ...: give {tool.title}'s files of AUs")
    found, frames = {path: {}} if "input" not in columns else {}, collections.defaultdict(set)
    for number, row in rows:
        image = Path(row.get("input") or path)
        first = row.get("face_id", row.get("face", "0")) == "0" and row.get("success", "1") == "1"
        known = {name: au for name, au in aus.items() if row[name].lower() not in ("", "nan")}
        seen = {au: is_seen(row[name], au, f"{path}:{number}", tool.coding)
                for name, au in known.items() if first}
        found[image] = found.get(image) or seen
        if seen:
            frames[image].add(row.get("frame", row.get("frame_idx")))
    if (many := max(map(len, frames.values()), default=0)) > 1:
        raise InputError(f"{path}: {many} frames, and no image's name with them; run the tool on "
                         "images, so that each has its own file or name")
    return found
