"""Your own expressions and AUs, through every command; 30 % of the rows are not coded."""

import csv
import json

import numpy as np
import pytest
import yaml
from conftest import SMALL, invoke
from PIL import Image

import mmlfer
from mmlfer_commands import _drawing, _labels, _rafce, synth

MINE = {  # 6 expressions, not in the order of the alphabet, and 12 AUs
    "joy": {6: 0.8, 12: 0.95, 25: 0.6},
    "contempt, mild": {14: 0.9, 12: 0.3},
    "rage": {4: 0.95, 5: 0.6, 23: 0.7},
    "awe": {1: 0.8, 2: 0.9, 5: 0.7, 26: 0.7},
    "sulk": {15: 0.8, 4: 0.4, 1: 0.5},
    "disgust": {9: 0.9, 4: 0.6},
}
AUS = [1, 2, 4, 5, 6, 9, 12, 14, 15, 23, 25, 26]


def done(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Faces in labels.csv, their statistics' file, and a run of one epoch of mml on them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.yaml").write_text(yaml.safe_dump(MINE, sort_keys=False))
    done("synth", folder / "faces", "--form", "csv", "--stats", folder / "mine.yaml", "--n", 120, "--uncoded", 0.3, "--size", 32)
    done("train", "--data", folder / "faces", "--stats", "train", "--stats-least", 2, "--method", "mml", "--epochs", 1,
         "--arch", "resnet18", "--out", folder / "runs/mml", *SMALL)
    return folder


@pytest.fixture(scope="module")
def rows(mine):
    with open(mine / "faces/labels.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_synth_writes_labels_csv_of_ones_own(mine, rows):
    assert list(rows[0]) == ["image", "expression", "split", "aus"] and len(rows) == 120
    assert {row["expression"] for row in rows} == set(MINE) and {row["split"] for row in rows} == {"train", "val", "test"}
    assert sum(row["aus"] == "?" for row in rows) == 36
    assert all(10 <= sum(row["expression"] == name for row in rows) <= 32 for name in MINE)
    for row in rows:
        assert Image.open(mine / "faces" / row["image"]).size == (32, 32)
        if row["aus"] not in ("", "?"):
            assert {number for number, _ in _rafce.parse_aus(row["aus"])} <= set(MINE[row["expression"]])


def test_rows_are_uncoded_by_the_seed_and_faces_stay(mine, tmp_path):
    """A face is drawn from its AUs whether or not labels.csv has them."""
    draw = ["--form", "csv", "--stats", mine / "mine.yaml", "--n", 12, "--size", 32]
    texts = []
    for name, *more in (("a",), ("b", "--uncoded", 0.5), ("c", "--uncoded", 0.5), ("d", "--uncoded", 0.5, "--seed", 1)):
        done("synth", tmp_path / name, *draw, *more)
        texts.append([line.rsplit(",", 1)[1] for line in (tmp_path / name / "labels.csv").read_text().splitlines()[1:]])
    plain, hidden, again, other = texts
    assert hidden == again and [i for i, text in enumerate(hidden) if text == "?"] != [i for i, text in enumerate(other) if text == "?"]
    assert sum(text == "?" for text in hidden) == 6 and all(b in (a, "?") for a, b in zip(plain, hidden))
    for i in range(1, 13):
        name = f"aligned/{i:04d}_aligned.jpg"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_further_test_faces_of_labels_csv_leave_the_others_as_they_are(mine, tmp_path):
    texts = []
    for name, *more in (("a",), ("b", "--test", 5)):
        done("synth", tmp_path / name, "--form", "csv", "--stats", mine / "mine.yaml", "--n", 12, "--size", 32, *more)
        texts.append((tmp_path / name / "labels.csv").read_text().splitlines())
    assert texts[1][:13] == texts[0] and [line.split(",")[-2] for line in texts[1][13:]] == ["test"] * 5
    faces = [(tmp_path / name / "aligned/0012_aligned.jpg").read_bytes() for name in "ab"]
    assert faces[0] == faces[1] and len(list((tmp_path / "b/aligned").iterdir())) == 17


def test_synth_draws_the_papers_statistics_as_labels_csv_too(tmp_path, faces_folder):
    """With the same seed, the labels are the same as in RAF-CE's layout."""
    done("synth", tmp_path / "faces", "--form", "csv", "--stats", "lab", "--n", 60, "--size", 32)
    one, other = _labels.load_faces(tmp_path / "faces"), _labels.load_faces(faces_folder)
    names = [one.vocabulary.emotions[k] for k in one.y_emo]
    assert names == [mmlfer.EMOTIONS[k] for k in other.y_emo] and one.split.tolist() == other.split.tolist()
    for row, text in zip(one.y_au, other.y_au):
        assert [au for au, y in zip(one.vocabulary.aus, row) if y] == [au for au, y in zip(mmlfer.AUS, text) if y]
    assert (tmp_path / "faces/aligned/0007_aligned.jpg").read_bytes() == (faces_folder / "aligned/0007_aligned.jpg").read_bytes()


def test_the_aus_that_synth_draws_are_those_that_change_a_face():
    """Each AU changes it alone or, such as those of an open mouth, together with another."""
    draw = lambda aus: np.asarray(_drawing.draw_face(aus, np.random.default_rng(5), 64), int)  # noqa: E731
    plain = {with_: draw(dict.fromkeys(with_, (1, 1))) for with_ in ((), (25, 27))}
    changing = [au for au in mmlfer.AU_NAMES if any(
        np.abs(draw(dict.fromkeys({*with_, au}, (1, 1))) - image).max() > 24 for with_, image in plain.items() if au not in with_)]
    assert sorted({*changing, 25, 27}) == sorted(synth.DRAWN)


def test_what_synth_cannot_draw_is_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("puff: {33: 0.9, 44: 0.5}\njoy: {12: 0.9}\n")
    result = invoke("synth", tmp_path / "a", "--form", "csv", "--stats", tmp_path / "mine.yaml")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}/mine.yaml: AU 33, 44: synth draws AUs 1, 2, 4, ")
    rafce = "--form csv has no --labels, --au-noise or --people."
    for options, said in ((("--form", "csv", "--people", 2), rafce), (("--form", "csv", "--labels", tmp_path), rafce),
                          (("--form", "csv", "--au-noise", 0.1), rafce),
                          (("--uncoded", 0.3), "--uncoded and --soft need --form csv: RAF-CE's files have neither.")):
        result = invoke("synth", tmp_path / "a", *options)
        assert result.exit_code == 2 and said in result.stderr
    assert not (tmp_path / "a").exists()


def test_stats_counts_the_coded_rows(mine, rows):
    out = mine / "counted.yaml"
    done("stats", "--data", mine / "faces", "--split", "train", "--out", out, "--plot", mine / "stats.png")
    counted = yaml.safe_load(out.read_text())
    assert list(counted) == sorted(MINE)
    for name, row in counted.items():
        aus = [row["aus"] for row in rows if (row["expression"], row["split"]) == (name, "train") and row["aus"] != "?"]
        seen = {au: np.mean([au in [n for n, _ in _rafce.parse_aus(text or "null")] for text in aus]) for au in AUS}
        assert row == pytest.approx({au: p for au, p in seen.items() if p >= 0.2}, abs=1e-4), name


def test_train_and_eval(mine, rows):
    """test_vocabulary.py has the other commands."""
    state = mmlfer.read_checkpoint(mine / "runs/mml/best.pt")
    assert list(state["emotions"]) == sorted(MINE) and list(state["aus"]) == AUS
    assert state["net"]["fe.weight"].shape == (6, 512) and state["net"]["au.weight"].shape == (12, 512)
    result, test = json.loads((mine / "runs/mml/test.json").read_text()), [row for row in rows if row["split"] == "test"]
    assert result["truth"] == [sorted(MINE).index(row["expression"]) for row in test]
    numbers = json.loads(done("eval", "--ckpt", mine / "runs/mml/best.pt", "--json"))
    assert numbers["accuracy"] == pytest.approx(result["best"]["accuracy"]) and list(numbers["au_f1"]) == [str(au) for au in AUS]
