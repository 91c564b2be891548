"""Cross-validation: `train --folds K --fold I`, and the folds of one seed as one run of `table`."""

import collections
import csv
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from conftest import SMALL, assert_same_run, end_at_the_third_step, exported, invoke, load
from PIL import Image

import mmlfer
from mmlfer_commands import _folds, _labels, _results, table
from mmlfer_commands.train import resumed_config

STATS = {"joy": {6: 0.8, 12: 0.95, 25: 0.6}, "rage": {4: 0.95, 5: 0.6, 23: 0.7}, "sulk": {15: 0.8, 4: 0.4, 1: 0.5}}
PEOPLE = [name for name, n in zip("abcdefghij", (14, 12, 10, 9, 8, 7, 6, 4, 3, 2)) for _ in range(n)]  # of 75 images
HARD = ("--stats", "train", "--stats-least", 2, "--epochs", 1, *SMALL)


def rows_of(folder):
    with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(folder, rows):
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def done(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result


def refusal(*args):
    result = invoke(*args)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    return result.stderr


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """80 drawn faces of three expressions: 75 of ten people, who have two of them each, and 5 of persons of their own.
    The partition that the column split has puts each person in all parts; two have no expression."""
    folder = tmp_path_factory.mktemp("folds")
    (folder / "stats.yaml").write_text(yaml.safe_dump(STATS))
    done("synth", folder / "faces", "--form", "csv", "--stats", folder / "stats.yaml", "--n", 80, "--uncoded", 0.2, "--size", 32)
    rows = rows_of(folder / "faces")
    rng = np.random.default_rng(3)
    people, coded = [PEOPLE[i] if i < 75 else "" for i in rng.permutation(80)], 0
    for i, (row, person) in enumerate(zip(rows, people)):
        row |= {"split": ("train", "val", "test")[i % 3], "person": person}
        coded += row["aus"] not in ("", "?")
        if coded in (20, 40) and row["aus"] not in ("", "?"):
            row["expression"] = "?"
    return write_rows(folder / "faces", rows)


@pytest.fixture(scope="module")
def runs(faces, tmp_path_factory):
    """Three folds of stl and of mml, of seed 0, and of mml of seed 1; each in a folder METHOD-SEED-FOLD."""
    out = tmp_path_factory.mktemp("runs") / "runs"
    for (method, seed), fold in itertools.product((("stl", 0), ("mml", 0), ("mml", 1)), (1, 2, 3)):
        done("train", "--data", faces, "--out", out / f"{method}-{seed}-{fold}", "--method", method, "--folds", 3, "--fold", fold,
             "--seed", seed, *HARD)
    return out


def contents(runs, method, seed, folds=(1, 2, 3)):
    """The content of test.json of each fold."""
    return [json.loads((runs / f"{method}-{seed}-{fold}/test.json").read_text()) for fold in folds]


# ---------------------------------------------------------------- which image is in which fold


def test_every_image_is_tested_once_by_a_net_that_never_saw_its_person(faces, runs):
    rows = {row["image"]: row for row in rows_of(faces)}
    tested = [name for test in contents(runs, "mml", 0) for name in test["names"]]
    assert sorted(tested) == sorted(name for name, row in rows.items() if row["expression"] != "?")
    for fold in (1, 2, 3):
        parts = _folds.load_fold(faces, {"folds": "3", "fold": fold})
        seen = {name: {rows[i]["person"] or i for i in parts.of(name).names} for name in ("train", "val", "test")}
        assert not seen["test"] & seen["train"] and not seen["test"] & seen["val"] and not seen["val"] & seen["train"]
        state = load(runs / f"mml-0-{fold}/best.pt")
        assert state["train_names"] == parts.of("train").names
        assert contents(runs, "mml", 0, [fold])[0]["names"] == parts.of("test").named().names
        after = _folds.load_fold(faces, {"folds": "3", "fold": fold % 3 + 1})
        assert parts.of("val").names == after.of("test").names  # the next part
    assert min(np.bincount(parts.fold)[1:]) >= 22 and max(np.bincount(parts.fold)) <= 31


def test_folds_of_people_are_alike_in_size_and_expressions():
    """People of one expression each, as clips are: greedily by expression alone the first folds would get most."""
    y_emo = np.repeat(np.arange(43), 14)
    people = [f"{i // 2}" for i in range(len(y_emo))]
    parts = _folds.drawn_folds(y_emo, people, 5)
    sizes = np.bincount(parts)[1:]
    assert sizes.max() - sizes.min() <= 2
    of_each = np.array([[np.sum((parts == p) & (y_emo == k)) for k in range(43)] for p in range(1, 6)])
    assert of_each.max() <= 4 and of_each.min() >= 2


@pytest.mark.parametrize("k", [3, 4, 10])
def test_without_people_folds_are_dealt_by_expression(k):
    y_emo = np.random.default_rng(k).choice([-1, 0, 1, 2, 3], 157, p=[0.05, 0.1, 0.2, 0.25, 0.4])
    names = [f"{i}.jpg" for i in range(157)]
    faces = mmlfer.Faces(names, y_emo, np.zeros(157, int), np.zeros((157, 32), np.int8))
    parts = _folds.find_folds(faces, str(k), "here")
    assert np.ptp(np.bincount(parts, minlength=k + 1)[1:]) <= 2 and {*parts} == {*range(1, k + 1)}
    assert all(np.ptp([np.sum((parts == p) & (y_emo == e)) for p in range(1, k + 1)]) <= 1 for e in range(-1, 4))
    assert (parts == _folds.find_folds(faces, str(k), "here")).all() and np.abs(np.diff(parts[y_emo == 3])).max() > 1  # at random, the same again


def test_one_person_is_left_out_at_a_time(faces):
    names, tested = {row["person"] or row["image"] for row in rows_of(faces)}, []
    people = [_folds.load_fold(faces, {"folds": "persons", "fold": i}).of("test").columns["person"] for i in range(1, 16)]
    assert all(len({*one}) == 1 for one in people) and len({one[0] for one in people}) == 15 == len(names)
    tested = [one[0] for one in people if one[0] in "abcdefghij"]
    assert tested == sorted(tested)


def test_a_column_fold_is_taken_as_it_is(faces, tmp_path):
    """In the order of its numbers, not of its texts; `train` is in no fold; its capitals do not matter, nor does split."""
    rows = [{**row, "Fold": ("2", "10", "train", "1")[len(row["person"]) and ord(row["person"]) % 4]} for row in rows_of(faces)]
    write_rows(tmp_path, rows)
    for fold, name in enumerate(("1", "2", "10"), 1):
        for folds in (None, "3"):
            parts = _folds.load_fold(tmp_path, {"folds": folds, "fold": fold})
            assert parts.of("test").names == [row["image"] for row in rows if row["Fold"] == name]
            assert parts.of("val").names == [row["image"] for row in rows if row["Fold"] == ("1", "2", "10")[fold % 3]]
            assert {row["image"] for row in rows if row["Fold"] == "train"} < {*parts.of("train").names}


def changed(rows, **columns):
    """The rows with other columns, each a function of the number and the row; None removes one."""
    rows = [{**row, **{name: make(i, row) for name, make in columns.items() if make}} for i, row in enumerate(rows)]
    return [{name: cell for name, cell in row.items() if columns.get(name, 1)} for row in rows]


NUMBER = ("{}: --folds takes 3 to 15, the number of its persons, or persons, by its column person; with a column fold, it may be left "
          "out")
WHICH = "{}: %s folds; it takes three or more, and --fold I, 1 to %s, says which to test"
REFUSED = {  # columns, options, what is said
    "two": ({}, ("--folds", 2, "--fold", 1), NUMBER),
    "more than people": ({}, ("--folds", 16, "--fold", 1), NUMBER),
    "more than images": ({"person": None}, ("--folds", 81, "--fold", 1), NUMBER.replace("15", "80").replace("its persons", "its images")),
    "a word": ({}, ("--folds", "people", "--fold", 1), NUMBER),
    "no fold": ({}, ("--folds", 4), WHICH % (4, 4)),
    "fold 5 of 4": ({}, ("--folds", 4, "--fold", 5), WHICH % (4, 4)),
    "person 16": ({}, ("--folds", "persons", "--fold", 16), WHICH % (15, 15)),
    "no people": ({"person": None}, ("--folds", "persons", "--fold", 1), NUMBER.replace("15", "80").replace("its persons", "its images")),
    "a fold of nothing": ({}, ("--fold", 1), NUMBER),
    "another number": ({"fold": lambda i, row: ord(row["person"] or "a") % 4}, ("--folds", 5, "--fold", 1),
                       "{}: its column fold has 4, not --folds 5; leave --folds out, or remove the column"),
    "people and a column": ({"fold": lambda i, row: ord(row["person"] or "a") % 4}, ("--folds", "persons", "--fold", 1),
                            "{}: its column fold has 4, not --folds persons; leave --folds out, or remove the column"),
    "an empty cell": ({"fold": lambda i, row: "" if i in (7, 9) else ord(row["person"] or "a") % 4}, ("--fold", 1),
                      "{}: {7} has no fold; name it, or write train for an image that every fold is to train on"),
    "two in a column": ({"fold": lambda i, row: ord(row["person"] or "a") % 2}, ("--fold", 1), WHICH % (2, 2)),
    "a person in two": ({"fold": lambda i, row: i % 4, "person": lambda i, row: "p" if i in (4, 6) else ""}, ("--fold", 1),
                        "{}: person p is in two folds, with {4} and {6}; keep each in one, or remove the column person"),
    "too few to validate": ({}, ("--folds", "persons", "--fold", 2), "1 val images, under 4; see --folds, --fold, --batch-size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folds_that_cannot_be_made_are_one_line(faces, tmp_path, case):
    columns, options, said = REFUSED[case]
    rows = changed(rows_of(faces), **columns)
    write_rows(tmp_path, rows)
    told = refusal("train", "--data", tmp_path, "--out", tmp_path / "run", *options, "--method", "stl", *SMALL)
    names = [row["image"] for row in rows]
    assert said.replace("{}", f"{tmp_path}/labels.csv").replace("{4}", names[4]).replace("{6}", names[6]).replace(
        "{7}", names[7]) in told and not (tmp_path / "run").exists()


def test_an_expression_in_two_folds_alone_is_told_of(faces, tmp_path):
    """The fold that tests one and validates on the other has none to train on: its net does not name it, the run is whole."""
    rows = changed(rows_of(faces), expression=lambda i, row: "awe" if i in (10, 30) else row["expression"], person=None,
                   fold=lambda i, row: 1 if i == 10 else 2 if i == 30 else i % 3 + 1)
    write_rows(tmp_path, rows)
    (tmp_path / "aligned").symlink_to(faces / "aligned")
    said = f"Warning: {tmp_path}/labels.csv: 'awe' has 2 images, none of them to train on in this fold, whose net will not name it\n"
    for fold in (1, 3):
        result = invoke("train", "--data", tmp_path, "--fold", fold, "--out", tmp_path / f"{fold}", *HARD, "--logit-adjust", 1)
        assert result.exit_code == 0 and (said in result.output) == (fold == 1), result.output
    run = json.loads((tmp_path / "1/test.json").read_text())
    assert run["emotions"][0] == "awe" and 0 in run["truth"] and run["best"]["per_class"]["awe"] == 0
    assert load(tmp_path / "1/best.pt")["prior"][0] == 0 < load(tmp_path / "3/best.pt")["prior"][0]


def test_rafces_files_can_be_folded_too(faces_folder):
    parts = [_folds.load_fold(faces_folder, {"folds": "5", "fold": i}) for i in range(1, 6)]
    assert sorted(name for part in parts for name in part.of("test").names) == sorted(parts[0].names) and len(parts[0].names) == 60
    assert len({part.sha256() for part in parts} | {mmlfer.HERE and _labels.load_faces(faces_folder).sha256()}) == 2


# ---------------------------------------------------------------- a run of one fold


def test_a_run_says_its_fold_and_that_the_column_split_does_not_count(faces, tmp_path):
    result = done("train", "--data", faces, "--out", tmp_path / "r", "--folds", 4, "--fold", 2, "--method", "stl", *HARD)
    assert f"{faces}: 80 images, fold 2 of 4; no other partition counts\n" in result.stdout and "column split" not in result.output
    test = json.loads((tmp_path / "r/test.json").read_text())
    assert (test["fold"], test["folds"], test["rafce"], test["options"]["folds"]) == (2, 4, False, "4")
    people = {row["image"]: row["person"] for row in rows_of(faces)}
    assert len(test["people"]) == len(test["names"])
    assert [p if len(p) == 1 else "" for p in test["people"]] == [people[name] for name in test["names"]]


def test_eval_takes_the_fold_of_the_checkpoint(faces, runs, tmp_path):
    """Also where the data have moved; of other data its own parts count, and a line says so."""
    test = contents(runs, "mml", 0, [2])[0]
    numbers = json.loads(done("eval", "--ckpt", runs / "mml-0-2/best.pt", "--json").stdout)
    assert numbers == {name: value for name, value in test["best"].items() if name not in ("epoch", "pred")}
    moved = tmp_path / "moved"
    shutil.copytree(faces, moved)
    assert json.loads(done("eval", "--ckpt", runs / "mml-0-2/best.pt", "--data", moved, "--json").stdout) == numbers
    other = tmp_path / "other"
    shutil.copytree(faces, other)
    rows = changed(rows_of(faces), image=lambda i, row: f"x{row['image'].replace('/', '-')}", person=None)
    for row, before in zip(rows, rows_of(faces)):
        (other / before["image"]).rename(other / row["image"])
    write_rows(other, rows)
    result = done("eval", "--ckpt", runs / "mml-0-2/best.pt", "--data", other, "--json")
    assert json.loads(result.stdout)["n"] == sum(row["split"] == "test" and row["expression"] != "?" for row in rows)
    assert f"{other}: not what the folds of {runs}/mml-0-2/best.pt are of; its own parts count" in result.stderr


def test_an_interrupted_fold_goes_on_to_the_same_end(faces, runs, tmp_path, monkeypatch):
    end_at_the_third_step(monkeypatch)
    cut = tmp_path / "cut"
    assert invoke("train", "--data", faces, "--out", cut, "--method", "mml", "--folds", 3, "--fold", 2, *HARD).exit_code == 143
    assert "its run has --fold 2, not 3; a resumed run keeps its options" in refusal("train", "--out", cut, "--resume", "--fold", 3)
    shutil.copytree(faces, tmp_path / "faces")
    write_rows(tmp_path / "faces", changed(rows_of(faces), fold=lambda i, row: ord(row["person"] or "a") % 3))
    assert "its names, labels or partition differ" in refusal("train", "--out", cut, "--resume", "--data", tmp_path / "faces")
    done("train", "--out", cut, "--resume")
    assert_same_run(runs / "mml-0-2", cut)


def test_options_of_a_run_before_there_were_folds(trained, tmp_path):
    """They are none, as they are where config.yaml says so."""
    for lines in (lambda line: True, lambda line: not line.startswith("fold")):
        kept = filter(lines, (trained[0] / "config.yaml").read_text().splitlines(True))
        (tmp_path / "config.yaml").write_text("".join(kept))
        cfg = resumed_config(tmp_path, {})
        assert (cfg.folds, cfg.fold) == (None, None)


def test_images_that_cannot_be_read_leave_the_others_in_their_folds(faces, tmp_path):
    """And soft labels are of the fold's own images."""
    folder = tmp_path / "faces"
    shutil.copytree(faces, folder)
    rows = changed(rows_of(faces), p_joy=lambda i, row: 1 + i % 3, p_rage=lambda i, row: 2, p_sulk=lambda i, row: 1)
    write_rows(folder, rows)
    before = _folds.load_fold(folder, {"folds": "3", "fold": 1})
    for i in (3, 30, 50):
        (folder / rows[i]["image"]).write_text("no picture")
    options = ("--labels", "soft", "--skip-bad-images", "--method", "stl", "--folds", 3, *HARD)
    for fold in (1, 2, 3):
        done("train", "--data", folder, "--out", tmp_path / f"runs/{fold}", "--fold", fold, *options)
    whole, = _results.read_runs(tmp_path / "runs")
    bad = {rows[i]["image"] for i in (3, 30, 50)}
    for fold, run in enumerate(whole.folds, 1):
        of_fold = [name for name, part, y in zip(before.names, before.fold, before.y_emo) if part == fold and y >= 0]
        assert run.content["names"] == [name for name in of_fold if name not in bad]
    assert [run.content["best"]["shares_n"] for run in whole.folds] == [
        sum(part == fold and name not in bad for name, part in zip(before.names, before.fold)) for fold in (1, 2, 3)]


# ---------------------------------------------------------------- the folds of a seed as one


def counted(rows, runs, method, seed):
    """Acc., Diag., macro F1, and F1 of AUs of all folds together, in loops, percent."""
    tests = contents(runs, method, seed)
    pairs = [pair for test in tests for pair in zip(test["truth"], test["best"]["pred"])]
    hits, f1 = collections.Counter(t for t, p in pairs if t == p), []
    for k in range(3):
        true, said = sum(t == k for t, _ in pairs), sum(p == k for _, p in pairs)
        f1.append(2 * hits[k] / (true + said))
    diag = np.mean([hits[k] / sum(t == k for t, _ in pairs) for k in range(3)])
    au_f1 = []
    for au in tests[0]["aus"]:
        both = total = 0
        for fold, test in enumerate(tests, 1):
            net, state = mmlfer.load_net(runs / f"{method}-{seed}-{fold}/best.pt", "cpu")
            part = mmlfer.load_images(_folds.load_fold(test["data"], test["options"]).of("test"), test["data"], 32)
            _, p_au = mmlfer.predict_faces(net, part.images)
            for name, p in zip(part.names, p_au):
                row = next(row for row in rows if row["image"] == name)
                if row["aus"] == "?" or au not in state["trained_aus"]:
                    continue
                present, active = str(au) in re.findall(r"\d+", row["aus"]), p[state["aus"].index(au)] > 0.5
                both, total = both + (present and active), total + present + active
        if total:
            au_f1.append(2 * both / total)
    return [100 * value for value in (sum(hits.values()) / len(pairs), diag, np.mean(f1), np.mean(au_f1) if au_f1 else np.nan)]


def cells(text, title):
    """The cells of the first row that begins so below the heading of Table 3."""
    line = next(line for line in text.split("## Table 3")[1].splitlines() if line.startswith(f"| {title} | "))
    return line.strip("| ").split(" | ")


def test_table_is_of_all_folds_of_a_seed(faces, runs):
    text, rows = done("table", runs, "--out", "-").stdout, rows_of(faces)
    assert "78 test images in 3 folds. Percent" in text
    assert "in the intervals 15 persons take the place" in text and "| method | seeds | Acc. | Diag. | macro F1 | AU F1 |" in text
    one, other = counted(rows, runs, "mml", 0), counted(rows, runs, "mml", 1)
    told = [f"{np.mean(pair):.2f} ± {np.std(pair, ddof=1):.2f}" for pair in zip(one, other)]
    assert cells(text, "mml train") == ["mml train", "2", *told]
    assert cells(text, "stl") == ["stl", "1", *(f"{value:.2f}" for value in counted(rows, runs, "stl", 0)[:3]), "-"]
    assert one[3] > 0 and one[:3] != other[:3]


def test_comparisons_of_folds_are_by_persons(runs):
    rows = _results.read_results(runs)
    text = table.comparisons(rows).splitlines()[-1]
    right = {method: [t == p for test in contents(runs, method, 0) for t, p in zip(test["truth"], test["best"]["pred"])]
             for method in ("mml", "stl")}
    people = [person for test in contents(runs, "mml", 0) for person in test["people"]]
    numbers = next(iter(rows[0].seeds.values())).people
    assert len({*zip(numbers, people)}) == len({*people}) == len({*numbers})
    d = collections.Counter()
    for person, one, other in zip(people, right["mml"], right["stl"]):
        d[person] += one - other
    signs = list(itertools.product((1, -1), repeat=sum(value != 0 for value in d.values())))
    sums = np.array(signs) @ [value for value in d.values() if value]
    b, c = (sum(x and not y for x, y in zip(*pair)) for pair in ((right["mml"], right["stl"]), (right["stl"], right["mml"])))
    p = np.mean(np.abs(sums) >= abs(b - c))
    assert text.startswith("| mml train - stl | 1 | ") and text.endswith(f" | {b}:{c} p={p:.3f} |") and len(d) == 15 and b != c


def test_the_curves_of_folds_are_their_mean(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs", ignore=shutil.ignore_patterns("*.pt"))
    done("plot", tmp_path / "runs")
    assert Image.open(tmp_path / "runs/curves.png").size[0] > 100


def test_a_fold_that_is_missing_or_there_twice_is_named(runs, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy, ignore=shutil.ignore_patterns("*.pt"))
    shutil.copytree(copy / "mml-0-2", copy / "again")
    assert refusal("table", copy, "--out", "-") == (
        f"Error: {copy}/mml-0-2/test.json: fold 2 of the same method, options and seed as {copy}/again/test.json; remove one\n")
    shutil.rmtree(copy / "again")
    for fold in (1, 3):
        (copy / f"mml-1-{fold}/test.json").unlink()
    for command in (("table", copy, "--out", "-"), ("plot", copy)):
        assert refusal(*command) == (f"Error: {copy}/mml-1-2/test.json: of the 3 folds of this method, options and seed there is no "
                                     "test.json of 1, 3; train with --fold 1\n")


def test_runs_of_a_partition_and_of_folds_are_no_one_table(faces, runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs", ignore=shutil.ignore_patterns("*.pt", "mml*"))
    whole = json.loads((runs / "stl-0-1/test.json").read_text())
    del whole["fold"], whole["folds"]
    (tmp_path / "runs/plain").mkdir()
    (tmp_path / "runs/plain/test.json").write_text(json.dumps({**whole, "seed": 3}))
    assert "other test images than" in refusal("table", tmp_path / "runs", "--out", "-")


def test_an_export_of_folds_gives_the_same_table_without_names(runs, tmp_path):
    before = done("table", runs, "--out", "-", "--export", tmp_path / "one").stdout
    assert done("table", tmp_path / "one", "--out", "-", "--export", tmp_path / "two").stdout == before
    assert exported(tmp_path / "one") == exported(tmp_path / "two")
    for name in ("runs.csv", "logs.csv"):
        assert ".jpg" not in (tmp_path / "one" / name).read_text() and "people" not in (tmp_path / "one" / name).read_text()
    with np.load(tmp_path / "one/predictions.npz") as one, np.load(tmp_path / "two/predictions.npz") as two:
        assert sorted(one) == ["fold", "people", "pred", "truth"] and all((one[name] == two[name]).all() for name in one)
        assert one["pred"].shape == (9, 78) and one["people"].max() == 14 and one["fold"].tolist() == sorted(one["fold"])
    drawn = [done("plot", place).stdout for place in (tmp_path / "one",)]
    assert drawn == [f"{tmp_path}/one/curves.png\n"]


STRANGE = {"fold 4 of 3": {"fold": 4}, "fold 0": {"fold": 0}, "a fold of text": {"fold": "1"}, "folds of text": {"folds": "3"},
           "no number": {"folds": None}, "too few people": {"people": ["a"]}, "people of lists": {"people": [[]] * 100}}


@pytest.mark.parametrize("case", STRANGE)
def test_folds_that_are_none_are_refused(runs, tmp_path, case):
    content = json.loads((runs / "mml-0-1/test.json").read_text())
    people = [[]] * len(content["truth"]) if case == "people of lists" else content["people"]
    (tmp_path / "test.json").write_text(json.dumps({**content, "people": people, **STRANGE[case]}
                                                   if case != "people of lists" else {**content, "people": people}))
    assert refusal("table", tmp_path, "--out", "-").startswith(f"Error: {tmp_path}/test.json: not a run's test.json (")


def test_au_counts_that_are_missing_in_a_fold_are_refused(runs, tmp_path):
    content = json.loads((runs / "mml-0-1/test.json").read_text())
    for counts in ({}, {"1": [1, 2]}, {au: 3 for au in content["best"]["au_counts"]}):
        content["best"]["au_counts"] = counts
        (tmp_path / "test.json").write_text(json.dumps(content))
        assert refusal("table", tmp_path, "--out", "-").startswith(f"Error: {tmp_path}/test.json: not a run's test.json (")


def test_people_of_a_partition_count_in_its_intervals_too(runs, tmp_path):
    """A run whose test.json does not have them takes those of the others; other people are refused."""
    content = {method: json.loads((runs / f"{method}-0-1/test.json").read_text()) for method in ("mml", "stl")}
    for method, run in content.items():
        del run["fold"], run["folds"]
        (tmp_path / method).mkdir()
        (tmp_path / method / "test.json").write_text(json.dumps(run))
    both = done("table", tmp_path, "--out", "-").stdout
    assert "persons take the place" in both and "folds" not in both and "AU F1" not in both
    people = content["stl"].pop("people")
    (tmp_path / "stl/test.json").write_text(json.dumps(content["stl"]))
    assert done("table", tmp_path, "--out", "-").stdout == both
    (tmp_path / "stl/test.json").write_text(json.dumps({**content["stl"], "people": [f"the {p}" for p in people]}))
    assert done("table", tmp_path, "--out", "-").stdout == both  # the same by other names
    (tmp_path / "stl/test.json").write_text(json.dumps({**content["stl"], "people": people[::-1]}))
    assert refusal("table", tmp_path, "--out", "-").endswith(
        f"other persons of the same images than {tmp_path}/mml/test.json; name the folder of the runs of one labels.csv alone\n")
