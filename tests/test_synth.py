"""Stand-in faces drawn from AUs."""

import re

import numpy as np
import pytest
from conftest import invoke, write_labels_as
from PIL import Image

import mmlfer
from mmlfer_commands import synth

AU = mmlfer.LABEL_FILES[2]


def test_synth_writes_rafces_layout_and_the_same_twice(faces_folder, tmp_path):
    synth.synthesize(tmp_path / "a", 60, "lab", None, 32, 0)
    names = sorted(p.name for p in (faces_folder / "aligned").iterdir())
    assert names == [f"{i:04d}_aligned.jpg" for i in range(1, 61)]
    for path in [faces_folder / "aligned" / n for n in names] + [faces_folder / n for n in mmlfer.LABEL_FILES]:
        assert path.read_bytes() == (tmp_path / "a" / path.relative_to(faces_folder)).read_bytes()
    synth.synthesize(tmp_path / "b", 60, "lab", None, 32, 1)
    assert (tmp_path / "b" / AU).read_text() != (faces_folder / AU).read_text()
    sides = re.findall(r"[LR]\d", (faces_folder / AU).read_text())
    assert len(sides) > 5


def test_drawn_labels_follow_proportions_and_statistics():
    table = mmlfer.load_stats("wild")
    _, y_emo, aus = synth.draw_labels(20000, table, 0)
    assert np.abs(np.bincount(y_emo, minlength=14) / 20000 - np.array(mmlfer.RAFCE_TOTALS) / 4549).max() < 0.01
    rows = [{number for number, _ in mmlfer.parse_aus(text)} for text in aus]
    surprised = [r for r, k in zip(rows, y_emo) if k == 0]
    assert np.mean([12 in r for r in surprised]) == pytest.approx(0.58 * 0.99, abs=0.03)
    assert sum(not r for r in rows) > 100


def test_every_au_of_table_1_changes_the_drawing_on_its_side():
    columns = np.flatnonzero((mmlfer.load_stats("wild") + mmlfer.load_stats("lab")).any(0))
    aus = [mmlfer.AUS[j] for j in columns]
    assert len(aus) == 17
    draw = lambda a: np.asarray(synth.draw_face(a, np.random.default_rng(5), 112), int)  # noqa: E731
    neutral = draw({})
    for au in aus:
        changed = np.abs(draw({au: (1, 1)}) - neutral).max(2) > 24
        assert changed.sum() > 60, au
    half = np.abs(draw({1: (0, 1)}) - neutral).max(2) > 24  # the subject's left: right in the picture
    assert half[:, 66:].sum() > 40 and half[:, :40].sum() == 0


def test_synth_draws_given_labels(tmp_path):
    source = tmp_path / "labels"
    source.mkdir()
    write_labels_as(source, "0007.jpg 5\n0009.jpg 1\n", "0007.jpg 0\n0009.jpg 1\n", "0007.jpg L12+43\n0009.jpg null\n")
    result = invoke("synth", tmp_path / "out", "--labels", source, "--size", 64)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out/aligned").iterdir()) == ["0007_aligned.jpg", "0009_aligned.jpg"]
    assert (tmp_path / "out" / AU).read_bytes() == (source / AU).read_bytes()
    assert Image.open(tmp_path / "out/aligned/0007_aligned.jpg").size == (64, 64)


def test_names_that_say_aligned_already(tmp_path):
    source = tmp_path / "labels"
    source.mkdir()
    write_labels_as(source, "0007_aligned.jpg 5\n", "0007_aligned.jpg 0\n", "0007_aligned.jpg 12\n")
    assert invoke("synth", tmp_path / "out", "--labels", source, "--size", 32).exit_code == 0
    faces = mmlfer.load_images(mmlfer.load_labels(tmp_path / "out"), tmp_path / "out", 32)
    assert len(faces.images) == 1 and (tmp_path / "out/aligned/0007_aligned.jpg").exists()
