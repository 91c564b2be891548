"""Tables 2 and 3 of finished runs, their comparison in pairs, and the best run of a search."""

import csv
import hashlib
import json
import math
import os
import shutil

import numpy as np
import pytest
import yaml
from conftest import exported, invoke
from PIL import Image

import mmlfer
from mmlfer_commands import _rafce, _results, plot, table


def fake_run(folder, method, stats, seed, pred, truth, options=None, **others):
    """Write a test.json as `train` writes it, without the options that are `...`."""
    confusion = mmlfer.confusion_matrix(truth, pred, 14)
    best = {"epoch": 1, **mmlfer.expression_metrics(confusion, mmlfer.EMOTIONS), "pred": list(pred)}
    defaults = {field.name: field.default for field in mmlfer.dataclasses.fields(mmlfer.Config)}
    given = {"data": "/home/me/faces", "method": method, "stats": stats, "seed": seed}
    run = {"method": method, "form": "lab" if stats == "lab" else "wild", "stats": stats, "seed": seed,
           "data": "/home/me/faces", "rafce": False, "best": best, "last": {**best, "pred": [13] * len(truth)},
           "names": [f"{i}.jpg" for i in range(len(truth))], "truth": list(truth),
           "options": {name: value for name, value in {**defaults, **given, **(options or {})}.items() if value is not ...}, "emotions": mmlfer.EMOTIONS, "aus": mmlfer.AUS,
           "table_sha256": f"of {stats}", "data_sha256": "d" * 64, "images_sha256": "e" * 64, "backbone": "none", **others}
    place = folder / f"{method}-{stats.replace('/', '')}-{seed}"
    place.mkdir(parents=True)
    (place / "test.json").write_text(json.dumps(run))
    return place


def table_of(*args):
    result = invoke("table", *args, "--out", "-")
    assert result.exit_code == 0, result.stderr
    return result.stdout


def titles(folder):
    """The first column of Table 3."""
    text = table_of(folder).split("## Table 3")[1].split("##")[0]
    cells = [line.split(" | ")[0][2:] for line in text.splitlines() if line.startswith("| ")][2:]
    return [", ".join([name, *sorted(traits)]) for name, *traits in (cell.split(", ") for cell in cells)]


# ---------------------------------------------------------------- Tables 2 and 3


def test_tables_give_means_and_spread(tmp_path):
    truth = [0] * 10 + [1] * 10
    fake_run(tmp_path, "mml", "wild", 0, [0] * 10 + [1] * 10, truth)  # 100 %
    fake_run(tmp_path, "mml", "wild", 1, [0] * 9 + [1] * 11, truth)  # 95 %
    fake_run(tmp_path, "stl", "wild", 0, [0] * 20, truth)  # 50 %
    fake_run(tmp_path, "stl", "wild", 1, [0] * 18 + [1] * 2, truth)  # 60 %
    fake_run(tmp_path, "mtl", "wild", 0, [0] * 11 + [1] * 9, truth)  # 95 %
    result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text("utf-8")
    assert result.exit_code == 0 and result.stdout == text + "\n"
    assert "| mml wild | 2 | 97.50 ± 3.54 | 97.50 ± 3.54 |\n" in text
    assert "| mtl | 1 | 95.00 | 95.00 |\n" in text
    assert "| happily disgusted | 10 | 10.00 ± 14.14 | 90.00 | 100.00 ± 0.00 |" in text
    assert "| sadly fearful | 0 | - | - | - |" in text and "| **Acc.** | 20 | 55.00 ± 7.07 | 95.00 | 97.50 ± 3.54 |" in text
    assert "paper's Acc." not in text and "Not RAF-CE (by its counts), and so not the paper's columns: 20 test images." in text


PRINTED = {  # the paper's Table 3
    "stl": "51.49 / 28.12", "mtl": "53.25 / 29.58", "mal": "52.37 / 30.73", "mal2": "",
    "am lab": "54.12 / 30.15", "am wild": "53.36 / 28.02", "mml lab": "55.01 / 30.85", "mml wild": "55.23 / 31.68"}


def test_the_papers_column_stands_beside_rafce_alone(tmp_path):
    for name in PRINTED:
        method, _, stats = name.partition(" ")
        fake_run(tmp_path, method, stats or "wild", 0, [0], [0], rafce=True)
    fake_run(tmp_path, "mml", "/mine/wild", 0, [0], [0], rafce=True)  # one's own file of that name
    fake_run(tmp_path / "more", "am", "lab", 0, [0], [0], rafce=True, form="wild")
    text = table.results(tmp_path)
    for name, numbers in PRINTED.items():
        assert f"| {name} | 1 | 100.00 | 100.00 | {numbers} |" in text
    assert "| mml /mine/wild | 1 | 100.00 | 100.00 |  |" in text and "| am lab, wild form | 1 | 100.00 | 100.00 |  |" in text
    fake_run(tmp_path / "others", "stl", "wild", 1, [0], [0])
    assert "55.23" not in table.results(tmp_path)


# Two runs of seeds 0 and 1: (method, statistics, options, others) of both, and their rows.
SAME, APART = {}, {}
SAME["seed, data's place and device"] = (("stl", "wild", {"data": "/a", "device": "cpu"}, {}),
                                         ("stl", "wild", {"data": "/b", "device": "cuda"}, {}), ["stl"])
SAME["what the method does not read"] = (("stl", "wild", {"rho": 1, "lr_meta": 1, "hypergrad": "jvp", "weight_max": 1.0}, {}),
                                         ("stl", "lab", {"rho": 2, "lr_meta": 2, "hypergrad": "create_graph", "weight_max": 4.0}, {}), ["stl"])
SAME["one table that was counted and written"] = (("mml", "train", {"stats_least": 2}, {"table_sha256": "of mine"}),
                                                  ("mml", "mine.yaml", {"stats_least": 5}, {"table_sha256": "of mine"}), ["mml mine.yaml"])
SAME["one table of two names"] = (("mml", "/a/copy.yaml", {}, {"table_sha256": "of wild"}),
                                  ("mml", "wild", {}, {}), ["mml wild"])
SAME["one backbone of two names"] = (("stl", "wild", {"weights": "/a/x.pth"}, {"backbone": "0" * 64}),
                                     ("stl", "wild", {"weights": "/b/y.pth", "weights_norm": "half", "weights_bgr": True}, {"backbone": "0" * 64}),
                                     ["stl"])
SAME["an option that an older version lacked"] = (("stl", "wild", {}, {}), ("stl", "wild", {"augment": ...}, {}), ["stl"])
APART["a search"] = (("mtl", "wild", {"rho": 0.01, "size": 32, "epochs": 1}, {}),
                     ("mtl", "wild", {"rho": 5.0, "size": 48, "epochs": 2}, {}),
                     ["mtl, epochs 1, rho 0.01, size 32", "mtl, epochs 2, rho 5.0, size 48"])
APART["files of one name"] = (("mml", "/a/mine.yaml", {}, {}), ("mml", "/b/mine.yaml", {}, {}),
                              ["mml mine.yaml, statistics mine.yaml (of /a/mi)", "mml mine.yaml, statistics mine.yaml (of /b/mi)"])
APART["a file that changed"] = (("mml", "/a/mine.yaml", {}, {"table_sha256": "0" * 64}),
                                ("mml", "/a/mine.yaml", {}, {"table_sha256": "1" * 64}),
                                ["mml mine.yaml, statistics mine.yaml (00000000)", "mml mine.yaml, statistics mine.yaml (11111111)"])
APART["a file called wild"] = (("mml", "wild", {}, {}), ("mml", "/a/wild", {}, {}), ["mml /a/wild", "mml wild"])
APART["the form"] = (("mml", "lab", {}, {}), ("mml", "lab", {}, {"form": "wild"}), ["mml lab", "mml lab, wild form"])
APART["other methods, other options"] = (("stl", "wild", {"epochs": 30}, {}), ("mml", "wild", {"epochs": 60}, {}),
                                         ["stl, epochs 30", "mml wild, epochs 60"])
APART["images moved or not"] = (("stl", "wild", {"augment": True}, {}), ("stl", "wild", {}, {}),
                                ["stl, augment False", "stl, augment True"])
APART["another number format"] = (("stl", "wild", {"precision": "bf16"}, {}), ("stl", "wild", {}, {}),
                                  ["stl, precision bf16", "stl, precision float32"])
APART["each its own rho"] = (("mtl", "wild", {"rho": 1.0}, {}), ("am", "wild", {"rho": 0.1}, {}), ["mtl", "am wild"])
APART["an option of a newer version"] = (("stl", "wild", {"new": "x"}, {}), ("stl", "wild", {}, {}), ["stl", "stl, new x"])
APART["other labels"] = (("stl", "wild", {"data": "/a/clean"}, {"data_sha256": "0" * 64}),
                         ("stl", "wild", {"data": "/a/noisy"}, {"data_sha256": "1" * 64}),
                         ["stl, data clean (00000000)", "stl, data noisy (11111111)"])
APART["other pictures under the same labels"] = (
    ("stl", "wild", {"data": "/a/faces"}, {"data_sha256": "2" * 64, "images_sha256": "0" * 64}),
    ("stl", "wild", {"data": "/b/turned"}, {"data_sha256": "2" * 64, "images_sha256": "1" * 64}),
    ["stl, images faces (00000000)", "stl, images turned (11111111)"])
APART["weights that were made between two runs"] = (
    ("stl", "wild", {}, {"backbone": "none"}), ("stl", "wild", {}, {"backbone": "0" * 64}),
    ["stl, backbone none", "stl, backbone resnet34_casia.pth (00000000)"])
APART["a weights file that was replaced"] = (
    ("stl", "wild", {"weights": "/a/x.pth"}, {"backbone": "0" * 64}), ("stl", "wild", {"weights": "/a/x.pth"}, {"backbone": "1" * 64}),
    ["stl, backbone x.pth (00000000)", "stl, backbone x.pth (11111111)"])
APART["another normalisation from scratch"] = (
    ("stl", "wild", {}, {"backbone": "none"}), ("stl", "wild", {}, {"backbone": "none, imagenet normalisation"}),
    ["stl, backbone none", "stl, backbone none with imagenet normalisation"])
APART["ImageNet's weights and a file beside the code"] = (
    ("stl", "wild", {"arch": "resnet18"}, {"backbone": "imagenet"}), ("stl", "wild", {"arch": "resnet18"}, {"backbone": "0" * 64}),
    ["stl, backbone imagenet", "stl, backbone resnet18_casia.pth (00000000)"])


def test_a_run_records_its_images(trained, faces_folder):
    """In the order of the labels' rows, and as the net gets them."""
    run = json.loads((trained[0] / "test.json").read_text())
    rows = (faces_folder / "RAFCE_emolabel.txt").read_text().split()[::2]
    digest = hashlib.sha256(b"(60, 3, 32, 32)")
    for name in rows:
        picture = Image.open(faces_folder / "aligned" / name.replace(".jpg", "_aligned.jpg"))
        digest.update(b"".join(channel.tobytes() for channel in picture.split()))
    assert run["images_sha256"] == digest.hexdigest() and "images" in _results.find_traits(run)
    for name in ("best.pt", "last.pt"):
        assert mmlfer.read_checkpoint(trained[0] / name)["images_sha256"] == digest.hexdigest()


def test_a_run_records_its_labels(trained, faces_folder):
    """Other AUs in the training rows make another row of the table."""
    run = json.loads((trained[0] / "test.json").read_text())
    faces = _rafce.load_labels(faces_folder)
    assert run["data_sha256"] == faces.sha256() and "data" in _results.find_traits(run)
    faces.y_au[0] = 1 - faces.y_au[0]
    assert run["data_sha256"] != faces.sha256()


@pytest.mark.parametrize("case", [*SAME, *APART])
def test_a_row_is_one_method(tmp_path, case):
    one, other, rows = {**SAME, **APART}[case]
    for seed, (method, stats, options, others) in enumerate((one, other)):
        fake_run(tmp_path, method, stats, seed, [0, 1], [0, 1], options, **others)
    assert titles(tmp_path) == rows


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path):
    elsewhere = fake_run(tmp_path / "elsewhere", "stl", "wild", 0, [0], [0])
    runs = tmp_path / "runs"
    fake_run(runs, "mtl", "wild", 0, [0], [0])
    (runs / "linked").symlink_to(elsewhere)
    (runs / "once more").symlink_to(elsewhere.parent)
    (elsewhere / "loop").symlink_to(runs)
    (runs / "loop").symlink_to("..")
    assert titles(runs) == ["stl", "mtl"]


def test_a_pipe_named_test_json_is_passed_over(tmp_path):
    run = fake_run(tmp_path, "stl", "wild", 0, [0], [0])
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/test.json")
    assert table.find_files(tmp_path, "test.json") == [run / "test.json"]


def test_table_refuses_what_it_cannot_put_in_one_table(tmp_path):
    def error():
        result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
        assert result.exit_code == 1 and not (tmp_path / "r.md").exists()
        return result.stderr

    assert error() == f"Error: {tmp_path}: no test.json below it; `train` writes one at its end\n"
    first = fake_run(tmp_path, "mml", "wild", 0, [0, 1], [0, 0]) / "test.json"
    other = fake_run(tmp_path / "other", "stl", "wild", 0, [0, 1], [0, 1]) / "test.json"
    message = f"Error: {other}: other test images than {first}; one table takes one data set, name the folder of its runs alone\n"
    assert error() == message
    fake_run(tmp_path / "other/names", "stl", "wild", 0, [0, 1], [0, 0], names=["a", "b"]).rename(other.parent / "names")
    other.unlink()
    assert error() == message.replace(f"{other}", f"{other.parent}/names/test.json")
    names = other.parent / "names/test.json"
    names.write_text(names.read_text().replace('["a", "b"]', '["1.jpg", "0.jpg"]'))  # the same images in another order
    assert error() == message.replace(f"{other}", f"{names}")
    names.unlink()
    again = fake_run(tmp_path / "other/again", "mml", "wild", 0, [0, 1], [0, 0]) / "test.json"
    assert error() == f"Error: {again}: the same method, options and seed as {first}; remove one\n"


HUGE = 10**400
STRANGE = {  # of a good test.json: the keys down to what is replaced, and by what
    "confusion of text": ("best", "confusion", "x"), "confusion of null": ("best", "confusion", None),
    "confusion with text": ("best", "confusion", 0, 0, "1"), "confusion with null": ("best", "confusion", 0, None),
    "text in per_class": ("best", "per_class", "sadly angry", "x"), "per_class of text": ("best", "per_class", "x"),
    "one in per_class": ("best", "per_class", "happily surprised", 0.5), "huge accuracy": ("best", "accuracy", HUGE),
    "huge in confusion": ("best", "confusion", 0, 0, HUGE), "huge truth": ("truth", 0, HUGE), "huge n": ("best", "n", HUGE),
    "other accuracy": ("best", "accuracy", 0.25), "nan": ("best", "diag", math.nan), "lists": ("best", "pred", 0, [[[]]]),
    "lists in options": ("options", "epochs", [[]]), "options of text": ("options", "x"), "no names": ("names", None),
    "too few names": ("names", ["1"]), "seed of text": ("seed", "0"), "negative": ("best", "pred", 0, -1),
    "expression 14": ("truth", 0, 14), "half": ("best", "pred", 0, 0.5), "no truth": ("truth", []), "base64": ("truth", "A"),
    "deflated": ("truth", "AAAA"), "shorter": ("truth", "eJxjYAQAAAMAAg=="), "method": ("method", []),
    "unknown method": ("method", "x"), "table": ("table_sha256", 3), "rafce": ("rafce", "yes"), "statistics": ("stats", 3),
}


@pytest.mark.parametrize("case", STRANGE)
def test_table_refuses_numbers_that_are_none(tmp_path, case):
    path = fake_run(tmp_path, "mml", "wild", 0, [0, 1, 2], [0, 1, 1], {}) / "test.json"
    run = json.loads(path.read_text())
    *way, key, value = STRANGE[case]
    inner = run
    for step in way:
        inner = inner[step]
    inner[key] = value
    path.write_text(json.dumps(run))
    result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {path}: not a run's test.json (")
    assert result.stderr.endswith("); remove it\n") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"method": []}', "[" * 100000, "1" * 5000, "\udcff"])
def test_table_refuses_strange_files(tmp_path, text):
    (tmp_path / "test.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}/test.json: not a run's test.json")


@pytest.mark.parametrize("name", ["test.json", "log.csv", "best.pt"])
def test_table_does_not_write_over_a_run(tmp_path, name):
    path = fake_run(tmp_path, "stl", "wild", 0, [0], [0]) / name
    path.touch()
    before = path.read_bytes()
    result = invoke("table", tmp_path, "--out", path)
    assert result.exit_code == 1 and path.read_bytes() == before
    assert result.stderr == f"Error: {path}: is an input or lies among the inputs; name another output\n"


# ---------------------------------------------------------------- pairs


def test_mcnemar_by_hand():
    """The sign test's p, by coins: of b images that one net alone has right and c that only the other has."""
    for b, c in ((0, 0), (8, 1), (1, 8), (15, 5), (300, 260)):
        naive = sum(math.comb(b + c, k) for k in range(b + c + 1) if abs(2 * k - b - c) >= abs(b - c)) / 2 ** (b + c)
        assert table.mcnemar(np.array([1] * b + [0] * 7 + [-1] * c)) == pytest.approx(naive, abs=1e-12), (b, c)


def test_every_pair_is_compared_the_methods_of_the_paper_first(tmp_path):
    truth = [0] * 20 + [1] * 20
    rights = {("mml", "wild"): (40, 38, 39), ("am", "lab"): (38, 39, 39), ("stl", "wild"): (20, 22, 21)}
    for (method, stats), right in rights.items():
        for seed, n in enumerate(right):
            fake_run(tmp_path, method, stats, seed, [*truth[:n], *([2] * (40 - n))], truth)
    fake_run(tmp_path, "mtl", "wild", 1, [0] * 40, truth)
    fake_run(tmp_path, "mal", "wild", 7, truth, truth)  # a seed that no other has
    lines = table_of(tmp_path).split("| --- | --- | --- | --- | --- |\n")[-1].splitlines()
    assert [line.split(" | ")[0] for line in lines if line] == [
        "| mml wild - am lab", "| mml wild - mtl", "| mml wild - stl", "| am lab - mtl", "| am lab - stl", "| mtl - stl"]
    assert lines[0].startswith("| mml wild - am lab | 3 | +0.83 [-") and "signal" not in lines[0]
    assert lines[1].startswith("| mml wild - mtl | 1 | +45.00 [+") and "signal" not in lines[1]  # with one seed never
    assert lines[2].startswith("| mml wild - stl | 3 | +45.00 [+") and lines[2].count("**signal**") == 2
    assert lines[2].endswith(" | 20:0 p<0.001, 16:0 p<0.001, 18:0 p<0.001 |")
    assert lines[5].startswith("| mtl - stl | 1 | -5.00 [-") and lines[5].endswith("| 0:2 p=0.500 |")


def test_rows_of_one_method_are_sorted_by_the_size_of_what_tells_them_apart(tmp_path):
    for k, rho in enumerate((10.0, 3.0, 0.1, 0.03, 1.0)):
        fake_run(tmp_path / str(k), "mtl", "wild", 0, [0, 1], [0, 0], {"rho": rho})
    told = [line.split(" | ")[0] for line in table_of(tmp_path).splitlines() if line.startswith("| mtl")]
    assert told[:5] == [f"| mtl, rho {rho}" for rho in ("0.03", "0.1", "1.0", "3.0", "10.0")]


def test_seeds_are_compared_in_their_order_and_small_p_to_three_digits(tmp_path):
    truth = [0] * 20
    for seed, right in ((8, 11), (1, 9), (17, 7)):  # a set would have 8 before 1
        fake_run(tmp_path, "mtl", "wild", seed, [0] * 20, truth)
        fake_run(tmp_path, "stl", "wild", seed, [0] * right + [1] * (20 - right), truth)
    line = table_of(tmp_path).split("| --- | --- | --- | --- | --- |\n")[-1].splitlines()[0]
    assert line.endswith(" | 11:0 p=0.001, 9:0 p=0.004, 13:0 p<0.001 |")


def test_each_measure_has_its_own_interval(tmp_path):
    """Three seeds alike: MS images / (3 N) with 15 degrees of freedom, t = 2.13145. In Acc. e is 1/4 (12 times) and
    -3/4 (4 times), MS images 3 * 3 / 15; in Diag. weights are 2/3 and 2, e is 1/3 and -1, MS images 3 * (16/3) / 15."""
    for seed in range(3):
        fake_run(tmp_path, "mml", "wild", seed, [0] * 16, [0] * 12 + [1] * 4)
        fake_run(tmp_path, "stl", "wild", seed, [2] * 16, [0] * 12 + [1] * 4)
    mcnemar = ", ".join(["12:0 p<0.001"] * 3)
    assert table_of(tmp_path).endswith(
        f"| mml wild - stl | 3 | +75.00 [+51.17, +98.83] **signal** | +50.00 [+18.23, +81.77] **signal** | {mcnemar} |\n\n")


def test_a_difference_that_rounds_to_0_has_no_minus():
    assert table.gain(np.full((3, 4), -1e-10), np.ones(4)) == "+0.00 [+0.00, +0.00]"


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_loss_is_signal_as_well_but_not_of_two_seeds(tmp_path, seeds):
    for seed in range(seeds):
        fake_run(tmp_path, "stl", "wild", seed, [0] * 30, [0] * 30)
        fake_run(tmp_path, "mml", "wild", seed, [1] * 30, [0] * 30)
    signal = " **signal**" if seeds == 3 else ""
    assert f"| mml wild - stl | {seeds} | -100.00 [-100.00, -100.00]{signal} | -100.00 [-100.00, -100.00]{signal} |" in table_of(tmp_path)


# ---------------------------------------------------------------- a search, raw results


def searched(folder, name, accuracies, seed=0, others=None, **options):
    """Write a finished run of a search: config.yaml, log.csv, test.json."""
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    fake_run(folder, options.get("method", "am"), options.get("stats", "wild"), seed, [0], [0], options, **(others or {})).rename(place)
    (place / "config.yaml").write_text(yaml.safe_dump({"method": "am", **options}))
    rows = [{"epoch": i, "w_au": 0.9, "val_acc": a, "val_diag": 1 - a} for i, a in enumerate(accuracies)]
    with open(place / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return place


def test_search_prints_the_options_of_the_best_run(tmp_path):
    searched(tmp_path, "3", [0.0, 0.47, 0.2], rho=0.03, rho_am=1.0)
    searched(tmp_path, "deep/2", [0.1, 0.1, 0.09], rho=1.0, rho_am=0.3)
    searched(tmp_path, "1", [9e-05, 0.31, 0.3], rho=0.1, rho_am=0.1)
    searched(tmp_path, "4", [0.47, 0.1, 0.1], rho=1e-05, rho_am=0.1)  # equal; the first by path
    result = invoke("search", tmp_path, "rho-am", "rho")
    assert (result.exit_code, result.stdout) == (0, "--rho-am 1.0 --rho 0.03\n")


def test_of_equal_runs_search_takes_the_first_and_accuracies_are_between_0_and_1(tmp_path):
    for accuracy in (1.0, 0.0):
        for name, rho in (("a", 0.1), ("b", 3.0), ("c", 0.03)):
            searched(tmp_path / str(accuracy), name, [accuracy], rho=rho)
        assert invoke("search", tmp_path / str(accuracy), "rho").stdout == "--rho 0.1\n"


@pytest.mark.parametrize(("tried", "best", "said"), [
    ((0.1, 3.0, 1.0), 3.0, "rho 3.0 is the best and the largest of those tried; try larger ones too"),
    ((0.1, 3.0, 1.0), 0.1, "rho 0.1 is the best and the smallest of those tried; try smaller ones too"),
    ((0.1, 3.0, 1.0), 1.0, None), ((3.0,), 3.0, None), ((3.0, 3.0), 3.0, None), (("wild", "lab"), "lab", None)])
def test_a_search_that_ends_at_its_edge_says_so(tmp_path, tried, best, said):
    for i, value in enumerate(tried):
        searched(tmp_path, str(i), [0.2, 0.4 if value == best else 0.3], rho=value)
    result = invoke("search", tmp_path, "rho")
    assert (result.exit_code, result.stdout) == (0, f"--rho {best}\n")
    assert result.stderr == (f"Warning: {tmp_path}: {said}\n" if said else "")


ZEROS = {"data_sha256": "0" * 64, "images_sha256": "0" * 64, "backbone": "0" * 64, "table_sha256": "0" * 64}
SEARCHES = {  # what another run of a search for rho has of its own, and how that is told
    "epochs": ({"epochs": 3}, {}, "epochs 3", "60"), "size": ({"size": 48}, {}, "size 48", "112"),
    "another weight": ({"rho_am": 1.0}, {}, "rho-am 1.0", "0.1"),
    "method": ({"method": "mtl"}, {}, "method mtl", "am"), "form": ({}, {"form": "lab"}, "form lab", "wild"),
    "labels": ({}, {"data_sha256": "1" * 64}, "data faces (11111111)", "faces (00000000)"),
    "pictures": ({}, {"images_sha256": "1" * 64}, "images faces (11111111)", "faces (00000000)"),
    "statistics": ({}, {"table_sha256": "1" * 64}, "statistics wild (11111111)", "wild (00000000)"),
    "backbone": ({}, {"backbone": "none"}, "backbone none", "resnet34_casia.pth (00000000)"),
    "a new option": ({"new": 1}, {}, "new 1", "unknown"),
}


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_search_refuses_runs_that_differ_in_more(tmp_path, kind):
    options, others, has, first_has = SEARCHES[kind]
    one = searched(tmp_path, "1", [0.5], others=ZEROS, rho=0.1)
    searched(tmp_path, "2", [0.4], seed=7, others=ZEROS, rho=0.3)
    other = searched(tmp_path, "3", [0.6], others={**ZEROS, **others}, **{"rho": 1.0, **options})
    result = invoke("search", tmp_path, "rho")
    assert (result.exit_code, result.stdout, result.stderr) == (
        1, "", f"Error: {other}: {has}, where {one} has {first_has}; remove one, or search over it too\n")


def test_a_search_refuses_a_trait_that_only_its_first_run_has(tmp_path):
    one, other = searched(tmp_path, "1", [0.5], rho=0.1, new=1), searched(tmp_path, "2", [0.6], rho=0.3)
    assert invoke("search", tmp_path, "rho").stderr == (
        f"Error: {other}: new unknown, where {one} has 1; remove one, or search over it too\n")


FOLLOWING = {  # an option, its two values, and what else is another in the second run for that reason
    "stats": ("wild", "lab", {"table_sha256": "1" * 64}),
    "data": ("/a/faces", "/b/others", {"data_sha256": "1" * 64, "images_sha256": "1" * 64}),
    "weights": ("/a/x.pth", "/b/y.pth", {"backbone": "1" * 64}),
    "weights-bgr": (False, True, {"backbone": "1" * 64}), "weights-norm": ("half", "imagenet", {"backbone": "1" * 64})}


@pytest.mark.parametrize("option", FOLLOWING)
def test_a_search_may_be_over_options_that_are_known_by_a_digest(tmp_path, option):
    first, second, others = FOLLOWING[option]
    name = option.replace("-", "_")
    searched(tmp_path, "1", [0.5], others=ZEROS, **{name: first})
    searched(tmp_path, "2", [0.6], others={**ZEROS, **others}, **{name: second})
    result = invoke("search", tmp_path, option)
    assert (result.stdout, result.stderr) == (f"--{option}\n" if second is True else f"--{option} {second}\n", "")


@pytest.mark.parametrize("best,printed", [(True, "--skip-bad-images\n"), (False, "\n")])
def test_a_flag_that_was_searched_is_printed_as_train_takes_it(tmp_path, best, printed):
    for value in (True, False):
        searched(tmp_path, str(value), [0.6 if value == best else 0.3], skip_bad_images=value)
    result = invoke("search", tmp_path, "skip-bad-images")
    assert (result.stdout, result.stderr) == (printed, "")  # a flag has no smaller or larger ones


def test_a_search_over_two_options_warns_of_both_edges_and_quotes_words(tmp_path):
    for i, (rho, rho_am) in enumerate(((0.1, 0.5), (0.3, 0.2), (0.2, 0.4))):
        searched(tmp_path / "r", str(i), [0.5 if i == 1 else 0.4], rho=rho, rho_am=rho_am)
    result = invoke("search", tmp_path / "r", "rho", "rho-am")
    assert result.stdout == "--rho 0.3 --rho-am 0.2\n" and [line.split(": ")[2][:45] for line in result.stderr.splitlines()] == [
        "rho 0.3 is the best and the largest of those ", "rho-am 0.2 is the best and the smallest of th"]
    searched(tmp_path / "s", "1", [0.5], stats="/my own/table.yaml")
    assert invoke("search", tmp_path / "s", "stats").stdout == "--stats '/my own/table.yaml'\n"


def test_runs_of_a_search_may_differ_in_image_size(tmp_path):
    for size in (32, 48):
        searched(tmp_path, str(size), [size / 100], size=size, others={"images_sha256": f"of {size}"})
    assert invoke("search", tmp_path, "size").stdout == "--size 48\n"


def test_search_refuses_what_it_cannot_choose_from(tmp_path):
    def error(*names):
        result = invoke("search", tmp_path, *names)
        assert result.exit_code == 1 and not result.stdout
        return result.stderr

    assert error("rho") == f"Error: {tmp_path}: no run of `train` below it\n"
    run = searched(tmp_path, "a b", [0.5], rho=1)
    result = invoke("search", tmp_path, "rho", "rhos")
    assert result.exit_code == 2 and "'rhos' is not one of 'data', 'size'" in result.stderr
    (run / "log.csv").write_text("epoch,val_acc\n0,nan\n")
    assert error("rho") == f"Error: {run}: not a run of `train` (val_acc nan)\n"
    (run / "test.json").unlink()
    assert error("rho") == f"Error: {run}: unfinished: mmlfer train --resume --out '{run}'\n"


def test_export_keeps_what_table_and_plot_need(trained, tmp_path):
    runs, out = trained[0].parent, tmp_path / "results"
    before = invoke("table", runs, "--out", "-", "--export", out)
    assert before.exit_code == 0 and table_of(out) == before.stdout
    assert sorted(p.name for p in out.iterdir()) == ["logs.csv", "predictions.npz", "runs.csv"]
    kept, truth = exported(out)
    row, log, pred = kept["mml"]
    whole, config = json.loads((runs / "mml/test.json").read_text()), yaml.safe_load((runs / "mml/config.yaml").read_text())
    assert pred == whole["best"]["pred"] and truth == whole["truth"]
    with (runs / "mml/log.csv").open() as file:
        assert [{"run": "mml", **line} for line in csv.DictReader(file)] == log
    assert row["names_sha256"] == hashlib.sha256(json.dumps(whole["names"]).encode()).hexdigest()
    assert not {"names", "truth", "best.pred", "last.pred"} & {*row}
    assert row["data"] == row["options.data"] == "faces" and row["config.steps_per_epoch"] == str(config["steps_per_epoch"])
    for part in ("best", "last"):
        assert {name: json.loads(row[f"{part}.{name}"]) for name in whole[part] if name not in ("pred", "confusion")} == {
            name: value for name, value in whole[part].items() if name not in ("pred", "confusion")}
    for name, value in whole["options"].items():
        assert name == "data" or row[f"options.{name}"] in (str(value), json.dumps(value)), name
    assert not any(b"/" in (out / name).read_bytes() for name in ("logs.csv", "runs.csv"))


def test_an_export_of_many_runs_draws_their_curves(trained, tmp_path, monkeypatch):
    """The same curves as of the runs themselves."""
    folder, out, drawn = tmp_path / "runs", tmp_path / "out", []
    for seed in (0, 1):
        place = folder / f"mml, {seed}"
        place.mkdir(parents=True)
        for name in ("config.yaml", "log.csv", "test.json"):
            shutil.copy(trained[0] / name, place)
        test = json.loads((place / "test.json").read_text())
        (place / "test.json").write_text(json.dumps({**test, "seed": seed}))
    log = folder / "mml, 1/log.csv"
    log.write_text(log.read_text().replace("0.", "0.0"))
    assert invoke("table", folder, "--out", "-", "--export", out).exit_code == 0
    monkeypatch.setattr(plot, "save_figure", lambda figure, path: drawn.append(
        [(line.get_label(), line.get_xydata().tolist()) for axis in figure.axes for line in axis.lines]))
    assert [invoke("plot", place).stdout for place in (folder, out)] == [f"{place}/curves.png\n" for place in (folder, out)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 3


@pytest.mark.parametrize("name,content", [
    ("runs.csv", b"run\nmml\n"), ("runs.csv", b"run,best.epoch\nmml,1\n"), ("runs.csv", b"\xff"), ("logs.csv", None),
    ("logs.csv", b"epoch\n1\n"), ("predictions.npz", None), ("predictions.npz", b"PK"), ("predictions.npz", b"")])
def test_a_damaged_export_is_one_line(trained, tmp_path, name, content):
    out = tmp_path / "results"
    assert invoke("table", trained[0], "--out", "-", "--export", out).exit_code == 0
    (out / name).unlink() if content is None else (out / name).write_bytes(content)
    for command in (("table", out, "--out", "-"), ("plot", out)):
        result = invoke(*command)
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and result.stdout == ""
        assert result.stderr.startswith(f"Error: {out}/runs.csv: not, with logs.csv and predictions.npz, as `table --export` writes it (")


def test_predictions_that_do_not_give_the_numbers_of_their_row_are_refused(trained, tmp_path):
    out = tmp_path / "results"
    assert invoke("table", trained[0].parent, "--out", "-", "--export", out).exit_code == 0
    with np.load(out / "predictions.npz") as labels:
        truth, pred = labels["truth"], labels["pred"]
    np.savez(out / "predictions.npz", truth=truth, pred=(pred + 1) % 14)
    assert "numbers that do not fit each other" in invoke("table", out, "--out", "-").stderr


@pytest.mark.parametrize("k", [256, 257])
def test_labels_of_up_to_256_expressions_are_exported_as_bytes(tmp_path, k):
    names = [f"expression {i}.5" for i in range(k)]
    truth, pred = list(range(k)), [0, *range(1, k - 1), 0]
    numbers = mmlfer.expression_metrics(mmlfer.confusion_matrix(truth, pred, k), names)
    run = fake_run(tmp_path / "runs", "mml", "own.yaml", 0, [0] * k, [0] * k, {}, emotions=names)
    content = json.loads((run / "test.json").read_text())
    content |= {"truth": truth, "best": {**content["best"], **numbers, "pred": pred}}
    (run / "test.json").write_text(json.dumps(content))
    (run / "log.csv").write_text("epoch\n")
    (run / "config.yaml").write_text("data: /home/me/faces\n")
    before = invoke("table", tmp_path / "runs", "--out", "-", "--export", tmp_path / "out")
    assert before.exit_code == 0, before.stderr
    with np.load(tmp_path / "out/predictions.npz") as labels:
        assert labels["truth"].tolist() == truth and labels["pred"].tolist() == [pred]
        assert max(labels[name].dtype.itemsize for name in labels) == (1 if k == 256 else 2)
    assert table_of(tmp_path / "out") == before.stdout


def test_an_export_of_an_export_is_the_same(tmp_path):
    for seed, name in enumerate("ab"):  # two runs whose folders are called the same
        run = fake_run(tmp_path / "runs" / name, "mml", "wild", seed, [0, 1], [0, 0], {}, backbone="1e5")  # no number
        run = run.rename(run.parent / "mml")
        (run / "log.csv").write_text(f"epoch\n{seed}\n")
        (run / "config.yaml").write_text("data: /home/me/faces\n")
    assert invoke("table", tmp_path / "runs", "--out", "-", "--export", tmp_path / "one").exit_code == 0
    assert invoke("table", tmp_path / "one", "--out", "-", "--export", tmp_path / "two").exit_code == 0
    one, two = ([(tmp_path / name / file).read_bytes() for file in ("runs.csv", "logs.csv")] for name in ("one", "two"))
    assert one == two and b"home" not in b"".join(one) and b'"""1e5"""' in one[0]
    assert exported(tmp_path / "one") == exported(tmp_path / "two")
    assert [*exported(tmp_path / "one")[0]] == ["a/mml", "b/mml"]


@pytest.mark.parametrize("stats,kept", [("/home/me/mine.yaml", "mine.yaml"), ("/home/me/wild", "./wild"), ("wild", "wild")])
@pytest.mark.parametrize("weights,file", [("/home/me/x.pth", "x.pth"), ("/home/me/none", "./none"), ("auto", "auto")])
def test_an_export_holds_no_place_and_gives_the_same_table(tmp_path, stats, kept, weights, file):
    """A file that is named like one of an option's words is still a file after the export."""
    for seed, backbone in enumerate(("a" * 64, "b" * 64)):
        run = fake_run(tmp_path / "runs", "mml", stats, seed, [0, 1], [0, 0], {"weights": weights}, backbone=backbone,
                       table_sha256="2" * 64)
        (run / "log.csv").write_text("epoch\n")
        options = json.loads((run / "test.json").read_text())["options"]
        (run / "config.yaml").write_text(yaml.safe_dump(options))
    before = invoke("table", tmp_path / "runs", "--out", "-", "--export", tmp_path / "out")
    assert before.exit_code == 0
    after = table_of(tmp_path / "out")
    assert "home" not in after and after == before.stdout.replace("/home/me/wild", "./wild")
    assert not any(b"/home" in path.read_bytes() for path in (tmp_path / "out").iterdir())
    for row, *_ in exported(tmp_path / "out")[0].values():
        assert (row["stats"], row["options.stats"], row["options.weights"]) == (kept, kept, file)


def test_forty_runs_of_400_images_stay_below_two_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 14, 400).tolist()
    aus = {"au_f1": dict.fromkeys(map(str, mmlfer.AUS), 1 / 3), "au_f1_macro": 1 / 3}
    run = fake_run(tmp_path / "runs", "mml", "wild", 0, rng.integers(0, 14, 400).tolist(), truth, {})
    content = json.loads((run / "test.json").read_text())
    for name in ("best", "last"):
        content[name] = {**content[name], **aus}
    (run / "test.json").write_text(json.dumps(content))
    (run / "log.csv").write_text(("0.123456789012345678," * 11 + "\n") * 30)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": "/faces", **dict.fromkeys("abcdefghijklmnopqrstuvwxyz", "0" * 40)}))
    assert invoke("table", tmp_path / "runs", "--out", "-", "--export", tmp_path / "out").exit_code == 0
    assert 40 * sum(p.stat().st_size for p in (tmp_path / "out").rglob("*.*")) < 2e6


def test_an_export_touches_no_run(tmp_path):
    fake_run(tmp_path / "runs", "mml", "wild", 0, [0, 1], [0, 0])
    for out in (tmp_path / "runs/new", tmp_path / "runs", tmp_path):
        result = invoke("table", tmp_path / "runs", "--out", "-", "--export", out)
        assert result.exit_code == 1
        assert result.stderr == f"Error: {out}: not empty, or among the runs; name a new folder elsewhere\n"
