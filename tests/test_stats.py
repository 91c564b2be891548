"""The AU analysis of Sec. 3.2."""

import shutil

import numpy as np
import pytest
import yaml
from conftest import invoke
from PIL import Image

import mmlfer
from mmlfer_commands import build, stats


def naive_frequencies(folder):
    emo, rows = {}, {}
    for line in (folder / "RAFCE_emolabel.txt").read_text().splitlines():
        name, k = line.split()
        emo[name] = int(k)
    for line in (folder / "RAFCE_AUlabel.txt").read_text().splitlines():
        name, text = line.split()
        numbers = set() if text == "null" else {int(t.strip("LRTB")) for t in text.split("+")}
        rows.setdefault(emo[name], []).append(numbers)
    return {(mmlfer.EMOTIONS[k], au): sum(au in r for r in of_k) / len(of_k)
            for k, of_k in rows.items() for au in mmlfer.AUS}  # fmt: skip


def test_statistics_match_a_naive_count(faces_folder, tmp_path):
    labels = tmp_path / "labels"  # label files alone, no images
    labels.mkdir()
    for name in mmlfer.LABEL_FILES:
        shutil.copy(faces_folder / name, labels)
    result = invoke("stats", "--data", labels, "--out", tmp_path / "s.yaml", "--against", "wild")
    assert result.exit_code == 0, result.output
    naive, written = naive_frequencies(faces_folder), yaml.safe_load((tmp_path / "s.yaml").read_text())
    for (emotion, au), p in naive.items():
        assert written[emotion].get(au, 0) == pytest.approx(p if p >= 0.2 else 0, abs=1e-4)
    header, _, first = result.stdout.splitlines()[:3]
    for column, cell in list(zip(header.split("|"), first.split("|")))[2:-1]:
        p = naive["happily surprised", int(column.split()[1])]
        assert cell.strip() == ("" if p < 0.2 else f"**{100 * p:.0f}**" if p >= 0.7 else f"{100 * p:.0f}")
    assert "here: " in result.output and "there: 13 observed AUs; AU 12 in 10 and AU 25 in 14" in result.output
    assert "0.73 prototypical + 2.12 variant = 2.85 observed" in result.output


def test_statistics_written_are_statistics_read(tmp_path):
    build.write_labels(tmp_path, *zip(*[(f"{i}.jpg", i % 14, 0, "12+25" if i < 28 else "4") for i in range(42)]))
    assert invoke("stats", "--data", tmp_path, "--out", tmp_path / "s.yaml").exit_code == 0
    table = mmlfer.load_stats(str(tmp_path / "s.yaml"))
    assert np.allclose(table[:, [mmlfer.AUS.index(a) for a in (12, 25, 4)]], [[0.6667, 0.6667, 0.3333]] * 14)


def test_lab_against_wild_gives_the_papers_observations():
    lab, wild = mmlfer.load_stats("lab"), mmlfer.load_stats("wild")
    text = stats.observations(wild, lab)
    assert "observed here only: AU 16, 27" in text
    assert "observed there only: AU 7, 15, 17" not in text and "AU 7, 15, 20, 24" in text
    assert "AU 12 in 4 and AU 25 in 11" in text


def test_heat_map_has_both_tables(faces_folder, tmp_path):
    result = invoke("stats", "--data", faces_folder, "--against", "lab", "--plot", tmp_path / "h.png")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "h.png").size[0] > 800
