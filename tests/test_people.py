"""People: folders, insightface's train.rec, pairs to verify on."""

import io
import math
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
from conftest import invoke, write_lfw
from PIL import Image

import mmlfer
from mmlfer_commands import _people, pretrain


def refused(folder):
    """The error of reading the people of a folder."""
    with pytest.raises(mmlfer.InputError) as error:
        _people.read_people(folder)
    return str(error.value)


# ---------------------------------------------------------------- folders


def test_folders_are_read_in_order_and_what_is_odd_is_named(people, tmp_path):
    faces = tmp_path / "faces"
    for name, n in (("zoe", 3), ("abe", 2), ("one", 1), ("lone", 1)):
        (faces / name).mkdir(parents=True)
        for i in range(n):
            shutil.copy(people / f"00001/00{i + 1}.jpg", faces / name / f"{9 - i}.JPG")
    for name in ("e1", "e2", "e3", "e4"):
        (faces / name).mkdir()
    (faces / "abe/notes.txt").write_text("x")
    shutil.copy(people / "00001/001.jpg", faces / "loose.jpg")
    (faces / "link").symlink_to(faces / "abe")
    source, notes = _people.read_people(faces)
    assert [n.decode() for n in source.names] == ["abe/8.JPG", "abe/9.JPG", "link/8.JPG", "link/9.JPG", "lone/9.JPG",
                                                  "one/9.JPG", "zoe/7.JPG", "zoe/8.JPG", "zoe/9.JPG"]
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 3, 4, 4, 4]
    assert notes == ["folders without an image, left out: 4 (e1, e2, e3, ...)",
                     "images outside a person's folder, left out: 1", "other files, left out: 2",
                     "people with one image, never held out: 2 (lone/9.JPG, one/9.JPG)"]
    assert np.array_equal(source.read(8, 16), mmlfer.read_image(faces / "zoe/9.JPG", 16))
    train, held = pretrain.hold_out_people(source.labels, 0.5, 0)
    assert set(source.labels[held]) < {0, 1, 4} and not set(source.labels[held]) & set(source.labels[train])
    assert len(train) + len(held) == 9


def test_hidden_folders_and_files_are_no_people(people, tmp_path):
    """Such as .thumbnails, which file managers write, and ._001.jpg, which macOS writes on other disks."""
    faces = tmp_path / "faces"
    shutil.copytree(people, faces)
    shutil.copytree(people / "00001", faces / ".thumbnails")
    (faces / ".empty").mkdir()
    (faces / ".loose.jpg").write_bytes(b"x")
    (faces / "00002/._001.jpg").write_bytes(b"x")
    source, notes = _people.read_people(faces)
    whole, _ = _people.read_people(people)
    assert source.names.tolist() == whole.names.tolist() and source.labels.tolist() == whole.labels.tolist()
    assert len(source.names) == 40 and notes == []


# ---------------------------------------------------------------- train.rec


def part(data, kind=0):
    return struct.pack("<II", 0xCED7230A, kind << 29 | len(data)) + data + bytes(-len(data) % 4)


def record(image, label, i):
    if isinstance(label, list):
        return struct.pack("<IfQQ", len(label), 0, i, 0) + struct.pack(f"<{len(label)}f", *label) + image
    return struct.pack("<IfQQ", 0, label, i, 0) + image


def png(i, extra=b""):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue() + extra


def write_rec(folder, first=(7.0, 9.0)):
    """Six images of three people, then one record for each person, as insightface writes them. Image 4 holds
    the magic number twice and is therefore in three parts."""
    folder.mkdir()
    magic = struct.pack("<I", 0xCED7230A)
    labels = [5.0, [5.0, 99.0], 11.0, 11.0, [2.0, 98.0], 2.0]
    images = [png(i) for i in range(6)]
    images[3] += b"middle" + b"end!"
    blob, index = b"", []
    for key, label in enumerate([list(first), *labels, [1.0, 3.0], [3.0, 5.0]]):
        index.append(f"{key}\t{len(blob)}\n")
        if key == 4:
            a = record(png(3), label, key)
            blob += part(a, 1) + part(b"middle", 2) + part(b"end!", 3)
        else:
            blob += part(record(images[key - 1] if 1 <= key <= 6 else b"", label, key))
    (folder / "train.rec").write_bytes(blob)
    (folder / "train.idx").write_text("".join(index[i] for i in (3, 0, 8, 1, 2, 4, 7, 6, 5)))  # in an odd order
    return [png(3) + magic + b"middle" + magic + b"end!" if i == 3 else image for i, image in enumerate(images)]


def test_records_are_read_as_insightface_writes_them(tmp_path):
    images = write_rec(tmp_path / "rec")
    source, notes = _people.read_people(tmp_path / "rec")
    assert source.names.tolist() == [1, 2, 3, 4, 5, 6] and notes == []
    assert source.labels.tolist() == [1, 1, 2, 2, 0, 0]
    for i, image in enumerate(images):
        assert np.array_equal(source.read(i, 32), np.asarray(Image.open(io.BytesIO(image)))), i
    with open(tmp_path / "rec/train.rec", "rb") as file:
        data = _people.read_record(file, int(source.offsets[3]))
    assert _people.parse_record(data) == ((11.0,), images[3])


def test_without_an_end_in_record_0_every_record_with_an_image_is_one(tmp_path):
    write_rec(tmp_path / "rec", first=(3.0,))
    assert _people.read_records(tmp_path / "rec/train.rec")[0].names.tolist() == list(range(1, 7))


LOST = "; fetch train.rec and train.idx again, or go on without what is lost: --skip-bad-images"


@pytest.mark.parametrize("kept", [1, 4, 6])
def test_an_index_that_is_cut_at_a_line_is_refused(tmp_path, kept):
    """Record 0 says that there are six images; their order in the index does not matter."""
    write_rec(tmp_path / "rec")
    index = tmp_path / "rec/train.idx"
    lines = sorted(index.read_text().splitlines(True), key=lambda line: int(line.split()[0]))
    index.write_text("".join(reversed(lines[:kept])))
    why = f"train.idx has {kept - 1} of the 6 images of record 0"
    assert refused(index.parent) == f"{tmp_path}/rec/train.rec: {why}{LOST}"
    source, notes = _people.read_records(tmp_path / "rec/train.rec", skip=True)
    assert source.names.tolist() == list(range(1, kept)) and notes == [why]


def test_an_index_without_record_0_makes_no_people_of_the_records_of_people(tmp_path):
    write_rec(tmp_path / "rec")
    index = tmp_path / "rec/train.idx"
    index.write_text(index.read_text().replace("0\t0\n", ""))
    why = "train.idx lacks record 0, which says how many images there are"
    assert refused(index.parent) == f"{tmp_path}/rec/train.rec: {why}{LOST}"
    source, notes = _people.read_people(tmp_path / "rec", skip=True)
    assert source.names.tolist() == [1, 2, 3, 4, 5, 6] and source.labels.max() == 2 and notes == [why]


@pytest.mark.parametrize("cut", ["rec", "idx"])
def test_pretrain_goes_on_without_lost_records_if_told_to(tmp_path, cut):
    write_rec(tmp_path / "rec")
    rec, index = tmp_path / "rec/train.rec", tmp_path / "rec/train.idx"
    if cut == "rec":
        rec.write_bytes(rec.read_bytes()[: int(_people.read_records(rec)[0].offsets[5]) + 60])
        why = "records cut off or not there: 1 (6)"
    else:
        index.write_text("".join(line for line in index.read_text().splitlines(True) if int(line.split()[0]) < 6))
        why = "train.idx has 5 of the 6 images of record 0"
    options = ["pretrain", "--faces", tmp_path / "rec", "--out", tmp_path / "w.pth", "--arch", "resnet18", "--epochs", 1,
               "--batch-size", 2, "--size", 32, "--holdout", 0, "--workers", 0]
    result = invoke(*options)
    assert (result.exit_code, result.stderr) == (1, f"Error: {rec}: {why}{LOST}\n") and not (tmp_path / "w.pth").exists()
    result = invoke(*options, "--skip-bad-images")
    assert result.exit_code == 0 and f"Warning: {why}\n" in result.stderr, result.output
    assert f"{tmp_path}/rec: 5 images of 3 people" in result.stdout


@pytest.mark.parametrize("label", [11.0, [11.0, 99.0]])
def test_a_record_0_that_is_an_image_is_one_of_its_person(tmp_path, label):
    """As MXNet's own tool writes it, which counts from 0; insightface's record 0 holds no image."""
    blob, index = b"", ""
    for key, (image, labels) in enumerate([(png(0), label), (png(1), 11.0), (png(2), 5.0), (png(3), 5.0)]):
        index += f"{key}\t{len(blob)}\n"
        blob += part(record(image, labels, key))
    (tmp_path / "train.rec").write_bytes(blob)
    (tmp_path / "train.idx").write_text(index)
    source, notes = _people.read_people(tmp_path)
    assert source.names.tolist() == [0, 1, 2, 3] and source.labels.tolist() == [1, 1, 0, 0] and notes == []
    assert np.array_equal(source.read(0, 32), np.asarray(Image.open(io.BytesIO(png(0)))))


@pytest.mark.parametrize("length", [4, 5, 6, 7, 8])
def test_parts_of_any_length_are_filled_up_to_a_multiple_of_4(length):
    first, last = bytes(range(1, length + 1)), b"the end"
    file = io.BytesIO(b"before!!" + part(first, 1) + part(last, 3) + part(b"another"))
    assert _people.read_record(file, 8) == first + struct.pack("<I", 0xCED7230A) + last


def test_a_rec_that_is_cut_off_names_its_lost_records(tmp_path):
    write_rec(tmp_path / "rec")
    rec = tmp_path / "rec/train.rec"
    source, _ = _people.read_records(rec)
    whole = rec.read_bytes()
    rec.write_bytes(whole[: int(source.offsets[4]) + 60])  # in the middle of the fifth image
    source, notes = _people.read_records(rec, skip=True)
    assert source.names.tolist() == [1, 2, 3, 4] and notes == ["records cut off or not there: 2 (5, 6)"]
    rec.write_bytes(whole[: int(source.offsets[3]) + 40].ljust(len(whole), b"\0"))
    source, notes = _people.read_records(rec, skip=True)
    assert notes == ["records cut off or not there: 2 (5, 6)"]
    assert source.read(3, 32).startswith(f"{rec}: record 4: ")
    rec.write_bytes(whole[:10])
    assert refused(rec.parent) == f"{rec}: record 0: cut off; fetch the file again"


def test_an_index_that_is_missing_or_damaged(tmp_path):
    write_rec(tmp_path / "rec")
    index = tmp_path / "rec/train.idx"
    index.write_text("0\t0\n1 x\n")
    expected = f"{index}:2: expected a key and an offset; take the file that came with train.rec"
    assert refused(index.parent) == expected
    index.write_text("0\t0\n1\t99999999999999999999\n")  # beyond what a file can have
    assert refused(index.parent) == expected
    index.unlink()
    assert refused(index.parent) == f"{index}: No such file or directory; it belongs beside train.rec"


def test_records_that_are_not_what_they_say(tmp_path):
    """An offset past the end, a label or an end that is not a number, an infinite end, more labels than bytes."""
    write_rec(tmp_path / "rec")
    rec, index = tmp_path / "rec/train.rec", tmp_path / "rec/train.idx"
    start, blob = index.read_text(), bytearray(rec.read_bytes())
    offsets = {int(k): int(o) for k, o in (line.split() for line in start.splitlines())}
    index.write_text(start.replace(f"2\t{offsets[2]}\n", "2\t99999999\n") + f"3\t{offsets[1]}\n")
    blob[offsets[5] + 12 : offsets[5] + 16] = struct.pack("<f", math.nan)  # not read, because the record has an array of labels
    blob[offsets[6] + 12 : offsets[6] + 16] = struct.pack("<f", math.nan)
    blob[offsets[4] + 8 : offsets[4] + 12] = struct.pack("<I", 2**31)
    rec.write_bytes(blob)
    source, notes = _people.read_records(rec, skip=True)
    assert source.names.tolist() == [1, 3, 4, 5] and notes == ["records cut off or not there: 2 (2, 6)"]
    assert source.offsets.tolist() == [offsets[k] for k in (1, 1, 4, 5)]  # of two rows with one key, the later
    assert source.read(2, 32) == f"{rec}: record 4: not an image that can be read (cut off)"
    for end in (math.nan, math.inf, 0.0, -3.0):
        blob[offsets[0] + 32 : offsets[0] + 36] = struct.pack("<f", end)
        rec.write_bytes(blob)
        assert refused(rec.parent) == f"{rec}: record 0: {end:g} is no number of images; fetch the file again"


def test_an_index_of_many_records_takes_little_memory(tmp_path):
    """100,000 records take some 80 bytes each; with dicts and lists it was 430."""
    n = 100_000
    head = struct.pack("<IIIfQQ", 0xCED7230A, 32, 0, 5, 1, 0) + bytes(8)
    (tmp_path / "train.rec").write_bytes(head * n)
    (tmp_path / "train.idx").write_text("".join(f"{i}\t{40 * i}\n" for i in range(n)))
    tracemalloc.start()
    try:
        source, _ = _people.read_records(tmp_path / "train.rec")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source.labels) == n and kept < 40 * n and peak < 120 * n


def test_the_digest_covers_names_and_people():
    digests = {_people.people_sha256(_people.Files("/x", names, labels)) for names, labels in (
        (["a/1", "b/1"], [0, 1]), (["a/2", "b/1"], [0, 1]), (["a/1", "b/1"], [0, 0]))}
    records = {_people.people_sha256(_people.Records("x", np.array(keys), np.arange(2), np.array(labels))) for keys, labels in (
        ([1, 2], [0, 1]), ([1, 3], [0, 1]), ([1, 2], [1, 0]))}
    assert len(digests) == len(records) == 3
    assert _people.people_sha256(_people.Files("/elsewhere", ["a/1", "b/1"], [0, 1])) in digests


# ---------------------------------------------------------------- pairs


def test_pairs_are_of_the_people_they_name_and_none_occurs_twice():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 9))
    pairs, same, fold = _people.draw_pairs(labels, 3, n=400)
    assert len(pairs) == 800 and same.sum() == 400 and np.bincount(fold).tolist() == [80] * 10
    assert ((labels[pairs[:, 0]] == labels[pairs[:, 1]]) == same).all()
    assert (pairs[:, 0] != pairs[:, 1]).all() and len({tuple(sorted(p)) for p in pairs.tolist()}) == 800
    assert all(20 < same[fold == k].sum() < 60 for k in range(10))
    assert len(set(labels[pairs[same]].ravel())) == 40
    again, other = (_people.draw_pairs(labels, seed, n=400)[0] for seed in (3, 4))
    assert np.array_equal(again, pairs) and not np.array_equal(other, pairs)
    pairs, same, _ = _people.draw_pairs(np.array([0, 1, 0, 1, 1]), 0)  # as many as there are
    assert len(pairs) == 8 and sorted(map(sorted, pairs[same].tolist())) == [[0, 2], [1, 3], [1, 4], [3, 4]]


def test_lfws_own_pairs(tmp_path):
    path = write_lfw(tmp_path)
    source, pairs, same, fold = _people.read_pairs(path, tmp_path)
    names = [[source.names[i].decode() for i in pair] for pair in pairs]
    assert names[:4] == [["a/a_0001.png", "a/a_0002.jpg"], ["b/b_0001.png", "b/b_0002.jpg"],
                         ["a/a_0001.png", "b/b_0001.png"], ["a/a_0002.jpg", "b/b_0002.jpg"]]
    assert same.tolist() == [True, True, False, False] * 2 and fold.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("text,message", [
    ("", ": not LFW's pairs.txt, which begins with `10 300` (list index out of range)"),
    ("hello\n", ": not LFW's pairs.txt, which begins with `10 300` (invalid literal for int() with base 10: 'hello')"),
    ("2 2\na 1 2\n", ": 1 pairs, and its first row says 8"),
    ("1 300\n", ": not LFW's pairs.txt, which begins with `10 300` (two folds or more, of pairs)"),
    ("10 0\n", ": not LFW's pairs.txt, which begins with `10 300` (two folds or more, of pairs)"),
    ("2 1\na 1\na 1 b 1\n\n\n", ":2: expected `name i j` or `name i name j`"),
    ("2 1\na 1 2\na 1 b x\n\n\n", ":3: expected `name i j` or `name i name j`"),
    ("2 1\na 1 2\na 1 b 1\na 1 2\na 1 2 b 1\n", ":5: expected `name i j` or `name i name j`"),
    ("2 1\na 1 2\n\na 1 2\na 1 b 1\n", ":3: expected `name i j` or `name i name j`"),
    ("2 1\na 1 3\na 1 b 1\n\n\n", ":2: no image {root}/a/a_0003.jpg")])
def test_pairs_that_cannot_be_used(tmp_path, text, message):
    path = write_lfw(tmp_path)
    path.write_text(text)
    with pytest.raises(mmlfer.InputError) as error:
        _people.read_pairs(path, tmp_path)
    assert str(error.value) == f"{path}{message.format(root=tmp_path)}"
