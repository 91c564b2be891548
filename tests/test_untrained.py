"""AUs that no training row codes: not trained, in every output; and labels whose images are missing."""

import csv
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import yaml
from conftest import SMALL, invoke, load
from PIL import Image

import mmlfer
from mmlfer_commands import _figures, _labels, serve, synth

CODED = {1: ("train", "val", "test"), 4: ("test",), 12: ("train",), 45: ()}  # the parts in which an AU is coded


def done(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result


def write_rows(folder, rows, header):
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """40 faces of two expressions; AUs in columns, coded in the parts that CODED says."""
    folder, rng, rows = tmp_path_factory.mktemp("untrained") / "own", np.random.default_rng(0), []
    folder.mkdir()
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
        part = ("train", "train", "val", "test")[i % 4]
        rows.append((f"{i}.png", "ab"[i // 4 % 2], part, *((i + au) % 2 if part in parts else "" for au, parts in CODED.items())))
    write_rows(folder, rows, ["image", "expression", "split", *(f"AU{au}" for au in CODED)])
    return folder


@pytest.fixture(scope="module")
def run(own, tmp_path_factory):
    """A run of mtl on it, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "mtl"
    return out, done("train", "--data", own, "--out", out, "--method", "mtl", "--epochs", 1, *SMALL).stdout


def test_train_names_the_aus_that_nothing_trains(run):
    assert "no training row codes AU 4, 45: not trained, left out of every answer" in run[1].splitlines()
    test = json.loads((run[0] / "test.json").read_text())
    assert load(run[0] / "best.pt")["trained_aus"] == load(run[0] / "last.pt")["trained_aus"] == test["trained_aus"] == [1, 12]
    f1 = test["best"]["au_f1"]
    assert f1["1"] is not None and [f1[au] for au in ("4", "12", "45")] == [None] * 3 and test["best"]["au_f1_macro"] == f1["1"]


def test_eval_says_which_aus_are_not_trained(run):
    text = done("eval", "--ckpt", run[0] / "best.pt").stdout
    assert "not trained: AU 4, 45" in text.splitlines()
    assert [line.split()[1] for line in text.splitlines() if line.startswith("AU  ")] == ["1"]
    assert json.loads(done("eval", "--ckpt", run[0] / "best.pt", "--json").stdout)["au_f1"]["4"] is None


def test_predict_answers_nothing_for_them(run, own, tmp_path, monkeypatch):
    """Though the net's outputs for them are high."""
    state = load(run[0] / "best.pt")
    state["net"]["au.bias"] += 1000
    mmlfer.save_checkpoint(state, tmp_path / "best.pt")
    result = done("predict", "--ckpt", tmp_path / "best.pt", own / "0.png", "--json", "--csv", tmp_path / "p.csv")
    (told,), (row,) = json.loads(result.stdout), csv.DictReader((tmp_path / "p.csv").open())
    assert [au["au"] for au in told["aus"]] == [1, 12] and told["p_aus"] == {"1": 1.0, "4": None, "12": 1.0, "45": None}
    assert row["aus"] == "1+12" and [row[f"AU{au}_{kind}"] for au in ("04", "45", "12") for kind in "pc"] == [""] * 4 + ["1.0", "1"]
    drawn = []
    monkeypatch.setattr("mmlfer_commands.gradcam.save_figure", lambda figure, path: (drawn.append(figure), _figures.pyplot().close(figure)))
    done("gradcam", "--ckpt", tmp_path / "best.pt", own / "0.png", "--out", tmp_path / "g.png")
    assert drawn[0].axes[1].get_title().endswith("AUs: 1 12")


def test_export_and_serve_name_the_trained_ones(run, tmp_path):
    done("export", "--ckpt", run[0] / "best.pt", "--out", tmp_path / "m.onnx")
    facts = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(facts["aus"]) == [1, 4, 12, 45] and json.loads(facts["aus_trained"]) == [1, 12]
    model = serve.Model.__new__(serve.Model)
    model.size, model.table, model.accuracy, model.state = 32, [], None, load(run[0] / "best.pt")
    assert model.facts()["aus_trained"] == [1, 12]


@pytest.mark.parametrize("method, stats", [("mtl", "wild"), ("mal", "none of these"), ("mml", "lab"), ("mml", "wild"), ("stl", "wild")])
def test_where_no_row_is_coded_no_au_is_trained(tmp_path, method, stats):
    """Whether the statistics name AUs or RAF-CE's stand in for them."""
    synth.synthesize_csv(tmp_path / "q", 60, "lab", 32, 0, uncoded=1)
    labels = (tmp_path / "q/labels.csv").read_text()
    if stats == "none of these":  # other expressions than Table 1's
        (tmp_path / "q/labels.csv").write_text(labels.replace("happily", "mildly"))
        stats = "wild"
    result = done("train", "--data", tmp_path / "q", "--out", tmp_path / "r", "--method", method, "--stats", stats, "--epochs", 1, *SMALL)
    state = load(tmp_path / "r/best.pt")
    assert state["trained_aus"] == [] and state["aus"]
    line = f"no training row codes AU {', '.join(map(str, state['aus']))}: not trained, left out of every answer"
    assert (line in result.stdout.splitlines()) == (method != "stl")
    (told,) = json.loads(done("predict", "--ckpt", tmp_path / "r/best.pt", tmp_path / "q/aligned/0001_aligned.jpg", "--json").stdout)
    assert told["aus"] is told["p_aus"] is None
    assert set(json.loads((tmp_path / "r/test.json").read_text())["best"]["au_f1"].values()) == {None}


# ---------------------------------------------------------------- labels without their images


@pytest.fixture
def copy(own, tmp_path):
    shutil.copytree(own, tmp_path / "own")
    return tmp_path / "own"


def rows_of(folder):
    with open(folder / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_left_out_is_left_out_before_labels_are_checked(copy, tmp_path):
    """All training images of one expression are gone: then there is nothing to learn it from."""
    for row in rows_of(copy):
        if (row["expression"], row["split"]) == ("b", "train"):
            (copy / row["image"]).unlink()
    result = invoke("train", "--data", copy, "--out", tmp_path / "r", "--method", "stl", "--skip-bad-images", "--epochs", 1, *SMALL)
    number = next(i for i, row in enumerate(rows_of(copy), 2) if row["expression"] == "b" and row["split"] != "train")
    assert result.exit_code == 1 and result.stderr.splitlines()[-1] == (
        f"Error: {copy}/labels.csv:{number}: 'b' has 10 images, none of them to train on; move some to train, or remove its rows")
    assert not (tmp_path / "r").exists()


def test_statistics_and_counts_are_of_the_images_that_remain(copy, tmp_path):
    """Of AU 12 in b's training rows; and what eval describes has lost the same image."""
    rows = [row for row in rows_of(copy) if (row["expression"], row["split"]) == ("b", "train")]
    for row in [row for row in rows if row["AU12"] == "1"][:4]:
        (copy / row["image"]).unlink()
    left = [row for row in rows if (copy / row["image"]).exists()]
    (copy / rows_of(copy)[3]["image"]).unlink()  # a test image
    out = done("train", "--data", copy, "--out", tmp_path / "r", "--method", "am", "--stats", "train", "--stats-least", len(left),
               "--skip-bad-images", "--epochs", 1, *SMALL)
    table = load(tmp_path / "r/best.pt")["table"].numpy()
    share = sum(row["AU12"] == "1" for row in left) / len(left)
    assert table[1, 2] == pytest.approx(share if share >= 0.2 else 0) and share < 0.5
    assert f"  {'b':24}{len(left):7}{5:7}{5:7}" in out.stdout.splitlines() and f"  {'a':24}{10:7}{4:7}{5:7}" in out.stdout.splitlines()
    result = invoke("train", "--data", copy, "--out", tmp_path / "s", "--method", "am", "--stats", "train", "--stats-least", 11,
                    "--skip-bad-images", "--epochs", 1, *SMALL)
    assert result.exit_code == 1 and "no expression has 11 coded training images" in result.stderr
    lines = done("eval", "--ckpt", tmp_path / "r/best.pt", "--skip-bad-images").stdout.splitlines()
    assert f"  {'a':24}{10:7}{4:7}{5:7}" in lines and lines[0].endswith(": 39 images")


@pytest.mark.parametrize("name, there", [("a\\0.png", "a/0.png"), ("A0.JPG", "a0.jpg"), ("a\\B.png", "a/b.PNG"), ("c.png", None),
                                         ("n" * 300 + ".png", None), ("d/" + "n" * 300 + "/x.png", None)])
def test_a_name_that_is_nearly_there_is_told(tmp_path, name, there):
    """And one that is longer than the system allows is one that is not there."""
    (tmp_path / "a").mkdir()
    if there:
        Image.new("RGB", (32, 32)).save(tmp_path / there, "PNG")
    (tmp_path / "labels.csv").write_text(f"image,expression,split,aus\n{name},x,train,1\n")
    with pytest.raises(mmlfer.InputError) as caught:
        mmlfer.load_images(_labels.load_faces(tmp_path), tmp_path, 32)
    assert f"cannot be read: {name} is not found below {tmp_path}{f', but {there} is' if there else ''}. Images" in str(caught.value)
    assert _labels.images_of(tmp_path) == []


def test_long_names_are_left_out_if_asked(copy, tmp_path):
    text = (copy / "labels.csv").read_text()
    (copy / "labels.csv").write_text(text + "n" * 300 + ".png,a,train,,,,\n")
    result = invoke("train", "--data", copy, "--out", tmp_path / "r", "--method", "stl", "--epochs", 1, *SMALL)
    assert result.exit_code == 1 and "1 of 41 images cannot be read: nnn" in result.stderr
    assert done("train", "--data", copy, "--out", tmp_path / "r", "--method", "stl", "--skip-bad-images", "--epochs", 1, *SMALL)


# ---------------------------------------------------------------- the statistics do not change the data


def test_runs_with_other_statistics_are_of_the_same_data(own, tmp_path):
    """In another order, with an expression more, and without statistics: one digest, one table."""
    one = {"a": {1: 0.5, 12: 0.4}, "b": {12: 0.7}}
    files = {"plain": one, "reversed": dict([*one.items()][::-1]), "more": {"c": {4: 1.0}, **one, "d": {}}}
    for name, rows in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(rows, sort_keys=False))
        method = "am" if name != "reversed" else "mml"
        done("train", "--data", own, "--out", tmp_path / "runs" / name, "--method", method, "--stats", tmp_path / f"{name}.yaml",
             "--seed", len(name), "--epochs", 1, *SMALL)
    tests = [json.loads((tmp_path / "runs" / name / "test.json").read_text()) for name in files]
    assert len({test["data_sha256"] for test in tests}) == len({test["table_sha256"] for test in tests}) == 1
    assert [test["emotions"] for test in tests] == [["a", "b"]] * 3
    text = done("table", tmp_path / "runs", "--out", "-").stdout
    assert [line.split("|")[1:3] for line in text.split("## Table 3")[1].splitlines()[4:6]] == [[" am more.yaml ", " 2 "], [" mml reversed.yaml ", " 1 "]]
    mmlfer.tell_once.cache_clear()
    result = done("stats", "--data", own, "--against", tmp_path / "more.yaml")
    assert "left out, not in the labels: expression c, d" in result.stderr and "| a*" in result.stdout


def test_uncoded_rows_have_one_digest_whatever_the_statistics_name(tmp_path):
    done("synth", tmp_path / "q", "--n", 60, "--size", 32, "--form", "csv", "--uncoded", 1)
    for stats in ("lab", "wild"):
        done("train", "--data", tmp_path / "q", "--out", tmp_path / "runs" / stats, "--method", "am", "--stats", stats, "--epochs", 1, *SMALL)
    states = [load(tmp_path / "runs" / stats / "best.pt") for stats in ("lab", "wild")]
    assert states[0]["data_sha256"] == states[1]["data_sha256"]
    done("table", tmp_path / "runs", "--out", "-")
    assert done("search", tmp_path / "runs", "stats").stdout.startswith("--stats ")
    result = done("stats", "--data", tmp_path / "q", "--against", "wild")
    assert "| AU 12 |" in result.stdout and "nan" not in result.output.lower()
