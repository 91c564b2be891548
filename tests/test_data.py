"""RAF-CE's layout, ordinary damage to it, and stand-in faces."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, invoke, run_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from reference import AUS, EMOTIONS, read_folder

import mmlfer
from mmlfer_commands import _drawing, _labels, _rafce, train

EMO, PARTITION, AU = mmlfer.LABEL_FILES


def write(folder, emo, partition, au):
    for name, content in zip(mmlfer.LABEL_FILES, (emo, partition, au)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def active(faces, row):
    return [mmlfer.AUS[j] for j in np.flatnonzero(faces.y_au[row])]


def test_label_files_as_people_have_them(tmp_path):
    write(tmp_path, "0001.jpg 5\r\n0002.jpg\t13  \r\n0003.jpg 0\n0001.jpg 5", "0002.jpg 1\n0001.jpg 0\n\n0003.jpg 2 \n",
          b"\xef\xbb\xbf0001.jpg 4+L12+R12+t24\n0002.jpg null\n0003.jpg 25+lr1+10B+B22\n")
    faces = _rafce.load_labels(tmp_path)
    assert faces.names == ["0001.jpg", "0002.jpg", "0003.jpg"]
    assert faces.y_emo.tolist() == [5, 13, 0]
    assert faces.split.tolist() == [mmlfer.TRAIN, mmlfer.TEST, mmlfer.VAL]
    assert [active(faces, i) for i in range(3)] == [[4, 12, 24], [], [1, 10, 22, 25]]


def test_au_tokens_keep_their_sides_for_drawing():
    assert _rafce.parse_aus("4+l12+24T") == ((4, ""), (12, "L"), (24, "T"))
    moved = _drawing.strengths(_rafce.parse_aus("L12+R4+T24"), np.random.default_rng(0))
    assert moved[12][0] == 0 < moved[12][1] and moved[4][1] == 0 < moved[4][0] and min(moved[24]) > 0


@pytest.mark.parametrize("place", ["", "aligned", "aligned/aligned", "RAF-AU", "RAF-AU/aligned",
                                   "RAF-AU/aligned/aligned"])
@pytest.mark.parametrize("name", ["0001_aligned.jpg", "0001.jpg", "0001_aligned.png", "0001.PNG"])
def test_images_are_found_where_people_have_them(tmp_path, place, name):
    write(tmp_path, "0001.jpg 5", "0001.jpg 0", "0001.jpg 4")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (200, 100, 50)).save(tmp_path / place / name)
    faces = mmlfer.load_images(_rafce.load_labels(tmp_path), tmp_path, 32)
    assert faces.images.shape == (1, 3, 32, 32) and faces.images.dtype == torch.uint8
    assert abs(faces.images.float().mean((0, 2, 3)) - torch.tensor([200, 100, 50])).max() < 4


def picture(mode):
    """The same orange image in one of Pillow's modes, and the colour that must be read from it."""
    orange = Image.new("RGB", (40, 40), (250, 150, 0))
    if mode == "I;16":
        return Image.fromarray(np.full((40, 40), 150 * 257, np.uint16)), (150, 150, 150)
    if mode == "RGBA":
        orange.putalpha(0)
        return orange, (255, 255, 255)
    grey = (163, 163, 163) if mode in ("L", "LA") else (250, 150, 0)
    return orange.convert(mode), grey


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "I;16", "RGBA", "LA", "1"])
def test_pictures_of_every_kind_are_read_as_a_person_sees_them(tmp_path, mode):
    image, color = picture(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    pixels = mmlfer.read_image(path, 32)
    assert pixels.shape == (32, 32, 3)
    if mode != "1":
        assert np.abs(pixels.mean((0, 1)) - color).max() < 3


def test_exif_rotation_is_undone(tmp_path):
    image = Image.new("RGB", (40, 40), "black")
    image.paste("white", (0, 0, 40, 10))  # a white band above
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    image.save(tmp_path / "a.png", exif=exif)
    pixels = mmlfer.read_image(tmp_path / "a.png", 40)
    assert pixels[:, -5:].min() == 255 and pixels[:, :20].max() == 0


# Sec. 3.1 and the published label files, by hand
TOTALS = {"happily surprised": (676, 126), "happily disgusted": (279, 54), "sadly fearful": (171, 36),
          "sadly angry": (230, 44), "sadly surprised": (120, 25), "sadly disgusted": (835, 178),
          "fearfully angry": (195, 43), "fearfully surprised": (603, 113), "fearfully disgusted": (36, 6),
          "angrily surprised": (210, 44), "angrily disgusted": (977, 194), "disgustedly surprised": (177, 37),
          "happily fearful": (11, 1), "happily sad": (29, 8)}


def rafce_faces():
    """Labels with RAF-CE's counts: 4,549 = 2,709 train + 909 test + 931 validation."""
    y_emo = np.array([mmlfer.EMOTIONS.index(name) for name, (n, _) in TOTALS.items() for _ in range(n)])
    split = np.concatenate([[1] * test + [0] * (n - test) for n, test in TOTALS.values()])
    split[np.flatnonzero(split == 0)[::2][:931]] = 2
    assert len(y_emo) == 4549 and np.bincount(split).tolist() == [2709, 909, 931]
    return mmlfer.Faces(list(map(str, range(4549))), y_emo, split, np.zeros((4549, 32)))


def swap(array, a, b):
    array[[a, b]] = array[[b, a]]


NEARLY = {  # one face another expression; a test face for a training one; one image fewer
    "expression": lambda f: f.y_emo.__setitem__(int(np.flatnonzero(f.split == 0)[-1]), 0),
    "test sizes": lambda f: swap(f.split, 0, 700 + int(np.flatnonzero(f.split[700:] != 1)[0])),
    "partition": lambda f: f.split.__setitem__(int(np.flatnonzero(f.split == 2)[0]), 0),
}


def test_rafce_is_recognised_by_its_counts():
    faces = rafce_faces()
    assert _rafce.is_rafce(faces) and "these are RAF-CE's own counts" in _labels.describe(faces, "x")
    assert not _rafce.is_rafce(faces.select(slice(1, None)))
    assert not _rafce.is_rafce(mmlfer.dataclasses.replace(faces, fold=np.ones(4549, int)))
    own = mmlfer.Vocabulary(mmlfer.EMOTIONS[::-1], mmlfer.AUS)
    assert not _rafce.is_rafce(mmlfer.dataclasses.replace(faces, vocabulary=own))


def test_a_run_on_rafces_own_counts_says_so(tmp_path, monkeypatch):
    """It counts all faces; the test faces alone would never have RAF-CE's counts."""
    faces = mmlfer.dataclasses.replace(rafce_faces(), images=torch.zeros(4549, 3, 1, 1, dtype=torch.uint8))
    run = run_of(mmlfer.Config(data="rafce", method="stl", arch="resnet18", weights="none", device="cpu"))
    monkeypatch.setattr(train, "evaluate", lambda net, faces, *_: {"accuracy": 1, "diag": 1, "n": len(faces.names)})
    monkeypatch.setattr(train, "load_net", lambda *_: (run.net, {"epoch": 0}))
    for data, own in ((faces, True), (faces.select(slice(1, None)), False)):
        result = train.read_test_set(run, data, tmp_path)
        assert json.loads((tmp_path / "test.json").read_text())["rafce"] is result["rafce"] is own
        assert result["best"]["n"] == len(result["names"]) == 909 - (not own)


@pytest.mark.parametrize("kind", NEARLY)
def test_data_that_are_nearly_rafce_are_not_called_rafce(kind):
    faces = rafce_faces()
    NEARLY[kind](faces)
    assert not _rafce.is_rafce(faces) and "not RAF-CE's own counts" in _labels.describe(faces, "x")


def test_batches_flip_images_and_keep_labels(faces_folder):
    faces = mmlfer.load_images(_rafce.load_labels(faces_folder), faces_folder, 32)
    cfg = mmlfer.Config(batch_size=4, seed=3)
    batches = mmlfer.Batches(faces, cfg, torch.device("cpu"))
    flips, seen = [], []
    for index, flip, val_index, _ in batches.epoch(0):
        x, y_emo, y_au = batches.take(index, flip)
        for i, row in enumerate(index.tolist()):
            image = faces.images[row]
            assert torch.equal(x[i], image.flip(2) if flip[i] else image)
            assert y_emo[i] == faces.y_emo[row] and (y_au[i].numpy() == faces.y_au[row]).all()
        flips += flip.tolist()
        seen += index.tolist()
        assert (faces.split[val_index] == mmlfer.VAL).all()
    assert 0 < sum(flips) < len(flips) and len(set(seen)) == len(seen) == 4 * batches.steps
    assert (faces.split[seen] == mmlfer.TRAIN).all()
    again, other = batches.epoch(0), batches.epoch(1)
    assert torch.equal(again[0][0], torch.tensor(seen[:4])) and not torch.equal(other[0][0], again[0][0])


def test_decoding_holds_no_more_than_a_few_hundred_images(monkeypatch):
    read = []
    monkeypatch.setattr(mmlfer, "try_read", lambda path, size: read.append(path) or path)
    images = mmlfer.decode(list(range(2000)), 32)
    assert next(images) == 0 and len(read) <= 256
    assert list(images) == list(range(1, 2000))


# ---------------------------------------------------------------- what is broken in ordinary ways

GOOD = {EMO: "1.jpg 0\n2.jpg 1\n", PARTITION: "1.jpg 0\n2.jpg 1\n", AU: "1.jpg 4\n2.jpg 1+2\n"}
FIX = "; fix this row"
BROKEN_LABELS = {
    "missing": (EMO, None, "{path}: No such file or directory; `synth` makes stand-ins"),
    "empty": (AU, "", "{path}: empty; take the published one"),
    "blank": (AU, " \n\n", "{path}: empty; take the published one"),
    "binary": (AU, b"\xff\xfe\x00\x81", "{path}: not a text file; take the published one"),
    "few fields": (AU, "1.jpg 4\n2.jpg\n", "{path}:2: expected an image name and 1 value, got 1 field" + FIX),
    "many fields": (EMO, "1.jpg 0 3\n", "{path}:1: expected an image name and 1 value, got 3 fields" + FIX),
    "expression 14": (EMO, "1.jpg 14\n", "{path}:1: expected a whole number 0..13, got '14'" + FIX),
    "negative": (EMO, "1.jpg -1\n", "{path}:1: expected a whole number 0..13, got '-1'" + FIX),
    "no number": (EMO, "1.jpg sad\n", "{path}:1: expected a whole number 0..13, got 'sad'" + FIX),
    "partition 3": (PARTITION, "1.jpg 3\n", "{path}:1: expected a whole number 0..2, got '3'" + FIX),
    "token": (AU, "1.jpg 4+L\n", "{path}:1: expected AUs like 4+L12+25 or null, got 'L' in '4+L'" + FIX),
    "nul": (AU, "1.jpg\0 4\n", "{path}: not a text file; take the published one"),
    "separator": (AU, "1.jpg 4,12\n", "{path}:1: expected AUs like 4+L12+25 or null, got '4,12' in '4,12'" + FIX),
    "AU 11": (AU, "1.jpg 11\n", "{path}:1: AU 11 is not one of the 32 AUs of RAF-CE" + FIX),
    "twice": (EMO, "1.jpg 0\n2.jpg 1\n1.jpg 2\n", "{path}:3: 1.jpg differs in row 1; keep one"),
    "missing row": (AU, "1.jpg 4\n", "{emo}:2: 2.jpg is not in {path}; the label files must list the same images"),
    "extra row": (AU, "1.jpg 4\n2.jpg 5\n3.jpg 6\n",
                  "{path}:3: 3.jpg is not in {emo}; the label files must list the same images"),
    "no partition": (PARTITION, "1.jpg 0\n", "{emo}:2: 2.jpg is not in {path}; the label files must list the same images"),
    "partition of no image": (PARTITION, "2.jpg 1\n1.jpg 0\n0.jpg 0\n",
                              "{path}:3: 0.jpg is not in {emo}; the label files must list the same images"),
}


def assert_fails(result, message, code=1):
    assert result.exit_code == code, result.output
    assert result.stderr == f"Error: {message}\n"
    assert "Traceback" not in result.output


@pytest.mark.parametrize("kind", BROKEN_LABELS)
def test_broken_label_files_end_in_one_line(tmp_path, kind):
    name, content, message = BROKEN_LABELS[kind]
    write(tmp_path, *GOOD.values())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = invoke("train", "--data", tmp_path, "--out", tmp_path / "run", *SMALL)
    message = message.format(path=tmp_path / name, emo=tmp_path / EMO)
    assert_fails(result, message)
    assert not (tmp_path / "run").exists()


def test_a_label_file_that_is_a_folder_is_one_line(tmp_path):
    write(tmp_path, *GOOD.values())
    (tmp_path / AU).unlink()
    (tmp_path / AU).mkdir()
    result = invoke("train", "--data", tmp_path, "--out", tmp_path / "run", *SMALL)
    assert_fails(result, f"{tmp_path / AU}: Is a directory; `synth` makes stand-ins")


def test_missing_folder_says_how_to_get_rafce():
    result = invoke("train", "--data", "nowhere/rafce", "--out", "nowhere/run")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "no such folder; ask for RAF-CE at" in result.stderr
    assert "mmlfer synth" in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def copy_of_faces(faces_folder, tmp_path):
    shutil.copytree(faces_folder, tmp_path / "faces")
    return tmp_path / "faces"


def edit_rows(path, change):
    path.write_text("".join(change(*line.split()) for line in path.read_text().splitlines()))


PARTITIONS = {
    "train": ("0", "2", "0 train images, under 4"),
    "val": ("2", "0", "0 val images, under 4"),
    "test": ("1", "0", "0 test images, under 1"),
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_a_partition_without_images_is_one_line(copy_of_faces, tmp_path, name):
    old, new, message = PARTITIONS[name]
    edit_rows(copy_of_faces / PARTITION, lambda n, p: f"{n} {new if p == old else p}\n")
    result = invoke("train", "--data", copy_of_faces, "--out", tmp_path / "run", *SMALL)
    assert_fails(result, f"{copy_of_faces}: {message}; see {PARTITION} (0 train, 1 test, 2 validation), "
                         "--batch-size")
    assert not (tmp_path / "run").exists()


def test_aus_that_were_lost_are_an_error(copy_of_faces, tmp_path):
    edit_rows(copy_of_faces / AU, lambda n, _: f"{n} null\n")
    result = invoke("train", "--data", copy_of_faces, "--out", tmp_path / "run", *SMALL)
    assert_fails(result, f"{copy_of_faces}/{AU}: 0.000 active AUs a training face; the AUs were lost: "
                         "take the published file")


def test_the_aus_of_training_faces_count_alone():
    split = np.repeat([mmlfer.TRAIN, mmlfer.TEST, mmlfer.VAL], [4, 80, 4])

    def check(active):
        y_au = np.zeros((88, 32), int)
        y_au[active] = 1
        _labels.check_trainable(mmlfer.Faces([""] * 88, np.zeros(88, int), split, y_au), "here", 4)

    with pytest.raises(mmlfer.InputError, match="here/RAFCE_AUlabel.txt: 0.000 active AUs a training face"):
        check(split != mmlfer.TRAIN)
    check(np.arange(88) == 0)


@pytest.mark.parametrize("name,code,left,message", [
    ("val", "2", 3, "3 val images, under 4"), ("train", "0", 3, "3 train images, under 4"),
    ("test", "1", 0, "0 test images, under 1")])
def test_bad_images_that_leave_too_few_are_an_error(copy_of_faces, tmp_path, name, code, left, message):
    rows = [line.split() for line in (copy_of_faces / PARTITION).read_text().splitlines()]
    for lost in [n for n, p in rows if p == code][left:]:
        (copy_of_faces / "aligned" / lost.replace(".jpg", "_aligned.jpg")).write_bytes(b"")
    result = invoke("train", "--data", copy_of_faces, "--out", tmp_path / "run", "--skip-bad-images", "--epochs", 1,
                    "--method", "stl", *SMALL)
    assert result.exit_code == 1 and result.stderr.splitlines()[-1] == (
        f"Error: {copy_of_faces}: {message}; see {PARTITION} (0 train, 1 test, 2 validation), --batch-size")
    assert not (tmp_path / "run").exists()


def break_images(folder):
    paths = sorted((folder / "aligned").iterdir())
    paths[0].unlink()
    paths[1].write_bytes(b"")
    paths[2].write_bytes(b"no image")
    paths[3].write_bytes(paths[3].read_bytes()[:300])


def test_broken_images_are_counted_and_the_first_named(copy_of_faces, tmp_path):
    break_images(copy_of_faces)
    result = invoke("train", "--data", copy_of_faces, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: 4 of 60 images cannot be read: 0001.jpg is not found below")
    assert "0002_aligned.jpg" in result.stderr and "--skip-bad-images" in result.stderr
    assert not (tmp_path / "run").exists()


def test_skip_bad_images_goes_on_and_says_so(copy_of_faces, tmp_path):
    break_images(copy_of_faces)
    result = invoke("train", "--data", copy_of_faces, "--out", tmp_path / "run", "--skip-bad-images",
                    "--method", "stl", "--epochs", 1, *SMALL)
    assert result.exit_code == 0, result.output
    assert "Warning: left out 4 images that cannot be read" in result.stderr


GOOD_STATS = yaml.safe_load((mmlfer.HERE / "stats/wild.yaml").read_text())
BROKEN_STATS = {
    "missing": (None, "cannot be read as YAML ({reason}); "
                "--stats takes wild, lab, train or a file of `mmlfer stats --out`"),
    "a list": ([1, 2], "expected expressions and AUs, as in stats/wild.yaml"),
    "row": ({**{k: v for k, v in GOOD_STATS.items() if k != "happily sad"}, "happily  sad": {1: 0.5}},
            "no row for happily sad, as the labels have; add it, or {{}} in its place to leave an expression out of L^AM"),
    "AU": ({**GOOD_STATS, "happily sad": {3: 0.5}}, "happily sad: unknown AU 3; the AUs are those of FACS, 1 to 46"),
    "range": ({**GOOD_STATS, "happily sad": {1: 40}}, "happily sad: AU 1: expected a fraction 0..1, got '40'"),
    "text": ({**GOOD_STATS, "happily sad": {1: "x"}}, "happily sad: AU 1: expected a fraction 0..1, got 'x'"),
    "nan": ({**GOOD_STATS, "happily sad": {1: float("nan")}}, "happily sad: AU 1: expected a fraction 0..1, got 'nan'"),
    "AU as true": ({**GOOD_STATS, "happily sad": {True: 0.5}}, "happily sad: unknown AU True; the AUs are those of FACS, 1 to 46"),
    "row as list": ({**GOOD_STATS, "happily sad": [1]}, "happily sad: expected AUs with fractions, like {{12: 0.58}}"),
    "name": ({**GOOD_STATS, True: {1: 0.5}}, "True is no name; put it in quotes"),
    "nothing": ({}, "expected expressions and AUs, as in stats/wild.yaml"),
}


@pytest.mark.parametrize("kind", BROKEN_STATS)
def test_broken_statistics_end_in_one_line(faces_folder, tmp_path, kind):
    content, message = BROKEN_STATS[kind]
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_text(yaml.safe_dump(content))
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "run", "--stats", path, *SMALL)
    reason = f"[Errno 2] No such file or directory: '{path}'"[:120]  # a reason is cut there
    assert_fails(result, f"{path}: {message.format(reason=reason)}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["a: [1", '!!float ""', '!!timestamp "x"', "[" * 5000, "\0"])
def test_statistics_that_are_not_yaml_are_one_line(faces_folder, tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "r", "--stats", tmp_path / "s.yaml",
                    *SMALL)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"Error: {tmp_path}/s.yaml: cannot be read as YAML")


# any label file at all

token = st.tuples(st.sampled_from(mmlfer.AUS), st.sampled_from(["", "L", "R", "T", "B", "LT"]))
names = st.lists(st.integers(1, 9999).map("{:04d}.jpg".format), min_size=1, max_size=8, unique=True)


BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy


@BUSY
@given(names, st.data())
def test_parsing_gives_back_what_was_written(tmp_path_factory, names, data):
    folder = tmp_path_factory.mktemp("labels")
    rows = data.draw(st.lists(st.lists(token, unique_by=lambda t: t[0]), min_size=len(names),
                              max_size=len(names)))
    end = data.draw(st.sampled_from(["\n", "\r\n", "  \n"]))
    lines = [f"{n} {'+'.join(f'{side}{au}' for au, side in row) or 'null'}" for n, row in zip(names, rows)]
    (folder / AU).write_text(end.join(lines), newline="")
    parsed = _rafce.read_labels(folder / AU, _rafce.parse_aus)
    assert {n: value for n, (_, value) in parsed.items()} == {
        n: tuple(row) for n, row in zip(names, rows)
    }


@BUSY
@given(st.one_of(st.text(), st.binary(), st.from_regex(r"(\d+\.jpg [ -~]{0,9}\n)+")))
def test_any_text_gives_data_or_a_clean_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / AU
    path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    for parse in (_rafce.parse_aus, lambda text: _rafce.parse_code(text, 13)):
        try:
            assert _rafce.read_labels(path, parse)
        except mmlfer.InputError as error:
            assert str(error).startswith(str(path))


# ---------------------------------------------------------------- names, numbers, spellings, counts


def test_names_and_numbers_are_the_papers():
    assert list(mmlfer.EMOTIONS) == EMOTIONS and list(mmlfer.AUS) == AUS
    assert (mmlfer.TRAIN, mmlfer.TEST, mmlfer.VAL) == (0, 1, 2)


AU_TEXTS = {"null": [], "NULL": [], "4": [4], "L12+r4": [12, 4], "12L+lr25+T24": [12, 25, 24], "043": [43]}


@pytest.mark.parametrize("text", AU_TEXTS)
def test_au_tokens_in_every_spelling(text):
    assert [number for number, _ in _rafce.parse_aus(text)] == AU_TEXTS[text]


def test_least_numbers_of_images():
    def faces(train, test, val, aus=1):
        n = train + test + val
        split = np.array([0] * train + [1] * test + [2] * val)
        return mmlfer.Faces([""] * n, np.zeros(n, int), split, np.full((n, 32), aus / 32))

    _labels.check_trainable(faces(4, 1, 4), "here", 4)
    _labels.check_trainable(faces(4, 1, 4, aus=0.1001), "here", 4)
    for counts, message in (((3, 1, 4), "3 train images, under 4"),
                            ((4, 0, 4), "0 test images, under 1"),
                            ((4, 1, 3), "3 val images, under 4"),
                            ((4, 1, 4, 0.099), "0.099 active AUs a training face")):
        with pytest.raises(mmlfer.InputError, match=message):
            _labels.check_trainable(faces(*counts), "here", 4)


def test_describe_counts_every_expression_and_partition(noise_folder):
    _, y_emo, y_au, split = read_folder(noise_folder)
    lines = _labels.describe(_rafce.load_labels(noise_folder), "here").splitlines()
    assert lines[0] == "here: 22 images" and lines[1].split() == ["train", "test", "val"]
    for k, name in enumerate(EMOTIONS):
        counts = [sum(1 for e, s in zip(y_emo.tolist(), split) if (e, s) == (k, code)) for code in (0, 1, 2)]
        assert lines[2 + k].strip().rsplit(maxsplit=3) == [name, *map(str, counts)]
    assert lines[16].split() == ["all", "11", "4", "7"]
    active = [int(row.sum()) for row in y_au]
    mean = math.fsum(active) / 22
    assert lines[17].strip() == f"{active.count(0)} rows without AUs, {mean:.2f} active AUs per face"
