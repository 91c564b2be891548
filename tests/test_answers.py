"""Every probability in every table."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import invoke

from mmlfer import InputError
from mmlfer_commands import _answers, predict, video

STATE = {"emotions": ["happily sad", "awe", "sadly angry"], "aus": [4, 12], "trained_aus": [4, 12]}


@pytest.fixture(scope="module")
def predicted(sketch, faces_folder, tmp_path_factory):
    """The CSV, JSONL and JSON of two faces, and of the same without trained AUs."""
    out = tmp_path_factory.mktemp("answers")
    state = torch.load(sketch, weights_only=True)
    torch.save({**state, "trained_aus": []}, out / "stl.pt")
    faces = sorted((faces_folder / "aligned").iterdir())[:2]
    told = {}
    for name, ckpt in (("mtl", sketch), ("stl", out / "stl.pt")):
        result = invoke("predict", "--ckpt", ckpt, *faces, "--json", "--csv", out / "p.csv", "--jsonl", out / "p.jsonl")
        assert result.exit_code == 0, result.output
        lines = [json.loads(line) for line in (out / "p.jsonl").read_text().splitlines()]
        assert lines == json.loads(result.stdout)
        told[name] = list(csv.DictReader((out / "p.csv").open())), lines
    return told, state


def test_the_tables_of_predict_hold_every_probability(predicted):
    (rows, lines), state = predicted[0]["mtl"], predicted[1]
    expressions = ["p_" + "_".join(name.split()) for name in state["emotions"]]
    aus = [f"AU{str(au).rjust(2, '0')}_{end}" for au in state["aus"] for end in ("p", "c")]
    assert list(rows[0]) == ["image", *(f"{c}_{i}" for i in (1, 2, 3) for c in ("expression", "p")), "aus", *expressions, *aus]
    assert expressions[0] == "p_happily_surprised" and aus[:2] == ["AU01_p", "AU01_c"]
    for row, line in zip(rows, lines, strict=True):
        p = [float(row[column]) for column in expressions]
        assert sum(p) == pytest.approx(1, abs=1e-5) and p == pytest.approx(list(line["p_expressions"].values()), abs=1e-6)
        assert [state["emotions"][k] for k in sorted(range(14), key=lambda k: -p[k])[:3]] == [row[f"expression_{i}"] for i in (1, 2, 3)]
        present = [au for au in state["aus"] if float(row[f"AU{au:02}_p"]) > 0.5]
        assert present == [au for au in state["aus"] if row[f"AU{au:02}_c"] == "1"] == [int(au) for au in row["aus"].split("+")]
        assert {row[column] for column in aus[1::2]} == {"0", "1"}
        assert [float(row[column]) for column in aus[::2]] == pytest.approx(list(line["p_aus"].values()), abs=1e-6)
        assert list(line["p_expressions"]) == state["emotions"] and list(line["p_aus"]) == [str(au) for au in state["aus"]]
        assert {a["au"]: a["p"] for a in line["aus"]} == {int(au): p for au, p in line["p_aus"].items() if p > 0.5}


def test_a_table_names_no_more_expressions_than_there_are(sketch, faces_folder):
    face = next((faces_folder / "aligned").iterdir())
    header = invoke("predict", "--ckpt", sketch, face, "--top", 20, "--csv", "-").stdout.split("\n")[0].split(",")
    assert "expression_14" in header and "expression_15" not in header


def test_aus_that_are_not_trained_have_empty_columns(predicted):
    (rows, lines), (trained, _) = predicted[0]["stl"], predicted[0]["mtl"]
    assert list(rows[0]) == list(trained[0])
    for row, line, other in zip(rows, lines, trained, strict=True):
        assert {value for column, value in row.items() if column.startswith("AU")} == {""} and line["p_aus"] is line["aus"] is None
        assert row["p_sadly_angry"] == other["p_sadly_angry"] != ""


def test_columns_are_of_the_checkpoints_own_expressions_and_aus():
    assert _answers.probability_columns(STATE) == ["p_happily_sad", "p_awe", "p_sadly_angry", "AU04_p", "AU04_c", "AU12_p", "AU12_c"]
    told = _answers.answer(STATE, np.array([0.2, 0.5, 0.3]), np.array([0.5, 0.7]), 2)
    assert told == {"expressions": [{"name": "awe", "p": 0.5}, {"name": "sadly angry", "p": 0.3}],
                    "aus": [{"au": 12, "name": "lip corner puller", "p": 0.7}],
                    "p_expressions": {"happily sad": 0.2, "awe": 0.5, "sadly angry": 0.3}, "p_aus": {"4": 0.5, "12": 0.7}}
    row = _answers.probability_row(told)
    assert list(row) == _answers.probability_columns(STATE) and list(row.values()) == [0.2, 0.5, 0.3, 0.5, 0, 0.7, 1]


def test_two_columns_of_one_name_are_refused():
    _answers.check_columns(["image", "p_1"])
    state = {**STATE, "emotions": ["1", "class 1", "a b"]}
    with pytest.raises(InputError, match="^2 columns of the table would be called p_class_1; train with expressions of other "):
        _answers.check_columns(_answers.probability_columns(state))


@pytest.mark.parametrize("names, columns", [
    (("0", "1", "2"), ["p_class_0", "p_class_1", "p_class_2"]), (("-1", "1", "1-2", "12"), ["p_-1", "p_class_1", "p_1-2", "p_class_12"]),
    (("smooth", "a smooth", "a", "smoothly"), ["p_class_smooth", "p_class_a_smooth", "p_a", "p_smoothly"])])
@pytest.mark.parametrize("smooth", [None, 1.0])
def test_expressions_that_are_called_as_other_columns_have_columns_of_their_own(names, columns, smooth):
    state = {**STATE, "emotions": list(names)}
    assert _answers.probability_columns(state)[: len(names)] == columns
    for table in (predict.table_columns(state, 3, photos=True), video.columns_of(state, smooth)):
        assert len({*table}) == len(table) and {*columns} < {*table}
