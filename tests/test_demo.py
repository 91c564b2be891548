"""The demo."""

import json
import re

import numpy as np
import pytest
import yaml
from conftest import ROOT, invoke
from reference import AUS, EMOTIONS

from mmlfer_commands import demo


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(demo, "DEMO_FACES", 100)
    monkeypatch.setattr(demo, "DEMO", {**demo.DEMO, "epochs": 1, "size": 32, "method": "stl"})


def test_demo_trains_and_says_what_to_type_next(tmp_path, monkeypatch):
    out, best, read = tmp_path / "demo", demo.best_by_aus, []  # the perfect reader's faces and accuracy
    monkeypatch.setattr(demo, "best_by_aus", lambda *a: read.append((a[1].tolist(), best(*a), a[2])) or read[0][1])
    draw, drawn = demo.synthesize, []
    monkeypatch.setattr(demo, "synthesize", lambda *a: drawn.append(a) or draw(*a))
    (out / "faces/.part/aligned").mkdir(parents=True)  # a demo killed while it drew
    (out / "faces/.part/aligned/0001_aligned.jpg").touch()
    result = invoke("demo", "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    said = {text: float(number) for text, number in re.findall(r"^  (of .*?|accuracy .*?)  +([0-9.]+) %$", result.output, re.M)}
    test = json.loads((out / "test.json").read_text())
    assert said["accuracy of this model"] == round(100 * test["best"]["accuracy"], 2)
    assert said["of always the commonest expression"] == round(100 * max(map(test["truth"].count, range(14))) / len(test["truth"]), 2)
    assert said["of a perfect reader of the AUs"] == round(100 * read[0][1], 2) > 80 and read[0][0] == test["truth"]
    assert drawn == [(out / "faces", 100, "lab", None, 32, 0)]
    lab = yaml.safe_load((ROOT / "stats/lab.yaml").read_text())
    assert read[0][2].tolist() == [[lab[e].get(au, 0) for au in AUS] for e in EMOTIONS]
    for words in (f"On these {len(test['truth'])} stand-in test faces", f"Pictures: {out}/faces/aligned",
                  "With RAF-CE: mmlfer train --data ./rafce"):
        assert words in result.output
    assert len(list((out / "faces/aligned").iterdir())) == 100
    again = invoke("demo", "--out", out)
    assert again.exit_code == 1 and again.stderr == (
        f"Error: {out}: holds a run; give another --out, or go on with it: mmlfer train --out {out} --resume\n")
    assert invoke(*again.stderr.split("mmlfer ")[1].split()).stdout == f"{out}: complete, nothing to do\n"


def test_demo_stopped_after_drawing_goes_on_with_its_faces(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "fit", stop)
    for _ in range(2):
        result = invoke("demo", "--out", tmp_path / "demo")
        assert (result.exit_code, result.stderr) == (130, "stopped\n")
        assert len(list((tmp_path / "demo/faces/aligned").iterdir())) == 100
        monkeypatch.setattr(demo, "synthesize", None)  # not called again


def test_perfect_reader_of_distinct_aus_is_always_right():
    table = np.zeros((14, 32))
    table[np.arange(14), np.arange(14)] = 1.0
    y = np.arange(14)
    assert demo.best_by_aus(np.eye(32)[y], y, table) == 1.0
    assert demo.best_by_aus(np.zeros((4, 32)), np.array([3, 3, 3, 5]), table) == 0.75


def test_perfect_reader_matches_bayes_rule_row_by_row():
    rng = np.random.default_rng(0)
    table, y_emo = rng.uniform(0.05, 0.95, (14, 32)), rng.integers(0, 14, 300)
    y_au = (rng.random((300, 32)) < table[y_emo]).astype(np.uint8)
    right = 0
    for aus, k in zip(y_au, y_emo):
        scores = [np.prod(np.where(aus == 1, p, 1 - p)) * (y_emo == j).mean() for j, p in enumerate(table)]
        right += scores.index(max(scores)) == k
    assert demo.best_by_aus(y_au, y_emo, table) == pytest.approx(right / 300)
