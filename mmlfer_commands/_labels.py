"""The labels of a data set: your own labels.csv, or RAF-CE's three files."""

import array
import csv
import dataclasses
import math
import posixpath
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np

from mmlfer import (
    AUS, AU_NAMES, EMOTIONS, LABEL_FILES, NOT_CODED, NOT_NAMED, RAFCE, SPLITS, TEST, TRAIN, VAL,
    Faces, InputError, Stream, Vocabulary, counts, image_index, image_paths, plural, tell_once)
from mmlfer_commands._outputs import in_utf8, write_rows
from mmlfer_commands._rafce import is_rafce, load_labels, parse_aus

LABELS = "labels.csv"
NONE = "?"  # the expression of rows in which nobody named it
COLUMNS = {"image": "image", "file_name": "image", "filepath": "image", "expression": "expression",
           "split": "split", "partition": "split", "subset": "split", "person": "person",
           "aus": "aus", "source": "source"}  # {name in any capitals: what the column holds}
PARTS = {"train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL,
         "dev": VAL, "test": TEST, "testing": TEST}
SPLIT_NAMES = {code: name for name, code in SPLITS.items()}
AU_CELLS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "": NOT_CODED}
SHARES = {TRAIN: 0.6, TEST: 0.2, VAL: 0.2}  # of a partition that is drawn here


def load_faces(folder, keep=(), parts=True):
    """The labels in a data set's folder, as Faces without images: from labels.csv if it is there,
    else from RAF-CE's files. Faces.columns has those of the columns `keep` that labels.csv has.
    Without `parts` its column split is not read, and all of it is to train on."""
    if Path(folder).is_file():
        raise InputError(f"{folder}: a file; give the folder that it lies in")
    path = Path(folder) / LABELS
    if path.is_file() and (path.parent / LABEL_FILES[0]).is_file():
        tell_once(f"{folder}: read from {LABELS}, not from {LABEL_FILES[0]}")
    return read_labels_csv(path, keep, parts).faces() if path.is_file() else load_labels(folder)


def images_of(folder):
    """The paths of a data set's images; in a folder without labels those that image_index finds."""
    if (Path(folder) / LABELS).is_file():
        return list(filter(None, image_paths(load_faces(folder), folder)))
    return list(image_index(Path(folder)).values())


def recorded_folder(folder, by):
    """The data's folder that a run or a checkpoint names; InputError if none, or not there."""
    if not folder:
        raise InputError(f"{by}: does not say where its data lie; name them with --data")
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder, but {by} was trained on it; give --data")
    return folder


def recode(faces, vocabulary, folder):
    """Faces recoded to another vocabulary: expressions by name, AUs by number. AUs that it does not
    have are dropped, and a line says so; those that the faces do not have are not coded."""
    own = faces.vocabulary
    if own == vocabulary:
        return faces
    numbers = {name: k for k, name in enumerate(vocabulary.emotions)}
    places = np.array([numbers.get(name, -1) for name in own.emotions] + [NOT_NAMED])
    y_emo, shares = places[faces.y_emo], faces.shares
    has = np.arange(len(own.emotions)) == faces.y_emo[:, None]  # (N, K)
    known = places[:-1] >= 0
    if shares is not None:
        has |= shares > 0
        shares = np.zeros((len(y_emo), len(vocabulary.emotions)), np.float32)
        shares[:, places[:-1][known]] = faces.shares[:, known]
    if (odd := has & ~known).any():
        i, k = np.argwhere(odd)[0]
        raise InputError(f"{folder}/{faces.files[0]}: {faces.names[i]}: {own.emotions[k]!r} is not "
                         f"among the expressions to tell apart: {', '.join(vocabulary.emotions)}; "
                         "rename it or remove its rows")
    if dropped := [str(au) for au in own.aus if au not in vocabulary.aus]:
        tell_once(f"{folder}/{faces.files[2]}: AU {', '.join(dropped)}: not among the AUs to tell "
                  "apart, left out")
    y_au = np.full((len(y_emo), len(vocabulary.aus)), NOT_CODED, np.int8)
    for j, au in enumerate(vocabulary.aus):
        if au in own.aus:
            y_au[:, j] = faces.y_au[:, own.aus.index(au)]
    return dataclasses.replace(faces, y_emo=y_emo, y_au=y_au, vocabulary=vocabulary, shares=shares)


def describe(faces, folder):
    """What was found: images by expression and partition, rows without AUs, mean active AUs."""
    emotions = faces.vocabulary.emotions
    wide = max(24, *map(len, emotions), 0)
    lines = [f"{folder}: {len(faces.names)} images", f"  {'':{wide}}  train   test    val"]
    if faces.fold is not None:
        tested = max(faces.fold[faces.split == TEST], default=0)
        lines[0] += f", fold {tested} of {max(faces.fold)}; no other partition counts"
    of = [faces.y_emo[faces.split == code] for code in SPLITS.values()]
    rows = [*zip(emotions, *(counts(y_emo, len(emotions)) for y_emo in of)),
            ("no expression", *((y == NOT_NAMED).sum() for y in of)), ("all", *map(len, of))]
    for name, *row in rows:
        if name != "no expression" or any(row):
            lines.append(f"  {name:{wide}}" + "".join(f"{n:7}" for n in row))
    coded = faces.y_au[(faces.y_au != NOT_CODED).any(1)]
    active = (coded == 1).sum(1)
    mean = active.mean() if len(active) else 0
    of_coded = f" of {len(coded)} that are coded" if len(coded) < len(faces.names) else ""
    lines.append(f"  {sum(active == 0)} rows without AUs, {mean:.2f} active AUs per face{of_coded}")
    if faces.vocabulary == RAFCE:
        lines.append(f"  {'these are' if is_rafce(faces) else 'not'} RAF-CE's own counts")
    return "\n".join(lines)


def check_trainable(faces, folder, batch_size):
    """InputError if a part has too few images, or if RAF-CE's AUs were lost on the way here."""
    rafce, folds = faces.files == LABEL_FILES, faces.fold is not None
    codes = "0 train, 1 test, 2 validation" if rafce else "column split"
    see = "see --folds, --fold" if folds else f"see {faces.files[1]} ({codes})"
    for name, code in SPLITS.items():
        part, least = faces.y_emo[faces.split == code], 1 if code == TEST else batch_size
        n = len(part) if code == TRAIN else int((part != NOT_NAMED).sum())
        if n < least:
            what = "images with an expression" if n < len(part) else "images"
            raise InputError(f"{folder}: {n} {name} {what}, under {least}; {see}, --batch-size")
    active = faces.y_au[faces.split == TRAIN].sum(1).mean()
    if rafce and active < 0.1:
        raise InputError(f"{folder}/{faces.files[2]}: {active:.3f} active AUs a training face; "
                         "the AUs were lost: take the published file")


# ---------------------------------------------------------------- labels.csv


def read_rows(path):
    """Yield (row number, cells) of a CSV file's rows, its header first; blank rows are left out. It
    is UTF-8, with or without a byte order mark. Cells are separated by commas, semicolons or tabs:
    by that which the header has most often, or that which Excel's first line sep=; names."""
    number = above = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            if named := re.fullmatch("sep=(.)", header.strip("\"\r\n")):
                number = above = 1
            else:
                file.seek(0)
            separator = named[1] if named else max(",;\t", key=header.count)
            reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=True)
            for cells in reader:
                first, number = number + 1, above + reader.line_num
                cells = [cell.strip() for cell in cells]
                if any(cells):
                    yield first, cells
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text in UTF-8; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}:{number + 1}: not CSV ({error}); fix this row") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def read_columns(path, *needed):
    """The columns of a CSV file, and its rows as they are read, (row number, {column: text})."""
    rows = read_rows(path)
    columns = next(rows, (1, []))[1]
    columns = columns[: width_of(columns)]
    for name in needed:
        if name not in columns:
            raise InputError(f"{path}: no column {name}; it has {', '.join(columns)[:200]}")

    def row_of(number, cells):
        if any(cells[len(columns) :]) or len(cells) < len(columns):
            raise InputError(f"{path}:{number}: expected {plural(len(columns), 'field')}, as in "
                             f"the first row, got {len(cells)}; fix this row")
        return number, dict(zip(columns, cells))

    return columns, (row_of(*row) for row in rows)


def width_of(header):
    """The number of columns, without those at the end of the rows that have no name."""
    return max((i for i, name in enumerate(header, 1) if name), default=0)


def check_names(images, expressions, path):
    """InputError for names that labels.csv cannot hold in such a way that the same are read."""
    for name in (*sorted(expressions), *images):
        text = in_utf8(name)
        if text != name.strip() or name in expressions and not name.isprintable():
            raise InputError(f"{path}: not written: the name {text!r} is not in UTF-8, has spaces "
                             "at its ends, or has characters that cannot be printed; rename it")


def find_columns(header, path, aus_needed, keep=()):
    """The indices of a header's columns: {what COLUMNS says: i}, {AU number: i}, {expression, as
    its column of shares spells it: i}, and {name in `keep`, or all others if that is None: i}."""
    places, aus, shares, unread = {}, {}, {}, []
    lower = [name.lower() for name in header]
    kept = {name: lower.index(name.lower()) for name in keep or () if name.lower() in lower}
    for i, name in enumerate(header):
        match = re.fullmatch(r"AU0*([0-9]{1,3})", name, re.IGNORECASE)
        if re.match("AU[ _-]*[0-9]", name, re.I) and not (match and int(match[1]) in AU_NAMES):
            raise InputError(f"{path}:1: column {name}: none of AU1 to AU46; rename or remove it")
        group, key = (aus, int(match[1])) if match else (places, COLUMNS.get(name.lower()))
        if name[:2].lower() == "p_" and spelling_of(name[2:]):
            group, key = shares, spelling_of(name[2:])
        if key in group:
            raise InputError(f"{path}:1: columns {header[group[key]]} and {name} say the same; "
                             "keep one of the two")
        if key is not None:
            group[key] = i
        elif name and i not in kept.values():
            unread.append(name)
    if keep is None:
        kept = {name.lower(): header.index(name) for name in unread}
    elif unread:
        tell_once(f"{path}: not read: {plural(len(unread), 'column')}, {', '.join(unread):.200}")
    if "aus" in places and aus:
        raise InputError(f"{path}:1: AUs in a column aus and in columns of their own; keep one")
    for what in ("image", "expression"):
        if what not in places and not (what == "expression" and shares):
            known = " or ".join(name for name in COLUMNS if COLUMNS[name] == what)
            raise InputError(f"{path}:1: no column {known}, as in image,expression,split,aus")
    if aus_needed and "aus" not in places and not aus:
        raise InputError(f"{path}:1: no column aus, nor AU1, AU2 ...; add aus, ? for not coded")
    return places, aus, {header[i][2:].replace("_", " "): i for i in shares.values()}, kept


def parse_place(text, folder):
    """An image's name, which is its path below `folder` (this ends in /): a/0001.jpg for
    ./a/0001.jpg, for b/../a/0001.jpg and for FOLDER/a/0001.jpg. ValueError if it lies elsewhere."""
    place = posixpath.normpath(text.removeprefix(folder))
    if place == "." or place.split("/")[0] in ("", "..") or "\0" in text:
        raise ValueError(f"{text!r} is no image below the folder; name one, or link it there")
    return place


def parse_text(text):
    """'1+L12' -> {1: 1, 12: 1}; '' -> {}, coded and none seen; '?' -> None, not coded."""
    if text in ("", "?"):
        return {} if text == "" else None
    try:
        return {number: 1 for number, _ in parse_aus(text, AU_NAMES)}
    except ValueError as error:
        raise ValueError(f"{error}; nothing: coded and none seen, ?: not coded") from None


def parse_cells(texts, aus):
    """{AU: 0, 1 or NOT_CODED} of each AU's own cell."""
    for text, au in zip(texts, aus):
        if text not in AU_CELLS:
            raise ValueError(f"AU {au}: {text!r}; write 0, 1 or nothing for not coded, whatever "
                             "number stands for unknown in this data set")
    return {au: AU_CELLS[text] for text, au in zip(texts, aus)}


def share_column(name):
    """The column of labels.csv with an expression's shares."""
    return f"p_{name.replace(' ', '_')}"


def parse_shares(texts):
    """The shares of votes or shares, or NaN for each if all cells are empty; their sum is 1."""
    if not any(texts):
        return [math.nan] * len(texts)
    try:
        votes = [float(text) for text in texts]
    except ValueError:
        votes = [-1.0]
    if not min(votes) >= 0 or not 0 < sum(votes) < math.inf:
        raise ValueError(f"p_ columns: {', '.join(texts):.80}; write shares or votes, not all 0, "
                         "or nothing in all of them")
    return [vote / sum(votes) for vote in votes]


def named(row):
    """A row by its number, or by the place that its labels come from."""
    return f"row {row}" if isinstance(row, int) else row


def spelling_of(name):
    """What two spellings of one name have in common: capitals, blanks and dashes do not count, but
    for a minus sign (-1 is not 1) and between digits (1-2 is not 12)."""
    name = unicodedata.normalize("NFC", name).casefold()
    name = re.sub(r"(?<![^\s_])-(?=\d)", "\N{MINUS SIGN}", name)
    return re.sub(r"(?<!\d)[\s_-]+|[\s_-]+(?!\d)", "", re.sub(r"[\s_-]+", "-", name))


class Rows:
    """The rows of a labels.csv as they are read, each checked against those before it."""

    def __init__(self, path, header, aus_needed=True, keep=(), parts=True):
        self.path, self.width = path, width_of(header)
        self.folder = f"{path.parent.resolve()}/"
        found = find_columns(header, path, aus_needed, keep)
        self.places, self.aus, self.voted, self.kept = found
        self.divided = parts
        if not parts:
            self.places.pop("split", None)
        self.columns = {name: [] for name in self.kept}
        self.shares = array.array("d")  # of the columns in `voted`, row by row
        self.names = {}  # {name: row number}
        self.expressions, self.spellings = [], {}  # {spelling_of a name: (name, row number)}
        self.splits, self.people, self.texts = [], [], []
        self.parts = {}  # {person: (split, row number)}
        self.known = {}  # parsed AUs by their text: most rows repeat another one's

    def add(self, row, cells):
        """One row, called by its number or its labels' place; InputError says what is wrong."""
        try:
            self.check(row, cells)
        except ValueError as error:
            where = f"{self.path}:{row}" if isinstance(row, int) else row
            raise InputError(f"{where}: {error}") from None

    def check(self, row, cells):
        """One row; ValueError says what is wrong with it."""
        if any(cells[self.width :]) or len(cells) < self.width:
            raise ValueError(f"expected {plural(self.width, 'field')}, as in the first row, got "
                             f"{len(cells)} (a field with a comma in it stands in quotes)")
        get = {what: cells[i] for what, i in self.places.items()}
        name = parse_place(get["image"], self.folder)
        first = self.names.setdefault(name, row)
        if first != row:
            raise ValueError(f"{name} is the image of {named(first)}, too; keep one of the two")
        shares = parse_shares([cells[i] for i in self.voted.values()])
        self.shares.extend(shares)
        self.add_expression(row, get.get("expression") or self.largest(shares))
        if "split" in get:
            if get["split"].lower() not in PARTS:
                raise ValueError(f"expected train, val or test, got {get['split']!r}")
            self.splits.append(PARTS[get["split"].lower()])
        if "person" in get:
            self.add_person(row, get["person"])
        for column, i in self.kept.items():
            self.columns[column].append(sys.intern(cells[i]))  # of equal texts, one is held
        text = get["aus"] if "aus" in get else tuple(cells[i] for i in self.aus.values())
        if text not in self.known:
            self.known[text] = (parse_text(text) if "aus" in get else parse_cells(text, self.aus))
        self.texts.append(text)
        seen = self.known[text]
        coded = seen is not None and {*seen.values()} != {NOT_CODED}
        if self.expressions[-1] == NONE and not coded and not sum(shares) > 0:
            raise ValueError("neither an expression nor a coded AU; remove this row")

    def largest(self, shares):
        """The name of the largest share, "" if a row has none; ValueError if two are largest."""
        names = [name for name, q in zip(self.voted, shares) if q == max(shares)]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} have equal shares; name the expression, or ?")
        return names[0] if names else ""

    def add_expression(self, row, name):
        """A row's expression; two spellings of one name are refused."""
        if name == NONE:
            return self.expressions.append(NONE)
        if not name or not name.isprintable():
            raise ValueError("no expression; name it, write ? where nobody did, or remove this row")
        first, where = self.spellings.setdefault(spelling_of(name), (name, row))
        if first != name:
            raise ValueError(f"{name!r} is {first!r} of {named(where)} in another spelling; choose "
                             "one")
        self.expressions.append(first)

    def add_person(self, row, person):
        """A row's person. A row without a name is taken for a person of its own."""
        self.people.append(person or f"\0{row}")
        if self.splits and person:
            first, where = self.parts.setdefault(person, (self.splits[-1], row))
            if first != self.splits[-1]:
                raise ValueError(f"person {person} is in another part in {named(where)}; keep each "
                                 "person in one part, or remove the column")

    def faces(self):
        """All rows as Faces."""
        vocabulary = self.vocabulary()
        numbers = {name: k for k, name in enumerate(vocabulary.emotions)} | {NONE: NOT_NAMED}
        y_emo, shares = np.array([numbers[name] for name in self.expressions]), None
        if self.voted:
            shares = np.zeros((len(y_emo), len(vocabulary.emotions)), np.float32)
            given = np.array(self.shares).reshape(len(y_emo), -1)
            shares[np.isnan(given).any(1)] = np.nan
            shares[:, [numbers[self.spelling(name)] for name in self.voted]] = given
        split = np.array(self.splits) if self.splits else self.drawn_split(y_emo)
        columns = {name: np.array(self.people if name.lower() == "person" else texts, object)
                   for name, texts in self.columns.items()}
        return Faces(list(self.names), y_emo, split, self.y_au(vocabulary.aus),
                     vocabulary=vocabulary, files=(LABELS,) * 3, shares=shares, columns=columns)

    def spelling(self, name):
        """A name in a column's title, as the rows spell it."""
        return self.spellings.get(spelling_of(name), (name, 0))[0]

    def vocabulary(self):
        """RAF-CE's names in RAF-CE's order, others sorted; the AUs that have columns, or that any
        row names. All 14 of RAF-CE's names, without columns, come with RAF-CE's 32 AUs."""
        emotions = sorted({*self.expressions, *map(self.spelling, self.voted)} - {NONE})
        if {*emotions} <= {*EMOTIONS}:
            emotions.sort(key=EMOTIONS.index)
        aus = {*self.aus}.union(*(row or () for row in self.known.values()))
        if not self.aus and tuple(emotions) == EMOTIONS and aus <= {*AUS}:
            return RAFCE
        return Vocabulary(tuple(emotions), tuple(sorted(aus)))

    def y_au(self, aus):
        """(N, J) 0, 1 or NOT_CODED, for AUs in this order."""
        vectors = {text: [NOT_CODED if row is None else row.get(au, 0) for au in aus]
                   for text, row in self.known.items()}
        rows = [vectors[text] for text in self.texts]
        return np.array(rows, np.int8).reshape(len(rows), len(aus))

    def drawn_split(self, y_emo):
        """A partition where the file has none, and a line that says so."""
        if not self.divided:
            return np.full(len(y_emo), TRAIN)
        apart = ", each person in one part" if self.people else ""
        tell_once(f"{self.path}: no column split; drawn by expression{apart}: 60 % train, 20 % "
                  "val, 20 % test")
        return split_people(y_emo, self.people, 0) if self.people else split_faces(y_emo, 0)


def read_labels_csv(path, keep=(), parts=True):
    """The Rows of a labels.csv, read one by one to save memory."""
    rows = read_rows(path)
    _, header = next(rows, (0, None))
    if header is None:
        raise InputError(f"{path}: empty; it begins with a row like image,expression,split,aus")
    table = Rows(path, header, keep=keep, parts=parts)
    for number, cells in rows:
        table.add(number, cells)
    if not table.names:
        raise InputError(f"{path}: no row below the first; a row names an image")
    return table


def write_labels_csv(folder, images, y_emo, split, aus, emotions, shares=None):
    """Write labels.csv of N faces, with their AUs as strings, and with their shares (N, K)."""
    columns = ["image", "expression", "split", "aus"]
    rows = [[image, emotions[k], SPLIT_NAMES[code], "" if text == "null" else text]
            for image, k, code, text in zip(images, y_emo, split, aus)]
    if shares is not None:
        columns += map(share_column, emotions)
        rows = [[*row, *q] for row, q in zip(rows, shares)]
    write_rows([dict(zip(columns, row)) for row in rows], columns, Path(folder) / LABELS)


def check_learnable(faces, folder):
    """Refuse a labels.csv of one expression, or with one that has images but none to train on."""
    if faces.files[0] != LABELS:
        return
    path, emotions = Path(folder) / LABELS, faces.vocabulary.emotions
    if not emotions:
        raise InputError(f"{path}: no row has an expression; mmlfer merge adds a set that has them")
    if len(emotions) < 2:
        raise InputError(f"{path}: one expression alone, {emotions[0]!r}; add rows of another")
    for k, emotion in enumerate(emotions):
        rows = np.flatnonzero(faces.y_emo == k)
        none = f"{emotion!r} has {plural(len(rows), 'image')}, none of them to train on"
        if len(rows) and TRAIN not in faces.split[rows]:
            if faces.fold is None:
                number = read_labels_csv(path).names[faces.names[rows[0]]]
                raise InputError(f"{path}:{number}: {none}; move some to train, or remove its rows")
            tell_once(f"Warning: {path}: {none} in this fold, whose net will not name it")


# ---------------------------------------------------------------- partitions


def split_faces(y_emo, seed):
    """A partition: 20 % test, a quarter of the rest validation, in each expression. (N,) -> (N,)"""
    rng = np.random.default_rng([seed, Stream.PARTITION])
    split = np.full(len(y_emo), TRAIN)
    for k in np.unique(y_emo):
        of_k = rng.permutation(np.flatnonzero(np.asarray(y_emo) == k))
        n_test = round(0.2 * len(of_k))
        split[of_k[:n_test]] = TEST
        split[of_k[n_test : n_test + round(0.25 * (len(of_k) - n_test))]] = VAL
    return split


def count_images(y_emo, people):
    """The images of each person by expression, (P, K), and each image's person, (N,) 0..P-1. Images
    whose expression is not named are of one more. y_emo (N,), people: N names"""
    names, person = np.unique(people, return_inverse=True)
    y_emo = np.where(y_emo == NOT_NAMED, max(y_emo) + 1, y_emo)
    images = np.zeros((len(names), y_emo.max() + 1))
    np.add.at(images, (person, y_emo), 1)
    return images, person


def place_people(images, shares, seed):
    """The part of each person, (P,) 0.., so that parts have these shares of each column of their
    images (P, K), as nearly as is possible if each person is in one part only.

    People are placed one by one, those with the most images first (equal ones in random order).
    Each goes to the part that still lacks most of what their images are of.
    """
    wanted = np.array(shares)[:, None] * images.sum(0)  # by part and column
    missing, part = wanted.copy(), np.empty(len(images), int)
    order = np.random.default_rng([seed, Stream.PARTITION]).permutation(len(images))
    for i in sorted(order, key=lambda i: -images[i].sum()):
        part[i] = np.argmax((missing / np.maximum(wanted, 1e-9)) @ images[i])
        missing[part[i]] -= images[i]
    return part


def split_people(y_emo, people, seed, shares=SHARES):
    """A partition with these shares of each expression, each person in one part. Where an
    expression then has nobody to train on, the person with the fewest images that has it is moved
    there. y_emo (N,), people: N names -> (N,)"""
    images, person = count_images(y_emo, people)
    part, training = place_people(images, [*shares.values()], seed), [*shares].index(TRAIN)
    for k in range(images.shape[1]):
        having = np.flatnonzero(images[:, k])
        if len(having) and training not in part[having]:
            part[having[np.argmin(images[having].sum(1))]] = training
    return np.array(list(shares))[part[person]]
