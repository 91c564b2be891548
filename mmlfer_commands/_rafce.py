"""RAF-CE as it is distributed: its three label files, and its counts."""

import re
from pathlib import Path

import numpy as np

from mmlfer import (
    AUS, EMOTIONS, LABEL_FILES, RAFCE, SPLITS, TEST, Faces, InputError, counts, plural, refused,
    stem, write_whole)

RAFCE_TOTALS = (676, 279, 171, 230, 120, 835, 195, 603, 36, 210, 977, 177, 11, 29)
RAFCE_TEST = (126, 54, 36, 44, 25, 178, 43, 113, 6, 44, 194, 37, 1, 8)
RAFCE_SPLITS = {"train": 2709, "test": 909, "val": 931}


def parse_aus(text, known=AUS):
    """'4+L12+25' -> ((4, ''), (12, 'L'), (25, '')): number and side; 'null' -> ()."""
    if text.lower() == "null":
        return ()
    aus = []
    for token in text.split("+"):
        match = re.fullmatch(r"([A-Za-z]*)([0-9]{1,3})([A-Za-z]*)", token)
        if not match:
            raise ValueError(f"expected AUs like 4+L12+25 or null, got {token!r} in {text!r}")
        if int(match[2]) not in known:
            all_ = "32 AUs of RAF-CE" if known == AUS else "AUs of FACS, 1 to 46"
            raise ValueError(f"AU {int(match[2])} is not one of the {all_}")
        aus.append((int(match[2]), (match[1] + match[3]).upper()))
    return tuple(aus)


def parse_code(text, top=2):
    """An integer 0..top, by default a partition's, or ValueError."""
    if not text.isascii() or not text.isdigit() or int(text) > top:
        raise ValueError(f"expected a whole number 0..{top}, got {text!r}")
    return int(text)


def read_labels(path, parse, fields=1):
    """A label file's rows as {image name: (row number, value)}; parse makes a value of fields."""
    with refused(path, "{}; `synth` makes stand-ins"):
        text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    if "\0" in text or "\ufffd" in text:
        raise InputError(f"{path}: not a text file; take the published one")
    rows = {}
    for number, line in enumerate(text.split("\n"), 1):
        parts, where = line.split(), f"{path}:{number}"
        if not parts:
            continue
        if len(parts) != fields + 1:
            raise InputError(f"{where}: expected an image name and {plural(fields, 'value')}, got "
                             f"{plural(len(parts), 'field')}; fix this row")
        with refused(where, "{}; fix this row", ValueError):
            value = parse(*parts[1:])
        if rows.get(parts[0], (0, value))[1] != value:
            raise InputError(f"{where}: {parts[0]} differs in row {rows[parts[0]][0]}; keep one")
        rows[parts[0]] = (number, value)
    if not rows:
        raise InputError(f"{path}: empty; take the published one")
    return rows


def one_image_a_row(rows, path):
    """Refuse two rows that name one image: 1.jpg and 1.png, a/1.jpg and b/1.jpg."""
    seen = {}
    for name, (number, _) in rows.items():
        first, row = seen.setdefault(stem(name), (name, number))
        if first != name:
            raise InputError(f"{path}:{number}: {name} is the same image as {first} of row {row}: "
                             f"both are looked for as {stem(name)}; rename one")


def load_labels(folder):
    """The three label files of a folder laid out like RAF-CE, as Faces without images."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; ask for RAF-CE at http://www.whdeng.cn/RAF/"
                         f"model4.html, or make stand-in faces: mmlfer synth {folder}")
    paths = [folder / name for name in LABEL_FILES]
    parsers = (lambda text: parse_code(text, len(EMOTIONS) - 1), parse_code, parse_aus)
    files = [read_labels(path, parse) for path, parse in zip(paths, parsers)]
    for i, j in ((0, 1), (1, 0), (0, 2), (2, 0)):
        for name, (number, _) in files[i].items():
            if name not in files[j]:
                raise InputError(f"{paths[i]}:{number}: {name} is not in {paths[j]}; "
                                 "the label files must list the same images")
    emo, split, aus = files
    one_image_a_row(emo, paths[0])
    names = list(emo)
    y_au = np.zeros((len(names), len(AUS)), np.uint8)
    for i, name in enumerate(names):
        y_au[i, [AUS.index(number) for number, _ in aus[name][1]]] = 1
    return Faces(names, *(np.array([rows[n][1] for n in names]) for rows in (emo, split)), y_au)


def is_rafce(faces):
    """Whether the numbers of faces by expression and by partition are RAF-CE's own."""
    splits = {name: int((faces.split == code).sum()) for name, code in SPLITS.items()}
    total, test = (counts(faces.y_emo[part], len(EMOTIONS)) for part in (..., faces.split == TEST))
    own = (total, test, splits) == (RAFCE_TOTALS, RAFCE_TEST, RAFCE_SPLITS)
    return own and faces.vocabulary == RAFCE and faces.fold is None


def write_labels(folder, names, *columns):
    """Write label files in RAF-CE's form, a column of strings for each of LABEL_FILES."""
    for file, column in zip(LABEL_FILES, columns):
        rows = (f"{name} {value}\n" for name, value in zip(names, column))
        write_whole(Path(folder) / file, "".join(rows).encode())
