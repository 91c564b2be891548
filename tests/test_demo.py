"""The demo."""

import numpy as np
from conftest import invoke

from mmlfer_commands import demo


def test_demo_trains_and_says_what_to_type_next(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "DEMO_FACES", 160)
    monkeypatch.setattr(demo, "DEMO", {**demo.DEMO, "epochs": 1, "size": 32})
    result = invoke("demo", "--out", tmp_path / "demo", "--device", "cpu")
    assert result.exit_code == 0, result.output
    for words in ("accuracy of this model", "of always the commonest expression", "of a perfect reader of the AUs",
                  f"Pictures: {tmp_path}/demo/faces/aligned", "With RAF-CE: mmlfer train --data ./rafce"):  # fmt: skip
        assert words in result.output
    again = invoke("demo", "--out", tmp_path / "demo")
    assert again.exit_code == 1 and "holds a run" in again.stderr


def test_perfect_reader_of_distinct_aus_is_always_right():
    table = np.zeros((14, 32))
    table[np.arange(14), np.arange(14)] = 1.0
    y = np.arange(14)
    assert demo.best_by_aus(np.eye(32)[y], y, table) == 1.0
    assert demo.best_by_aus(np.zeros((4, 32)), np.array([3, 3, 3, 5]), table) == 0.75
