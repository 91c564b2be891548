"""`eval --by`: figures by group, and the largest difference, against naive loops and simulations."""

import csv
import itertools
import json

import numpy as np
import pytest
from conftest import invoke
from reference import EMOTIONS
from test_compounds import BASIC, checkpoint

import mmlfer
from mmlfer_commands import _groups

AGES = ("0-3", "4-19", "20-39", "", "70+")


def write_labels(folder, faces_folder, rows):
    (folder / "aligned").symlink_to(faces_folder / "aligned")
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.DictWriter(file, rows[0]).writeheader()
        csv.DictWriter(file, rows[0]).writerows(rows)


@pytest.fixture(scope="module")
def grouped(sketch, faces_folder, tmp_path_factory):
    """60 faces with ages, five of them too few; some without expression or AUs. -> folder, rows, answers by image"""
    folder, rng, rows = tmp_path_factory.mktemp("grouped"), np.random.default_rng(4), []
    for i in range(60):
        age = AGES[3] if i in (7, 8) else AGES[4] if i in (9, 11, 12) else AGES[i % 3]
        name = "?" if i % 9 == 4 else EMOTIONS[rng.integers(3, 7)]
        coded = i % 9 == 4 or i % 4
        rows.append({"image": f"aligned/{i + 1:04d}_aligned.jpg", "expression": name, "split": "train" if i >= 56 else "test",
                     "Age": age, "aus": "+".join(map(str, sorted(rng.choice([1, 2, 4, 6, 12, 25], 3, False)))) if coded else "?"})
    write_labels(folder, faces_folder, rows)
    result = invoke("predict", "--ckpt", sketch, folder / "aligned", "--jsonl", "-", "--device", "cpu")
    return folder, rows, [json.loads(line) for line in result.stdout.splitlines()]


def figures_of(rows, answers):
    """Acc., Diag. and mean AU F1 of some faces, by the definitions."""
    named = [(row["expression"], a["expressions"][0]["name"]) for row, a in zip(rows, answers) if row["expression"] != "?"]
    rates, f1 = [], []
    for name in {true for true, _ in named}:
        said = [one for true, one in named if true == name]
        rates.append(said.count(name) / len(said))
    for au in (1, 2, 4, 6, 12, 25):  # no row names another
        pairs = [(str(au) in row["aus"].split("+"), a["p_aus"][str(au)] > 0.5) for row, a in zip(rows, answers) if row["aus"] != "?"]
        if any(map(any, pairs)):
            f1.append(2 * pairs.count((True, True)) / (sum(true for true, _ in pairs) + sum(said for _, said in pairs)))
    return sum(true == said for true, said in named) / len(named), np.mean(rates), np.mean(f1)


def test_each_groups_figures_are_those_of_naive_loops(sketch, grouped):
    folder, rows, answers = grouped
    result = invoke("eval", "--ckpt", sketch, "--data", folder, "--by", "age", "--least", 5, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["groups"]
    joined = "below 5, joined: 70+, (none)"
    assert [(one["group"], one["n"]) for one in found["groups"]] == [("0-3", 17), ("4-19", 18), ("20-39", 16), (joined, 5)]
    for one in found["groups"]:
        of = [i for i, row in enumerate(rows) if row["split"] == "test" and row["Age"] in (("", "70+") if one["group"] == joined else (one["group"],))]
        want = figures_of([rows[i] for i in of], [answers[i] for i in of])
        assert [one[key] for key in ("accuracy", "diag", "au_f1_macro")] == pytest.approx(list(want))
    for key, one in found["largest"].items():
        values = {g["group"]: g[key] for g in found["groups"] if g["group"] != joined}  # of fewer than ten images
        assert (one["high"], one["low"]) == (max(values, key=values.get), min(values, key=values.get))
        assert one["difference"] == pytest.approx(max(values.values()) - min(values.values()))
        low, high = one["interval"]
        assert low < one["difference"] < high <= 1 and (high == 1 or low + high == pytest.approx(2 * one["difference"]))
    plain = json.loads(invoke("eval", "--ckpt", sketch, "--data", folder, "--json").stdout)
    assert plain == {k: v for k, v in json.loads(result.stdout).items() if k != "groups"}


def test_the_report_has_a_line_for_each_group_and_difference(sketch, grouped):
    folder, *_ = grouped
    result = invoke("eval", "--ckpt", sketch, "--data", folder, "--by", "Age", "--least", 2)
    numbers = json.loads(invoke("eval", "--ckpt", sketch, "--data", folder, "--by", "Age", "--least", 2, "--json").stdout)["groups"]
    lines = result.stdout.splitlines()
    at = lines.index("by Age                   images   Acc. %  Diag. %  AU F1 %")
    of = {one["group"]: one for one in numbers["groups"]}
    assert [line[:24].strip() for line in lines[at + 1 : at + 6]] == ["0-3", "4-19", "20-39", "70+", "(none)"]
    for line, one in zip(lines[at + 1 :], [of[name] for name in ("0-3", "4-19", "20-39", "70+", "(none)")]):
        cells = [f"{100 * one[key]:.2f}" if one[key] is not None else "-" for key in ("accuracy", "diag", "au_f1_macro")]
        assert line[24:].split() == [str(one["n"]), *cells]
    one = numbers["largest"]["diag"]
    low, high = one["interval"]
    said = f"{100 * one['difference']:.2f} [{100 * low:.2f}, {100 * high:.2f}] with 95 %, {one['high']} over {one['low']}"
    assert f"largest difference of two, Diag.: {said}" in lines and sum(line.startswith("largest difference") for line in lines) == 3
    result = invoke("eval", "--ckpt", sketch, "--data", folder, "--by", "age", "--least", 100)
    assert "below 100, joined: 0-3, 4-19, 20-39, 70+, (none)" in result.stdout
    assert result.stdout.count(": no two groups are large enough to be compared\n") == 3


def test_a_column_that_is_not_there_is_named_beside_those_that_are(sketch, grouped, faces_folder):
    mmlfer.tell_once.cache_clear()
    result = invoke("eval", "--ckpt", sketch, "--data", grouped[0], "--by", "gender")
    assert (result.exit_code, result.stdout, result.stderr.splitlines()) == (1, "", [
        f"{grouped[0]}/labels.csv: not read: 1 column, Age", f"Error: {grouped[0]}/labels.csv: no column gender, which --by names"])
    result = invoke("eval", "--ckpt", sketch, "--data", faces_folder, "--by", "age")
    assert (result.exit_code, result.stderr) == (1, f"Error: {faces_folder}/RAFCE_emolabel.txt: no column age, which --by names\n")


def test_groups_of_as_many_as_least_are_not_joined():
    texts = np.array(["b"] * 3 + ["10"] * 2 + ["9"] * 3 + [""] * 2, object)
    assert {name: rows.tolist() for name, rows in _groups.groups_of(texts, 3).items()} == {
        "9": [5, 6, 7], "b": [0, 1, 2], "below 3, joined: 10, (none)": [3, 4, 8, 9]}
    assert list(_groups.groups_of(texts, 2)) == ["9", "10", "(none)", "b"] and list(_groups.groups_of(texts[:5], 3)) == ["10", "b"]


def test_aus_that_are_not_trained_are_in_no_figure():
    """AU 4 is never predicted where it is, and nothing trained it."""
    faces = mmlfer.Faces(["a", "b"], np.zeros(2, int), np.ones(2), np.array([[1, 1], [0, 1]]), columns={"g": np.array(["x", "y"], object)},
                         vocabulary=mmlfer.Vocabulary(("e", "f"), (1, 4)))
    p_emo, p_au = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.8, 0.1], [0.1, 0.2]])
    for trained, f1 in (((1,), [1.0, None]), ((1, 4), [0.5, 0.0]), ((), [None, None])):
        found = _groups.by_group(faces, "g", 1, p_emo, p_au, trained)
        assert [one["au_f1_macro"] for one in found["groups"]] == f1 and [one["accuracy"] for one in found["groups"]] == [1, 0]
        assert found["largest"] == dict.fromkeys(("accuracy", "diag", "au_f1_macro"))


def test_any_column_makes_groups(sketch, grouped):
    """By expression a group's Acc. is that expression's rate."""
    numbers = json.loads(invoke("eval", "--ckpt", sketch, "--data", grouped[0], "--by", "expression", "--least", 1, "--json").stdout)
    rates = {one["group"]: one["accuracy"] for one in numbers["groups"]["groups"]}
    assert rates.pop("?") is None and {name: rate for name, rate in numbers["per_class"].items() if rate is not None} == rates


# ---------------------------------------------------------------- the interval


def naive_figure(tops, bottoms):
    ratios = [t / b for t, b in zip(tops.sum(0), bottoms.sum(0)) if b > 0]
    return sum(ratios) / len(ratios)


def made(rng, n, k=4, j=3, people=None):
    """tops and bottoms of Diag. and of AU F1 of n faces."""
    y, right = rng.integers(0, k, n), rng.random(n) < 0.6
    one = y[:, None] == np.arange(k)
    present, active = (rng.random((2, n, j)) < 0.3)
    return {"diag": (one & right[:, None], one), "f1": (2 * (present & active), 1 * present + active)}


@pytest.mark.parametrize("key", ["diag", "f1"])
def test_the_jackknife_leaves_out_one_person_after_the_other(key):
    rng = np.random.default_rng(1)
    people = rng.integers(0, 15, 60) * 3
    tops, bottoms = made(rng, 60)[key]
    rows = np.arange(10, 60)
    value, m, moves = _groups.jackknife(tops, bottoms, people, rows)
    who = sorted({p for p, b in zip(people[rows].tolist(), bottoms[rows]) if b.any()})
    assert m == len(who) and value == pytest.approx(naive_figure(tops[rows], bottoms[rows]))
    others = [rows[people[rows] != p] for p in who]
    without = [naive_figure(tops[some], bottoms[some]) for some in others]
    assert moves[who] == pytest.approx((np.array(without) - np.mean(without)) * np.sqrt((m - 1) / m))
    assert len(moves) == max(people) + 1 and not np.delete(moves, who).any()
    assert (moves**2).sum() == pytest.approx((m - 1) / m * sum((x - np.mean(without)) ** 2 for x in without))


def test_a_difference_of_two_large_groups_has_the_textbooks_interval():
    """Two groups of 400 and 600: 1.96 standard errors of a difference of two rates."""
    right = np.r_[np.ones(300), np.zeros(100), np.ones(270), np.zeros(330)][:, None] > 0
    groups = {"a": np.arange(400), "b": np.arange(400, 1000)}
    found = _groups.largest(groups, right, np.ones((1000, 1), bool), np.arange(1000), 20)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 399 + 0.45 * 0.55 / 599)
    pooled = 1.96 * np.sqrt(0.57 * 0.43 * (1 / 400 + 1 / 599))
    assert (found["high"], found["low"], found["difference"]) == ("a", "b", pytest.approx(0.3))
    assert half < 0.3 - found["interval"][0] < 1.03 * pooled and 0.3 - found["interval"][0] == pytest.approx(
        1.96 * np.sqrt(0.57 * 0.43 / 400 + 0.45 * 0.55 / 599), rel=0.02)  # the first at the variance of all


def test_people_with_many_images_count_as_one():
    """Twenty images of each person that are all alike tell no more than one; a person in both groups moves both."""
    rng = np.random.default_rng(2)
    right = np.repeat(rng.random(60) < 0.6, 20)[:, None]
    groups, ones = {"a": np.arange(600), "b": np.arange(600, 1200)}, np.ones((1200, 1), bool)
    wide = _groups.largest(groups, right, ones, np.repeat(np.arange(60), 20), 20)
    narrow = _groups.largest(groups, right, ones, np.arange(1200), 20)
    width = [np.diff(one["interval"])[0] for one in (wide, narrow)]
    assert width[0] / width[1] == pytest.approx(np.sqrt(20), rel=0.05)
    both = np.tile(np.repeat(np.arange(60), 10), 2)  # each person in both groups, in which 2 of 3 are right alike
    alike = _groups.largest(groups, np.tile(right[:600] | (np.arange(600) % 3 > 0)[:, None], (2, 1)), ones, both, 20)
    assert alike["difference"] == 0 and alike["interval"] == pytest.approx([0, 0], abs=1e-6)
    assert _groups.largest(groups, right, ones, np.repeat(np.arange(12), 100), 20) is None  # six people in each


def test_faces_without_the_label_make_no_group():
    rng = np.random.default_rng(3)
    right, labelled = rng.random((90, 1)) < 0.5, np.ones((90, 1), bool)
    labelled[60:75] = False
    groups = {"a": np.arange(30), "b": np.arange(30, 60), "c": np.arange(60, 90)}
    right[75:] = True  # c has all of its 15 right, too few for `least`
    found = _groups.largest(groups, right & labelled, labelled, np.arange(90), 20)
    assert {found["high"], found["low"]} == {"a", "b"}
    assert _groups.largest(groups, right & labelled, labelled, np.arange(90), 15)["high"] == "c"


def test_twenty_faces_that_are_all_right_are_no_proof():
    """One group of 20, all right, beside one of 1000 of which 90 % are: by luck once in eight times."""
    right = np.r_[np.ones(20), np.arange(1000) % 10 > 0][:, None] > 0
    found = _groups.largest({"a": np.arange(20), "b": np.arange(20, 1020)}, right, np.ones((1020, 1), bool), np.arange(1020), 20)
    assert found["high"] == "a" and found["interval"][0] < 0 < found["interval"][1]


@pytest.mark.parametrize("sizes,people", [((60,) * 6, 1), ((40, 100, 300), 1), ((120, 240), 4)])
def test_without_a_difference_it_leaves_out_nothing_in_one_of_twenty(sizes, people):
    """Of 150 draws without any difference, in which each two groups apart would often seem to differ. Seed fixed."""
    rng, out, naive, n = np.random.default_rng(5), 0, 0, sum(sizes)
    ends = np.cumsum(sizes)
    groups = {str(i): np.arange(end - size, end) for i, (size, end) in enumerate(zip(sizes, ends))}
    who = np.arange(n) // people
    for _ in range(150):
        p = 1 / (1 + np.exp(-0.4 - rng.normal(0, people > 1, n)[who]))
        y, right = rng.integers(0, 3, n), rng.random(n) < p
        one = y[:, None] == np.arange(3)
        found = _groups.largest(groups, one & right[:, None], one, who, 20)
        out += not found["interval"][0] <= 0
        rates = [right[rows].mean() for rows in groups.values()]
        naive += any(abs(rates[a] - rates[b]) > 1.96 * np.sqrt(0.24 * (1 / sizes[a] + 1 / sizes[b]))
                     for a, b in itertools.combinations(range(len(sizes)), 2))
    assert 1 <= out <= 15 and naive > 2 * out - 5 * (len(sizes) < 3)  # 7.5 of 150 are expected, more than 15 once in 200 tests


def test_ten_thousand_images_in_eight_groups_take_no_time():
    rng = np.random.default_rng(0)
    faces = mmlfer.Faces([""] * 10_000, rng.integers(0, 14, 10_000), np.ones(10_000), rng.integers(0, 2, (10_000, 32)),
                         columns={"g": rng.integers(0, 8, 10_000).astype(str).astype(object)})
    found = _groups.by_group(faces, "g", 20, rng.random((10_000, 14)), rng.random((10_000, 32)), mmlfer.AUS)
    assert len(found["groups"]) == 8 and sum(one["n"] for one in found["groups"]) == 10_000
    assert all(one["interval"][0] < 0.05 for one in found["largest"].values())


def test_merge_carries_further_columns(sketch, grouped, faces_folder, tmp_path):
    """Of both sets, whatever their capitals; empty where a set has none; and `source` makes groups."""
    other = tmp_path / "other"
    other.mkdir()
    rows = [{"image": f"aligned/{i:04d}_aligned.jpg", "expression": EMOTIONS[i % 3], "split": "test", "AGE": "4-19", "aus": "?", "race": "a"}
            for i in range(1, 13)]
    write_labels(other, faces_folder, rows)
    result = invoke("merge", grouped[0], other, faces_folder, "--out", tmp_path / "all")
    assert result.exit_code == 0, result.output
    with open(tmp_path / "all/labels.csv", newline="") as file:
        merged = list(csv.DictReader(file))
    names = [grouped[0].name, "other", "faces"]
    assert [(row["age"], row["race"]) for row in merged] == [(row["Age"], "") for row in grouped[1]] + [("4-19", "a")] * 12 + [("", "")] * 60
    result = invoke("eval", "--ckpt", sketch, "--data", tmp_path / "all", "--by", "source", "--least", 10, "--json")
    tests = {name: sum(row["source"] == name and row["split"] == "test" for row in merged) for name in names}
    assert {one["group"]: one["n"] for one in json.loads(result.stdout)["groups"]["groups"]} == tests


def test_groups_go_with_compounds_and_adjusted_logits(grouped, tmp_path):
    """The figures by group are of the answers that the other options make."""
    ckpt = checkpoint(tmp_path / "best.pt", BASIC)
    options = ("--data", grouped[0], "--compounds", "rafce", "--by", "age", "--split", "all", "--least", 1, "--json")
    result = invoke("eval", "--ckpt", ckpt, *options)
    assert result.exit_code == 0, result.output
    numbers = json.loads(result.stdout)
    found, n = numbers["groups"]["groups"], [row for row in grouped[1] if row["expression"] != "?"]
    weights = {name or "(none)": sum(row["Age"] == name for row in n) for name in AGES}
    assert sum(weights[one["group"]] * (one["accuracy"] or 0) for one in found) / len(n) == pytest.approx(numbers["accuracy"])
    assert sum(one["n"] for one in found) == 60


def test_rafdbs_attributes_make_groups(faces_folder, tmp_path):
    """From its folder by `convert` to the groups of `eval`; an image without an attribute file is in none."""
    for place in ("EmoLabel", "Image/aligned", "Annotation/manual"):
        (tmp_path / place).mkdir(parents=True)
    lines = []
    for i in range(1, 41):
        name = f"{'train' if i % 2 else 'test'}_{i:05d}"
        lines.append(f"{name}.jpg {1 + i % 7}")
        (tmp_path / f"Image/aligned/{name}_aligned.jpg").symlink_to(faces_folder / f"aligned/{i:04d}_aligned.jpg")
        if i < 39:
            (tmp_path / f"Annotation/manual/{name}_manu_attri.txt").write_text("1 2\n" * 5 + f"{i // 2 % 2}\n2\n{i // 2 % 3 + 1}\n")
    (tmp_path / "EmoLabel/list_patition_label.txt").write_text("\n".join(lines))
    result = invoke("convert", "rafdb", tmp_path, tmp_path)
    assert result.exit_code == 0, result.output
    ckpt = checkpoint(tmp_path / "best.pt", ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"))
    want = {"gender": {"male": 9, "female": 10}, "race": {"Asian": 19}, "age": {"4-19": 6, "20-39": 7, "40-69": 6}}
    for by, groups in want.items():
        result = invoke("eval", "--ckpt", ckpt, "--data", tmp_path, "--by", by, "--least", 1, "--json")
        assert {one["group"]: one["n"] for one in json.loads(result.stdout)["groups"]["groups"]} == {**groups, "(none)": 1}


def test_the_interval_ends_at_one():
    right = (np.arange(24) < 13)[:, None]
    found = _groups.largest({"a": np.arange(12), "b": np.arange(12, 24)}, right, np.ones((24, 1), bool), np.arange(24), 10)
    assert found["difference"] == pytest.approx(11 / 12) and found["interval"][1] == 1 and 0.5 < found["interval"][0] < 0.9


def test_eval_takes_persons_for_images_where_labels_csv_has_them(sketch, faces_folder, tmp_path):
    """Two images of each of ten people in each group; the interval is that of the function, with these people."""
    intervals = []
    for column in ("person", "whatever"):
        (tmp_path / column).mkdir()
        write_labels(tmp_path / column, faces_folder, [
            {"image": f"aligned/{i + 1:04d}_aligned.jpg", "expression": EMOTIONS[3 + i % 5], "split": "test", "age": AGES[i % 3], "aus": "?",
             column: f"p{i // 6}-{i % 3}"} for i in range(60)])
        result = invoke("eval", "--ckpt", sketch, "--data", tmp_path / column, "--by", "age", "--json", "--device", "cpu")
        intervals.append(json.loads(result.stdout)["groups"]["largest"]["accuracy"]["interval"])
    result = invoke("predict", "--ckpt", sketch, faces_folder / "aligned", "--jsonl", "-", "--device", "cpu")
    right = np.array([[json.loads(line)["expressions"][0]["name"] == EMOTIONS[3 + i % 5]] for i, line in enumerate(result.stdout.splitlines())])
    groups = {age: np.arange(60)[k::3] for k, age in enumerate(AGES[:3])}
    for people, interval in zip((np.arange(60) // 6 * 3 + np.arange(60) % 3, np.arange(60)), intervals):
        assert _groups.largest(groups, right, np.ones((60, 1), bool), people, 20)["interval"] == pytest.approx(interval, abs=1e-6)
    assert intervals[0] != pytest.approx(intervals[1], abs=1e-3)
