"""The numbers of `eval` and of a run's test, against naive counts, and their report."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, invoke
from reference import AUS, EMOTIONS

import mmlfer
from mmlfer_commands import eval


class OneHot(torch.nn.Module):
    """A backbone whose features encode an image's red value, 0..13."""

    def forward(self, x):
        red = ((x[:, 0, 0, 0] * 0.5 + 0.5) * 255).round().long()
        return torch.nn.functional.one_hot(red, 512).to(x.dtype)


def test_evaluation_of_150_faces_matches_naive_counts():
    """More than two batches of 64; the net's predictions are known: expression `red`, AU j with p[red, j]."""
    rng = np.random.default_rng(3)
    p = rng.choice([0.05, 0.3, 0.49, 0.51, 0.7, 0.95], (14, 32))
    p[:, 5] = 0.3  # predicted nowhere
    net = mmlfer.make_base_net()
    net.backbone = OneHot()
    with torch.no_grad():
        for layer, weight in ((net.fe, np.eye(14)), (net.au, np.log(p / (1 - p)).T)):
            layer.weight.zero_(), layer.bias.zero_()
            layer.weight[:, :14] = torch.tensor(weight)
    red, truth = rng.integers(0, 13, 150), rng.integers(1, 14, 150)
    truth = np.where(rng.random(150) < 0.4, red.clip(1), truth)
    y_au = rng.random((150, 32)) < 0.3
    y_au[:, [5, 6]] = False
    images = torch.zeros(150, 3, 32, 32, dtype=torch.uint8)
    images[:, 0] = torch.tensor(red)[:, None, None]
    numbers = mmlfer.evaluate(net, mmlfer.Faces([""] * 150, truth, truth, y_au.astype(np.uint8), images), AUS)
    assert numbers["pred"] == red.tolist() and numbers["n"] == 150
    assert numbers["accuracy"] == pytest.approx(sum(r == t for r, t in zip(red, truth)) / 150)
    confusion, rates, f1 = [[0] * 14 for _ in range(14)], [], []
    for t, r in zip(truth, red):
        confusion[t][r] += 1
    for k in range(14):
        of_k, called, right = sum(truth == k), sum(red == k), confusion[k][k]
        rates.append(right / of_k if of_k else None)
        f1.append(2 * right / (of_k + called) if of_k else None)
    assert numbers["confusion"] == confusion and rates[0] is None
    assert numbers["per_class"] == pytest.approx(dict(zip(EMOTIONS, rates)))
    assert numbers["diag"] == pytest.approx(np.mean(rates[1:]))
    assert numbers["macro_f1"] == pytest.approx(np.mean(f1[1:]))
    au_f1 = {}
    for j, au in enumerate(AUS):
        hits = sum(y_au[i, j] and p[red[i], j] > 0.5 for i in range(150))
        both = sum(y_au[:, j]) + sum(p[red[i], j] > 0.5 for i in range(150))
        au_f1[str(au)] = 2 * hits / both if both else None
    assert numbers["au_f1"] == pytest.approx(au_f1) and au_f1["7"] is None and au_f1["9"] == 0
    assert numbers["au_f1_macro"] == pytest.approx(np.mean([v for v in au_f1.values() if v is not None]))


def test_the_report_shows_an_au_that_is_never_found():
    """If an AU is present and never predicted, its F1 is 0; if it is neither, F1 is undefined and left out."""
    y_au, active = np.zeros((5, 32), int), np.zeros((5, 32), bool)
    y_au[:3, 0], y_au[3, 2], active[3, 2] = 1, 1, True  # AU 1 missed three times, AU 4 found, all others nowhere
    numbers = mmlfer.expression_metrics(np.eye(14, dtype=int), EMOTIONS) | mmlfer.au_metrics(y_au, active, AUS)
    rows = [line.split() for line in eval.report(numbers).splitlines() if line.startswith(("AU 1", "AU 2", "AU  "))]
    assert rows == [["AU", "1", "inner", "brow", "raiser", "0.00"], ["AU", "4", "brow", "lowerer", "100.00"]]


def test_the_report_says_what_the_numbers_are():
    counts = np.zeros((14, 14), int)
    counts[0, 0], counts[0, 3], counts[3, 3], counts[3, 0], counts[13, 0] = 3, 1, 1, 4, 2
    numbers = mmlfer.expression_metrics(counts, EMOTIONS)
    numbers |= {"au_n": 7, "au_f1": {"1": 0.25, "2": None, "43": 1.0}, "au_f1_macro": 0.625}
    lines = eval.report(numbers).splitlines()
    cells = {line[:24].strip(): line[24:].split() for line in lines[1:18]}
    assert cells["happily surprised"] == ["4", "75.00", "46.15"]  # F1: 2 * 3 / (4 + 9)
    assert cells["sadly angry"] == ["5", "20.00", "28.57"] and cells["happily sad"] == ["2", "0.00", "0.00"]
    assert cells["sadly fearful"] == ["0", "-", "-"]
    assert cells["Acc."] == ["11", "36.36"] and cells["Diag."] == ["11", "31.67"]
    assert cells["macro F1"] == ["11", "24.91"]
    assert [line.split() for line in lines[20:23]] == [
        ["AU", "1", "inner", "brow", "raiser", "25.00"], ["AU", "43", "eyes", "closed", "100.00"],
        ["macro", "62.50"]]
    assert [line.split() for line in lines[-14:]] == [[str(n) for n in row] for row in counts]
    none = np.zeros((0, 14))  # columns of shares, all empty in this part
    assert eval.report(numbers | mmlfer.share_metrics(none, none)).splitlines() == lines


def test_aus_that_the_checkpoint_lacks_are_named(sketch, faces_folder, tmp_path):
    for i, aus in enumerate(("1+11", "12+46"), 1):
        (tmp_path / f"{i}.png").write_bytes((faces_folder / f"aligned/000{i}_aligned.jpg").read_bytes())
        with open(tmp_path / "labels.csv", "a") as file:
            file.write(("image,expression,split,aus\n" if i == 1 else "") + f"{i}.png,sadly angry,test,{aus}\n")
    result = invoke("eval", "--ckpt", sketch, "--data", tmp_path, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["n"] == 2
    assert result.stderr == f"{tmp_path}/labels.csv: AU 11, 46: not among the AUs to tell apart, left out\n"


def test_a_part_without_images_is_one_line(sketch, faces_folder, tmp_path):
    for file in mmlfer.LABEL_FILES:
        text = (faces_folder / file).read_text()
        (tmp_path / file).write_text(text.replace(" 2\n", " 0\n") if file == "RAFCE_partition.txt" else text)
    result = invoke("eval", "--ckpt", sketch, "--data", tmp_path, "--split", "val")
    assert (result.exit_code, result.stderr) == (1, f"Error: {tmp_path}: no val images; see RAFCE_partition.txt\n")


def test_all_parts_together(sketch, faces_folder):
    """The counts of the three parts add up, and that training images are among them is said."""
    told = {split: json.loads(invoke("eval", "--ckpt", sketch, "--split", split, "--json").stdout) for split in ("all", "train", "test", "val")}
    confusion = sum(np.array(told[split]["confusion"]) for split in ("train", "test", "val"))
    assert told["all"]["confusion"] == confusion.tolist() and told["all"]["n"] == 60


@pytest.mark.parametrize("training", [True, False])
def test_predicting_leaves_the_net_in_its_mode(training):
    net = mmlfer.make_base_net().train(training)
    mmlfer.predict_faces(net, torch.zeros(70, 3, 32, 32, dtype=torch.uint8))
    assert all(module.training == training for module in net.modules())


def test_aus_of_a_classifier_that_nothing_trains_have_no_f1(faces_folder, tmp_path):
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "r", "--method", "mtl", "--rho", 0, "--epochs", 1,
                    *SMALL)
    assert result.exit_code == 0, result.output
    best = json.loads((tmp_path / "r/test.json").read_text())["best"]
    assert best["au_f1_macro"] is None and set(best["au_f1"].values()) == {None}


@pytest.mark.parametrize("options,trained", [
    ({"method": "stl"}, False), ({"method": "mtl", "rho": 0.0}, False), ({"method": "mtl", "rho": 0.1}, True),
    ({"method": "am", "rho": 0.0, "rho_am": 0.0}, False), ({"method": "am", "rho": 0.0, "rho_am": 0.2}, True),
    ({"method": "mal"}, True), ({"method": "mal2"}, True), ({"method": "mml"}, True),
])
def test_what_trains_the_au_classifier(options, trained):
    faces = mmlfer.Faces(["a", "b", "c"], np.zeros(3, int), np.array([0, 0, 1]), np.array([[-1, 0, -1], [-1, -1, 1], [1, 1, 1]]),
                         vocabulary=mmlfer.Vocabulary(("a", "b"), (4, 12, 25)))
    assert mmlfer.find_trained(vars(mmlfer.Config(**options)), faces) == ([12, 25] if trained else [])
