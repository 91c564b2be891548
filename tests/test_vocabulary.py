"""Your own expressions and AUs, through every command; and RAF-CE's labels in both layouts give the same numbers."""

import csv
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from conftest import invoke
from PIL import Image
from reference import AUS, EMOTIONS

import mmlfer
from mmlfer_commands import _figures, _labels, _stats

NAMES, NUMBERS = ("calm: no AU", "joy, loud", "no"), (1, 4, 12, 13, 45)  # "no" is false in YAML
SHOWN = {"calm: no AU": {}, "no": {1: 0.8, 4: 0.7}, "joy, loud": {12: 0.9, 45: 0.5, 4: 0.3}}
TRAIN = ("--size", 32, "--arch", "resnet18", "--batch-size", 8, "--weights", "none", "--device", "cpu", "--epochs", 1)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """60 faces of three expressions in folders with the same file names, and a labels.csv above them; 2 of every 7
    rows and one more are not coded."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(1)
    rows = []
    for i in range(60):
        name, place = NAMES[i % 3], f"{'ab'[i % 2]}/{i // 2:03d}.png"
        (folder / place).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / place)
        aus = "+".join(str(au) for au in NUMBERS if rng.random() < SHOWN[name].get(au, 0))
        rows.append((place, name, ("train", "val", "test")[i % 5 % 3], "?" if i % 7 in (2, 4) or i == 10 else aus))
    rows[0] = (*rows[0][:3], "13")
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "expression", "split", "aus"), *rows])
    return folder


@pytest.fixture(scope="module")
def rows(own):
    """labels.csv's rows by image, the AUs as a set, or None where they are not coded."""
    with open(own / "labels.csv", newline="") as file:
        return {row["image"]: {**row, "aus": None if row["aus"] == "?" else {int(au) for au in row["aus"].split("+") if au}}
                for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def run(own, tmp_path_factory):
    """A run of one epoch of mml with --stats train: its folder, and what was printed."""
    out = tmp_path_factory.mktemp("own-runs") / "mml"
    result = invoke("train", "--data", own, "--out", out, "--stats", "train", "--stats-least", 5, "--hypergrad", "jvp", *TRAIN)
    assert result.exit_code == 0, result.output
    return out, result.output


def load(path):
    return torch.load(path, weights_only=True)


def naive_table(rows, least=5):
    """p(AU | expression) of coded training rows, 0 below 20 % or where there are fewer than `least`."""
    table = []
    for name in NAMES:
        coded = [row["aus"] for row in rows.values() if (row["expression"], row["split"]) == (name, "train") and row["aus"] is not None]
        share = [sum(au in aus for aus in coded) / len(coded) for au in NUMBERS]
        table.append([p if p >= 0.2 and len(coded) >= least else 0 for p in share])
    return np.array(table, np.float32)


def test_the_vocabulary_and_the_statistics_of_the_training_rows_are_in_the_checkpoint(run, rows):
    state = load(run[0] / "best.pt")
    assert (state["emotions"], state["aus"]) == (list(NAMES), list(NUMBERS))
    assert state["net"]["fe.weight"].shape[0] == 3 and state["net"]["au.weight"].shape[0] == 5
    assert (state["table"].numpy() == naive_table(rows)).all() and not state["table"][0].any() and state["table"][1:].any(1).all()
    lines = run[1].splitlines()
    assert "without AUs of 20 % or more, left out of L^AM: calm: no AU" in lines
    active = [row["aus"] for row in rows.values() if row["aus"] is not None]
    mean = sum(map(len, active)) / len(active)
    assert f"  {active.count(set())} rows without AUs, {mean:.2f} active AUs per face of {len(active)} that are coded" in lines
    assert "RAF-CE's own counts" not in run[1]


def test_too_few_coded_rows_leave_an_expression_out(own, rows):
    """--stats-least may be as large as an expression's number of coded rows; above all of these, none is left."""
    faces = _labels.load_faces(own)
    n = {name: sum((r["expression"], r["split"]) == (name, "train") and r["aus"] is not None for r in rows.values()) for name in NAMES}
    _, table = _stats.find_table("train", n["no"], faces, own)
    assert table[2].any() and table.astype(np.float32).tolist() == naive_table(rows, n["no"]).tolist()
    with pytest.raises(mmlfer.InputError) as caught:
        _stats.find_table("train", max(n.values()) + 1, faces, own)
    assert str(caught.value) == (f"statistics train: no expression has {max(n.values()) + 1} coded training images in {own}; give another "
                                 "--stats, or --stats-least with train")
    lines = [*_stats.left_out("train", n["no"], faces, table)]
    fewer = [name for name in NAMES if n[name] < n["no"]]
    assert fewer and lines[0] == f"with fewer than {n['no']} coded training images, left out of L^AM: {', '.join(fewer)}"


def test_au_f1_counts_coded_rows_alone(run, own, rows):
    state, test = load(run[0] / "best.pt"), json.loads((run[0] / "test.json").read_text())
    assert (test["emotions"], test["aus"], test["rafce"]) == (list(NAMES), list(NUMBERS), False)
    net = mmlfer.make_base_net("resnet18", vocabulary=mmlfer.Vocabulary(NAMES, NUMBERS))
    net.load_state_dict(state["net"])
    faces = mmlfer.load_images(_labels.load_faces(own).of("test"), own, 32)
    with torch.no_grad():
        active = net.eval()(faces.images)[2].numpy() > 0
    for j, au in enumerate(NUMBERS):
        of = [(au in rows[name]["aus"], bool(active[i, j])) for i, name in enumerate(test["names"]) if rows[name]["aus"] is not None]
        both, either = sum(t and a for t, a in of), sum(t + a for t, a in of)
        assert test["best"]["au_f1"][str(au)] == (pytest.approx(2 * both / either) if either else None)
    numbers = mmlfer.au_metrics(np.array([[1, -1], [-1, 0], [0, -1]]), np.array([[1, 1], [1, 1], [1, 1]], bool), (4, 12))
    assert numbers["au_f1"] == {"4": pytest.approx(2 / 3), "12": 0}


def test_every_command_takes_the_names_from_the_checkpoint(run, own, tmp_path, monkeypatch):
    out = run[0]
    text = invoke("eval", "--ckpt", out / "best.pt").stdout
    for name in NAMES:
        assert sum(line.strip().startswith(name) for line in text.splitlines()) == 2  # images by part; rates
    images = sorted((own / "a").iterdir())[:3]
    result = invoke("predict", "--ckpt", out / "best.pt", *images, "--json", "--top", 7, "--csv", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output
    for told in json.loads(result.stdout):
        assert sorted(e["name"] for e in told["expressions"]) == sorted(told["p_expressions"]) == sorted(NAMES)
        assert list(told["p_aus"]) == [str(au) for au in NUMBERS]
    header = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert "expression_3" in header and "expression_4" not in header and "AU45_p" in header
    drawn = []
    monkeypatch.setattr("mmlfer_commands.plot.save_figure", lambda figure, path: (drawn.append(figure), _figures.pyplot().close(figure)))
    monkeypatch.setattr("mmlfer_commands.gradcam.save_figure", lambda figure, path: (drawn.append(figure), _figures.pyplot().close(figure)))
    assert invoke("plot", out).exit_code == 0
    assert [label.get_text() for label in drawn[1].axes[0].get_xticklabels()] == list(NAMES)
    assert invoke("gradcam", "--ckpt", out / "best.pt", *images, "--out", tmp_path / "g.png").exit_code == 0
    titles = [axis.get_title().replace("\n", " ") for axis in drawn[2].axes]
    assert titles[::2] == [f"{path.name} true: {NAMES[2 * int(path.stem) % 3]}" for path in images]
    assert all(any(name in title for name in NAMES) for title in titles[1::2])
    assert invoke("export", "--ckpt", out / "best.pt", "--out", tmp_path / "m.onnx").exit_code == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    facts = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    for image, told in zip(images, json.loads(result.stdout)):
        p, p_au = session.run(None, {"image": mmlfer.read_image(image, 32).transpose(2, 0, 1)[None]})
        assert facts["expressions"][p[0].argmax()] == told["expressions"][0]["name"] and p_au.shape == (1, 5)
        assert {au["au"] for au in told["aus"]} <= set(NUMBERS)
    assert (facts["expressions"], facts["aus"]) == (list(NAMES), list(NUMBERS)) and facts["au_names"][3:] == ["sharp lip puller", "blink"]
    text = invoke("table", out.parent, "--out", tmp_path / "results.md").stdout
    assert [line.split("|")[1].strip() for line in text.split("## Table 2")[1].splitlines()[4:7]] == list(NAMES)
    assert "mml train" in text


def test_stats_writes_a_file_that_train_takes_in_the_labels_order(own, rows, run, tmp_path, capsys):
    assert invoke("stats", "--data", own, "--split", "train", "--out", tmp_path / "s.yaml").exit_code == 0
    content = yaml.safe_load((tmp_path / "s.yaml").read_text())
    assert list(content) == list(NAMES) and content[NAMES[0]] == {}
    table = [[content[name].get(au, 0) for au in NUMBERS] for name in NAMES]
    assert np.allclose(table, naive_table(rows, 1), atol=1e-4)
    parts = (tmp_path / "s.yaml").read_text().splitlines()
    (tmp_path / "s.yaml").write_text("\n".join([*parts[:1:-1], "unseen: {4: 0.5, 20: 0.9}"]))
    faces, table = _stats.find_table(str(tmp_path / "s.yaml"), 10, _labels.load_faces(own), own)
    assert faces.vocabulary == mmlfer.Vocabulary(NAMES, NUMBERS) and faces.sha256() == _labels.load_faces(own).sha256()
    assert np.allclose(table, naive_table(rows, 1), atol=1e-4)
    assert capsys.readouterr().err == (f"{tmp_path}/s.yaml: left out, not in the labels: AU 20\n{tmp_path}/s.yaml: left out, not in "
                                       "the labels: expression unseen\n")
    assert [faces.vocabulary.emotions[k] for k in faces.y_emo] == [row["expression"] for row in rows.values()]
    (tmp_path / "s.yaml").write_text("no: {4: 0.5}\n".replace("no", '"no"'))
    with pytest.raises(mmlfer.InputError) as caught:
        _stats.find_table(str(tmp_path / "s.yaml"), 10, _labels.load_faces(own), own)
    assert str(caught.value) == (f"{tmp_path}/s.yaml: no row for calm: no AU, joy, loud, as the labels have; add it, or {{}} in its place "
                                 "to leave an expression out of L^AM")


def test_a_finished_epoch_goes_on_with_the_same_statistics(run, tmp_path):
    out = tmp_path / "mml"
    shutil.copytree(run[0], out)
    (out / "test.json").unlink()
    result = invoke("train", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert (out / "test.json").read_text() == (run[0] / "test.json").read_text()


@pytest.mark.parametrize("name", ["wild", "lab"])
def test_table_1_is_refused_for_other_expressions(own, tmp_path, name):
    result = invoke("train", "--data", own, "--out", tmp_path / "run", "--stats", name, *TRAIN)
    assert result.exit_code == 1 and result.stderr == (
        f"Error: statistics {name}: for RAF-CE, without 'calm: no AU'; --stats train counts your training rows, "
        "`mmlfer stats --out` writes such a file\n")


def test_table_1_is_taken_by_name_for_some_of_rafces_expressions(tmp_path):
    (tmp_path / "labels.csv").write_text("image,expression,AU25,AU12,AU45\n1.jpg,sadly angry,1,0,0\n2.jpg,happily sad,0,1,1\n")
    faces, table = _stats.find_table("wild", 10, _labels.load_faces(tmp_path), tmp_path)
    assert faces.vocabulary == mmlfer.Vocabulary(("sadly angry", "happily sad"), (12, 25, 45))
    wild = yaml.safe_load((mmlfer.HERE / "stats/wild.yaml").read_text())
    assert table.tolist() == [[wild[name].get(au, 0) for au in (12, 25, 45)] for name in ("sadly angry", "happily sad")]


@pytest.mark.parametrize("stats", ["wild", "train"])
@pytest.mark.parametrize("coded", [True, False])
def test_methods_that_read_no_statistics_need_none(own, tmp_path, stats, coded):
    """Here Table 1 is of other expressions, and too few rows are coded to count. Other methods still need statistics."""
    shutil.copytree(own, tmp_path / "own")
    if not coded:
        text = "\n".join(",".join([*line.split(",")[:-1], "?"]) for line in (own / "labels.csv").read_text().splitlines()[1:])
        (tmp_path / "own/labels.csv").write_text(f"image,expression,split,aus\n{text}\n")
    options = ("--data", tmp_path / "own", "--stats", stats, "--stats-least", 1000, *TRAIN)
    result = invoke("train", *options, "--method", "mal", "--out", tmp_path / "run")
    assert result.exit_code == 0 and "left out of L^AM" not in result.stdout, result.output
    state = load(tmp_path / "run/best.pt")
    assert (state["emotions"], state["aus"]) == (list(NAMES), list(NUMBERS if coded else AUS))
    [row] = csv.DictReader((tmp_path / "run/log.csv").open())
    assert abs(float(row["train_loss_am"])) < 1e-5 and (float(row["train_loss_au"]) > 0) == coded
    assert invoke("eval", "--ckpt", tmp_path / "run/best.pt").exit_code == 0
    for method, given in (("mml", stats), ("mal", "none.yaml")):
        result = invoke("train", *options, "--method", method, "--stats", given, "--out", tmp_path / "other")
        assert result.exit_code == 1 and ("statistics" if given == stats else "none.yaml: ") in result.stderr.splitlines()[-1]


def test_where_no_aus_are_coded_the_statistics_name_them(tmp_path):
    """Then L^AM is trained without AU labels."""
    (tmp_path / "labels.csv").write_text("image,expression,aus\n1.jpg,sadly angry,?\n2.jpg,happily sad,?\n")
    faces, table = _stats.find_table("lab", 10, _labels.load_faces(tmp_path), tmp_path)
    lab = yaml.safe_load((mmlfer.HERE / "stats/lab.yaml").read_text())
    assert faces.vocabulary.aus == tuple(sorted({*lab["sadly angry"], *lab["happily sad"]})) and table.any(1).all()
    assert (faces.y_au == -1).all() and faces.y_au.shape == (2, len(faces.vocabulary.aus))
    with pytest.raises(mmlfer.InputError, match="statistics train: no training row of .* has both an expression and coded AUs; give a file"):
        _stats.find_table("train", 1, _labels.load_faces(tmp_path), tmp_path)


def test_runs_of_two_vocabularies_are_not_compared(run, trained, tmp_path):
    for i, folder in enumerate((run[0], trained[0])):
        (tmp_path / str(i)).mkdir()
        shutil.copy(folder / "test.json", tmp_path / str(i))
    result = invoke("table", tmp_path, "--out", tmp_path / "results.md")
    assert result.exit_code == 1 and result.stderr == (
        f"Error: {tmp_path}/1/test.json: other expressions, or in another order, than {tmp_path}/0/test.json; one table takes one "
        "vocabulary, name the folder of its runs alone\n")


def test_a_checkpoint_of_other_expressions_is_not_evaluated(run, faces_folder):
    result = invoke("eval", "--ckpt", run[0] / "best.pt", "--data", faces_folder)
    assert result.exit_code == 1 and "is not among the expressions to tell apart: calm: no AU, joy, loud, no; " in result.stderr


# ---------------------------------------------------------------- the same numbers


@pytest.fixture(scope="module")
def two_layouts(tmp_path_factory):
    """28 images of noise in two layouts: RAF-CE's files, and the same rows in labels.csv."""
    folder, rng = tmp_path_factory.mktemp("layouts"), np.random.default_rng(2)
    files, rows = [[], [], []], ["image,expression,split,aus"]
    for i in range(28):
        name, split = f"{i:04d}.png", (0, 0, 2, 0, 1)[i % 5]
        aus = "+".join(map(str, rng.choice(AUS, rng.integers(0, 6), replace=False)))
        for layout in ("rafce", "csv"):
            (folder / layout).mkdir(exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)).save(folder / layout / name)
        for lines, value in zip(files, (i % 14, split, aus or "null")):
            lines.append(f"{name} {value}\n")
        rows.append(f"{name},{EMOTIONS[i % 14]},{('train', 'test', 'val')[split]},{aus}")
    for file, lines in zip(mmlfer.LABEL_FILES, files):
        (folder / "rafce" / file).write_text("".join(lines))
    (folder / "csv/labels.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("options", [("--method", "mml"), ("--method", "am", "--stats", "train", "--stats-least", 1)])
def test_both_layouts_of_the_same_rows_give_the_same_numbers(two_layouts, tmp_path, options):
    logs, tests = [], []
    for layout in ("rafce", "csv"):
        result = invoke("train", "--data", two_layouts / layout, "--out", tmp_path / layout, *TRAIN, "--batch-size", 4, *options)
        assert result.exit_code == 0, result.output
        with open(tmp_path / layout / "log.csv", newline="") as file:
            logs.append([{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in csv.DictReader(file)])
        test = json.loads((tmp_path / layout / "test.json").read_text())
        assert test.pop("data") == test["options"].pop("data") == str(two_layouts / layout)
        tests.append(test)
    assert logs[0] == logs[1] and tests[0] == tests[1]
