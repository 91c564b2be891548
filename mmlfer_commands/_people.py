"""Images of people: folders, insightface's train.rec, batches, pairs to verify on."""

import hashlib
import io
import math
import multiprocessing
import os
import re
import struct
from pathlib import Path

import numpy as np

from mmlfer import (
    InputError, Stream, brief, image_suffixes, is_image, progress, read_image, refused, torch,
    try_read)
from mmlfer_commands._inputs import is_hidden
from mmlfer_commands._processes import blocked, end_with_parent
from mmlfer_commands._runs import STOPS


class Files:
    """N images below a folder, and the person of each, 0..people - 1. `read` gives image i as a
    (size, size, 3) array, or the reason why not."""

    def __init__(self, root, names, labels):
        self.root, self.labels = str(root), np.array(labels)
        self.names = np.array([os.fsencode(name) for name in names])  # one block, not N objects

    def name(self, i):
        return os.fsdecode(self.names[i])

    def read(self, i, size):
        return try_read(os.path.join(self.root, self.name(i)), size)


class Records:
    """N images of an insightface train.rec, and the person of each; as Files."""

    def __init__(self, path, keys, offsets, labels):
        self.path, self.names, self.offsets, self.labels = str(path), keys, offsets, labels

    def name(self, i):
        return f"record {self.names[i]}"

    def read(self, i, size):
        try:
            with open(self.path, "rb") as file:
                _, image = parse_record(read_record(file, int(self.offsets[i])))
            return read_image(io.BytesIO(image), size)
        except Exception as error:  # Pillow's plugins raise many kinds
            return f"{self.path}: {self.name(i)}: not an image that can be read ({brief(error)})"


def people_sha256(source):
    """A digest of the images' names and people, which must be the same when a run is resumed."""
    return hashlib.sha256(source.names.tobytes() + source.labels.tobytes()).hexdigest()


def some(names):
    """The number of names and the first three of them, as text."""
    return f"{len(names)} ({', '.join(map(str, names[:3]))}{', ...' if len(names) > 3 else ''})"


def read_people(folder, skip=False):
    """The images of DIR/PERSON/IMAGE or DIR/train.rec, as Files or Records, and warnings."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a folder of images for each person, "
                         "or train.rec and train.idx; `mmlfer synth OUT --people 60` draws people")
    records = folder / "train.rec"
    source, notes = read_records(records, skip) if records.exists() else read_folders(folder)
    counts = np.bincount(source.labels)
    if len(counts) < 2:
        raise InputError(f"{folder}: {len(counts)} people with images; expected a folder of "
                         "images for each of two or more, or train.rec and train.idx")
    if single := [source.name(i) for i in np.flatnonzero(counts[source.labels] == 1)]:
        notes.append(f"people with one image, never held out: {some(single)}")
    return source, notes


def read_folders(folder):
    """The images of DIR/PERSON/IMAGE, and warnings of what is left out."""
    names, counts, empty, loose, others = [], [], [], 0, 0
    for entry in visible(folder):
        if entry.is_dir():
            inside = visible(entry)
            images = [file.name for file in inside if is_image(file.name)]
            others += len(inside) - len(images)
            names += [os.path.join(entry.name, image) for image in images]
            counts += [len(images)] if images else []
            empty += [] if images else [entry.name]
        elif is_image(entry.name):
            loose += 1
    left = {"folders without an image": empty and some(empty),
            "images outside a person's folder": loose, "other files": others}
    notes = [f"{what}, left out: {which}" for what, which in left.items() if which]
    return Files(folder, names, np.repeat(np.arange(len(counts)), counts)), notes


def visible(folder):
    """A folder's entries that are not hidden, sorted by name."""
    entries = (entry for entry in os.scandir(folder) if not is_hidden(entry.name))
    return sorted(entries, key=lambda entry: entry.name)


# MXNet's RecordIO: a magic number, a word (3 bits part, 29 bits length), the data, zeros up to a
# multiple of 4. Data that hold the magic number are cut there: parts 1 (first), 2 and 3 (last).
MAGIC = 0xCED7230A


def read_record(file, offset):
    """The bytes of the record at an offset."""
    parts, part = [], None
    file.seek(offset)
    while part not in (0, 3):
        head = file.read(8)
        magic, word = struct.unpack("<II", head) if len(head) == 8 else (None, 0)
        part, length = word >> 29, word % 2**29
        data = file.read(length)
        if magic not in (MAGIC, None):
            raise ValueError("no record where train.idx has one")
        if magic is None or len(data) < length:
            raise ValueError("cut off")
        parts.append(data)
        file.seek(-length % 4, os.SEEK_CUR)
    return struct.pack("<I", MAGIC).join(parts)


def parse_record(data):
    """A record's labels and image: flag (how many labels follow, 0: one, here), label, two ids."""
    try:
        flag, label, *_ = struct.unpack_from("<IfQQ", data)
        labels = struct.unpack_from(f"<{flag}f", data, 24) if flag else (label,)
    except struct.error:
        raise ValueError("cut off") from None
    return labels, data[24 + 4 * flag :]


def read_index(path):
    """train.idx: its keys in order and their offsets in train.rec, (N,) and (N,)."""

    def rows(file):
        for number, line in enumerate(file, 1):
            row = re.fullmatch(r"(\d{1,18})\s+(\d{1,18})\s*", line, re.ASCII)
            if not row:
                raise InputError(f"{path}:{number}: expected a key and an offset; take the file "
                                 "that came with train.rec")
            yield int(row[1]), int(row[2])

    with (refused(path, "{}; it belongs beside train.rec"),
          open(path, encoding="utf-8", errors="replace") as file):
        index = np.fromiter(rows(file), np.dtype((np.int64, 2)))[::-1]
    keys, last = np.unique(index[:, 0], return_index=True)
    return keys, index[last, 1]


def read_label(file, offset, size):
    """The first label of the record at an offset; inf for a person's record, which has two labels
    and no image, nan if no whole record is there in a file of this size."""
    file.seek(offset)
    head = file.read(36)
    if len(head) < 36:
        return math.nan
    magic, word, flag, label, first = struct.unpack("<IIIf16xf", head)
    length = word % 2**29
    if magic != MAGIC or offset + 8 + length > size:
        return math.nan
    if flag > 1 and length == 24 + 4 * flag:
        return math.inf
    return first if flag else label


def read_end(file, offset):
    """The key after the last image, by insightface's record 0; None if that one is an image."""
    with refused(file.name, "record 0: {}; fetch the file again", ValueError):
        labels, image = parse_record(read_record(file, offset))
        if image:
            return None
        if len(labels) > 1 and not 1 <= labels[0] < 2**40:
            raise ValueError(f"{labels[0]:g} is no number of images")
    return labels[0] if len(labels) > 1 else math.inf


def read_records(path, skip=False):
    """The images of a train.rec, and warnings of records that are lost, if they are skipped."""
    keys, offsets = read_index(path.with_suffix(".idx"))
    notes, first = [], keys[0] == 0 if len(keys) else False
    with open(path, "rb") as file:
        end = read_end(file, offsets[0]) if first else None
        if end is not None:
            wanted = (keys >= 1) & (keys < end)
            keys, offsets = keys[wanted], offsets[wanted]
            if len(keys) < end - 1 < math.inf:
                notes.append(f"train.idx has {len(keys)} of the {end - 1:.0f} images of record 0")
        size = path.stat().st_size
        bar = progress(offsets, "reading labels", unit=" records")
        labels = np.fromiter((read_label(file, int(offset), size) for offset in bar), np.float64)
    if not first and np.isinf(labels).any():
        notes.append("train.idx lacks record 0, which says how many images there are")
    if np.isnan(labels).any():
        notes.append(f"records cut off or not there: {some(keys[np.isnan(labels)])}")
    if notes and not skip:
        raise InputError(f"{path}: {'; '.join(notes)}; fetch train.rec and train.idx again, or go "
                         "on without what is lost: --skip-bad-images")
    image = np.isfinite(labels)
    labels = np.unique(labels[image], return_inverse=True)[1]
    return Records(path, keys[image], offsets[image], labels), notes


class Images:
    """Some rows of a source, for a DataLoader. An item is the image (3, S, S) uint8, its label,
    and -1, or the row's number if its image cannot be read. The next readable one then takes its
    place; steps grow (1, 8, 27, ...) to leave a broken folder soon. Label -1: none can be read."""

    def __init__(self, source, rows, labels, size, tries=50):
        self.source, self.rows, self.labels, self.size = source, rows, labels, size
        self.tries = tries

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        for step in range(self.tries):
            other = (k + step**3) % len(self)  # k itself at first
            image = self.source.read(int(self.rows[other]), self.size)
            if not isinstance(image, str):
                bad = int(self.rows[k]) if step else -1
                x = torch.from_numpy(image.transpose(2, 0, 1).copy())
                return x, int(self.labels[other]), bad
        return torch.zeros(3, self.size, self.size, dtype=torch.uint8), -1, int(self.rows[k])


def read_batches(images, batch, opt, order=None):
    """Yield batches of Images from worker processes. They block the signals that stop a run, which
    schedulers send to all processes of a job at once: this process still finishes its step."""
    loader = torch.utils.data.DataLoader(
        images, batch, sampler=order, num_workers=opt.workers, worker_init_fn=end_with_parent,
        pin_memory=torch.cuda.is_available())
    with blocked(STOPS):
        batches = iter(loader)  # starts the workers
    try:
        yield from batches
    finally:
        del batches  # the loader asks its workers to end, and waits some seconds
        for worker in multiprocessing.active_children():
            worker.kill()  # it hangs, or it would have ended


def draw_pairs(labels, seed, n=3000):
    """Up to n pairs of images of one person and as many of two people, shuffled, in ten folds.
    labels (N,) -> indices (P, 2), same (P,) bool, fold (P,) 0..9"""
    rng = np.random.default_rng([seed, Stream.PAIRS])
    order, labels = np.argsort(labels, kind="stable"), np.sort(labels)
    _, start, who, count = np.unique(labels, return_index=True, return_inverse=True,
                                     return_counts=True)
    i = rng.integers(0, len(labels), 8 * n)
    begin, many = start[who[i]], count[who[i]]
    twin = begin + (i - begin + rng.integers(1, np.maximum(many, 2))) % many
    other = (begin + many + rng.integers(0, len(labels) - many)) % len(labels)
    kinds = [np.unique(np.sort(np.stack([i, j], 1)[i != j], 1), axis=0) for j in (twin, other)]
    n = min(n, *map(len, kinds))
    pairs = np.concatenate([rng.permutation(kind)[:n] for kind in kinds])
    mixed = rng.permutation(2 * n)
    return order[pairs[mixed]], mixed < n, np.arange(2 * n) % 10


def read_pairs(path, root):
    """LFW's pairs.txt. -> Files, indices (P, 2), same (P,) bool, fold (P,)"""
    with refused(path, "not LFW's pairs.txt, which begins with `10 300` ({})", OSError, ValueError,
                 IndexError):
        rows = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        folds, n = map(int, rows[0])
        if folds < 2 or n < 1:
            raise ValueError("two folds or more, of pairs")
    if len(rows) < 1 + 2 * folds * n:
        raise InputError(f"{path}: {len(rows) - 1} pairs, and its first row says {2 * folds * n}")
    names, pairs, suffixes = {}, [], sorted(image_suffixes())
    for number, row in enumerate(rows[1 : 1 + 2 * folds * n], 2):
        with refused(f"{path}:{number}", "expected `name i j` or `name i name j`", ValueError):
            one, i, other, j = row if len(row) != 3 else (row[0], row[1], row[0], row[2])
            stems = [f"{name}/{name}_{int(k):04d}" for name, k in ((one, i), (other, j))]
        pairs.append([])
        for stem in stems:
            there = (stem + suffix for suffix in suffixes if Path(root, stem + suffix).exists())
            if not (name := next(there, None)):
                raise InputError(f"{path}:{number}: no image {Path(root, stem)}.jpg")
            pairs[-1].append(names.setdefault(name, len(names)))
    same = np.array([len(row) == 3 for row in rows[1 : len(pairs) + 1]])
    fold = np.arange(len(pairs)) // (2 * n)
    return Files(root, names, range(len(names))), np.array(pairs), same, fold
