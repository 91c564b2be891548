"""Predictions on faces of one's own."""

import csv
import json
import shutil

import pytest
from conftest import invoke

import mmlfer


def test_predict_names_expressions_and_aus(trained, faces_folder, tmp_path):
    out, _ = trained
    result = invoke("predict", "--ckpt", out / "best.pt", faces_folder / "aligned", "--top", 2, "--json",
                    "--csv", tmp_path / "p.csv")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [r["image"] for r in rows] == [str(p) for p in sorted((faces_folder / "aligned").iterdir())]
    for row in rows:
        first, second = row["expressions"]
        assert first["name"] in mmlfer.EMOTIONS and 1 >= first["p"] >= second["p"] >= 0
        assert all(a["name"] == mmlfer.AU_NAMES[a["au"]] and a["p"] > 0.5 for a in row["aus"])
    table = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert list(table[0]) == ["image", "expression_1", "p_1", "expression_2", "p_2", "aus"]
    assert [t["expression_1"] for t in table] == [r["expressions"][0]["name"] for r in rows]


def test_predict_agrees_with_eval(trained, faces_folder):
    out, _ = trained
    faces = mmlfer.load_labels(faces_folder)
    test = {n: mmlfer.EMOTIONS[k] for n, k, s in zip(faces.names, faces.y_emo, faces.split) if s == mmlfer.TEST}
    paths = [faces_folder / "aligned" / n.replace(".", "_aligned.") for n in test]
    rows = json.loads(invoke("predict", "--ckpt", out / "best.pt", *paths, "--json").stdout)
    right = sum(r["expressions"][0]["name"] == k for r, k in zip(rows, test.values()))
    numbers = json.loads(invoke("eval", "--ckpt", out / "best.pt", "--json").stdout)
    assert right / len(rows) == pytest.approx(numbers["accuracy"])


def test_predict_skips_and_names_what_it_cannot_read(trained, faces_folder, tmp_path):
    shutil.copy(faces_folder / "aligned/0001_aligned.jpg", tmp_path / "b.jpg")
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    result = invoke("predict", "--ckpt", trained[0] / "best.pt", tmp_path, "--json")
    assert result.exit_code == 1 and f"Warning: skipped {tmp_path}" in result.stderr.replace("cannot identify image file '", "")
    assert [r["image"] for r in json.loads(result.stdout)] == [str(tmp_path / "b.jpg")]
    (tmp_path / "empty").mkdir()
    result = invoke("predict", "--ckpt", trained[0] / "best.pt", tmp_path / "empty")
    assert result.exit_code == 1 and "no images" in result.stderr
    assert "no such file" in invoke("predict", "--ckpt", trained[0] / "best.pt", tmp_path / "gone").stderr


def test_memory_stays_flat_over_predictions(trained, faces_folder):
    from test_train import resident_mb

    sizes = []
    for i in range(8):
        assert invoke("predict", "--ckpt", trained[0] / "best.pt", faces_folder / "aligned").exit_code == 0
        sizes += [resident_mb()] if i in (3, 7) else []
    assert sizes[1] - sizes[0] < 20, sizes
