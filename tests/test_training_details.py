"""Single facts about data and training, each against an oracle of its own."""

import csv
import hashlib
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
import torchvision
import yaml
from conftest import ROOT, invoke, run_of
from PIL import Image
from test_reference import AUS, EMOTIONS, Net, read_folder

import mmlfer
from mmlfer_commands import _backbones, eval, train

# ---------------------------------------------------------------- what the paper gives

DEFAULTS = {
    "data": None, "method": "mml", "stats": "wild", "form": "auto", "arch": "resnet34", "weights_bgr": False, "weights_norm": "auto", "weights": "auto", "epochs": 60,
    "batch_size": 16, "size": 112, "lr_backbone": 0.001, "lr_heads": 0.01, "lr_meta": 0.01,
    "schedule": "constant", "rho": 0.1, "rho_am": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
    "hypergrad": "auto", "seed": 0, "device": "auto", "skip_bad_images": False,
}


def test_constants_of_the_paper_are_the_defaults():
    options = {p.name: p.default for p in mmlfer.main.get_command(None, "train").params}
    assert {name: options[name] for name in DEFAULTS} == DEFAULTS
    assert vars(mmlfer.Config()) == DEFAULTS


def test_names_and_numbers_are_the_papers():
    assert list(mmlfer.EMOTIONS) == EMOTIONS and list(mmlfer.AUS) == AUS
    assert (mmlfer.TRAIN, mmlfer.TEST, mmlfer.VAL) == (0, 1, 2)


SUMS = {  # Table 1, percent: of each expression, of each observed AU
    "wild": ([327, 212, 297, 283, 189, 164, 554, 364, 281, 374, 177, 264, 292, 218],
             {1: 293, 2: 147, 4: 519, 5: 211, 6: 119, 9: 142, 10: 427, 12: 434, 16: 174, 17: 29, 25: 958, 26: 258,
              27: 285}),
    "lab": ([519, 450, 481, 304, 421, 456, 390, 569, 631, 412, 423, 528, 505, 519],
            {1: 762, 2: 578, 4: 873, 5: 454, 6: 239, 7: 197, 9: 201, 10: 558, 12: 400, 15: 200, 17: 242, 20: 332,
             24: 69, 25: 1034, 26: 469}),
}


@pytest.mark.parametrize("name", SUMS)
def test_table_1_has_the_papers_sums_along_both_sides(name):
    rows, columns = SUMS[name]
    table = mmlfer.load_stats(name)
    assert np.allclose(100 * table.sum(1), rows)
    assert np.allclose(100 * table.sum(0), [columns.get(au, 0) for au in AUS])


def test_au_9_of_table_1_stands_where_the_text_has_it():
    column = mmlfer.load_stats("wild")[:, AUS.index(9)]
    assert {EMOTIONS[k]: column[k] for k in np.flatnonzero(column)} == {
        "happily disgusted": 0.24, "sadly angry": 0.29, "fearfully angry": 0.56, "angrily disgusted": 0.33}


def test_statistics_under_20_percent_count_as_nothing(tmp_path):
    rows = [f"{e}: {{1: 0.19, 2: 0.2, 4: 0.21, 11: 0.9, 43: 1}}\n" for e in EMOTIONS]
    (tmp_path / "s.yaml").write_text("".join(rows))
    table = mmlfer.load_stats(str(tmp_path / "s.yaml"))
    assert {AUS[j]: table[5, j] for j in np.flatnonzero(table[5])} == {2: 0.2, 4: 0.21, 43: 1}


FORMS = [("wild", "auto", "wild"), ("lab", "auto", "lab"), ("lab", "wild", "wild"), ("wild", "lab", "lab")]


@pytest.mark.parametrize("stats,form,expected", FORMS)
def test_form_follows_the_statistics_unless_given(stats, form, expected):
    cfg = mmlfer.Config(stats=stats, form=form, method="stl", weights="none", size=32, device="cpu")
    assert run_of(cfg, 1).form == expected


# ---------------------------------------------------------------- images and labels


def colour_of(i):
    return 7 * i % 256, i // 36, 90


def test_labels_stay_with_their_images_when_bad_ones_are_left_out(tmp_path):
    """300 faces, each of its own colour; bad ones at the start, in the middle, across the 256th."""
    rng, bad = np.random.default_rng(1), [0, 7, 8, 100, 255, 256, 290, 299]
    order = rng.permutation(300)
    emo, split, au = rng.integers(0, 14, 300), rng.integers(0, 3, 300), rng.integers(0, 32, 300)
    for name, value in (("emolabel", emo), ("partition", split), ("AUlabel", [AUS[j] for j in au])):
        (tmp_path / f"RAFCE_{name}.txt").write_text("".join(f"{i:04d}.jpg {value[i]}\n" for i in order))
    (tmp_path / "aligned").mkdir()
    for place, i in enumerate(order):
        path = tmp_path / f"aligned/{i:04d}_aligned.png"
        if place in bad[::2]:
            path.write_bytes(b"no image")
        elif place not in bad:
            Image.new("RGB", (32, 32), colour_of(int(i))).save(path)
    faces = mmlfer.load_images(mmlfer.load_labels(tmp_path), tmp_path, 32, skip_bad=True)
    kept = [int(i) for place, i in enumerate(order) if place not in bad]
    assert faces.names == [f"{i:04d}.jpg" for i in kept]
    assert faces.images.float().mean((2, 3)).tolist() == [list(colour_of(i)) for i in kept]
    assert faces.y_emo.tolist() == emo[kept].tolist() and faces.split.tolist() == split[kept].tolist()
    assert (faces.y_au == np.eye(32)[au[kept]]).all()


def triangle_weights(n, size):
    """What each of n pixels adds to each of `size`: a triangle as wide as the larger pixel."""
    scale = n / size
    distance = np.abs(np.arange(n)[None] + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / max(scale, 1)
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("height,width", [(64, 64), (20, 20), (47, 80), (32, 32)])
def test_images_are_resized_bilinearly(tmp_path, height, width):
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ours = mmlfer.read_image(tmp_path / "a.png", 32)
    down, across = triangle_weights(height, 32), triangle_weights(width, 32)
    naive = np.einsum("ih,hwc,jw->ijc", down, pixels.astype(float), across)
    assert ours.shape == (32, 32, 3) and ours.dtype == np.uint8
    assert np.abs(ours - naive).max() <= 1.01  # rounded after each of the two directions


AU_TEXTS = {"null": [], "NULL": [], "4": [4], "L12+r4": [12, 4], "12L+lr25+T24": [12, 25, 24], "043": [43]}


@pytest.mark.parametrize("text", AU_TEXTS)
def test_au_tokens_in_every_spelling(text):
    assert [number for number, _ in mmlfer.parse_aus(text)] == AU_TEXTS[text]


PLACES = ["aligned/aligned/0001_aligned.jpg", "aligned/0001_aligned.jpg", "0001.jpg"]


@pytest.mark.parametrize("base", ["", "RAF-AU/"])
def test_the_inner_place_of_an_image_is_preferred(tmp_path, base):
    places = [base + place for place in PLACES]
    if not base:  # and what lies beside the label files to what RAF-AU has
        places = [*places[:2], *("RAF-AU/" + place for place in PLACES[:2])]
    for code, place in reversed(list(enumerate(places))):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * code, 0, 0)).save(tmp_path / place)
        for name, value in zip(mmlfer.LABEL_FILES, "304"):
            (tmp_path / name).write_text(f"0001.jpg {value}\n" if name != mmlfer.LABEL_FILES[1] else "0001.jpg 0\n")
        faces = mmlfer.load_images(mmlfer.load_labels(tmp_path), tmp_path, 32)
        assert abs(int(faces.images[0, 0].float().mean()) - 60 * code) < 4, place


def test_least_numbers_of_images():
    def faces(train, test, val, aus=1):
        n = train + test + val
        split = np.array([0] * train + [1] * test + [2] * val)
        return mmlfer.Faces([""] * n, np.zeros(n, int), split, np.full((n, 32), aus / 32))

    mmlfer.check_trainable(faces(4, 1, 4), "here", 4)
    mmlfer.check_trainable(faces(4, 1, 4, aus=0.1001), "here", 4)
    for counts, message in (((3, 1, 4), "3 train images, expected at least 4"),
                            ((4, 0, 4), "0 test images, expected at least 1"),
                            ((4, 1, 3), "3 val images, expected at least 4"),
                            ((4, 1, 4, 0.099), "0.099 active AUs a training face")):
        with pytest.raises(mmlfer.InputError, match=message):
            mmlfer.check_trainable(faces(*counts), "here", 4)


# ---------------------------------------------------------------- metrics


class OneHot(torch.nn.Module):
    """Features that say an image's red value, of 0..13; the running mean of BatchNorm is unused."""

    def forward(self, x):
        red = ((x[:, 0, 0, 0] * 0.5 + 0.5) * 255).round().long()
        return torch.nn.functional.one_hot(red, 512).to(x.dtype)


def test_evaluation_of_150_faces_matches_naive_counts():
    """Past two batches of 64; a net whose answers are known: expression red, AU j with p[red, j]."""
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
    numbers = mmlfer.evaluate(net, mmlfer.Faces([""] * 150, truth, truth, y_au.astype(np.uint8), images), {"method": "mml"})
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
    """Present and never predicted, its F1 is 0; in neither it is undefined and left out."""
    y_au, active = np.zeros((5, 32), int), np.zeros((5, 32), bool)
    y_au[:3, 0], y_au[3, 2], active[3, 2] = 1, 1, True  # AU 1 missed three times, AU 4 found, all others nowhere
    numbers = mmlfer.expression_metrics(np.eye(14, dtype=int)) | mmlfer.au_metrics(y_au, active)
    rows = [line.split() for line in eval.report(numbers).splitlines() if line.startswith(("AU 1", "AU 2", "AU  "))]
    assert rows == [["AU", "1", "inner", "brow", "raiser", "0.00"], ["AU", "4", "brow", "lowerer", "100.00"]]


def test_the_report_says_what_the_numbers_are():
    counts = np.zeros((14, 14), int)
    counts[0, 0], counts[0, 3], counts[3, 3], counts[3, 0], counts[13, 0] = 3, 1, 1, 4, 2
    numbers = mmlfer.expression_metrics(counts)
    numbers |= {"au_f1": {"1": 0.25, "2": None, "43": 1.0}, "au_f1_macro": 0.625}
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


# ---------------------------------------------------------------- best, last, resume

NOISE = ("--size", 32, "--batch-size", 4, "--weights", "none", "--device", "cpu")


def load(path):
    return torch.load(path, weights_only=True)


def own_predictions(path, x):
    net = Net().double()
    net.load_state_dict({k: v for k, v in load(path)["net"].items() if k not in ("mean", "std")})
    with torch.no_grad():
        return net.eval()(x)[1].argmax(1).tolist()


@pytest.fixture(scope="module")
def scripted(noise_folder, tmp_path_factory):
    """A run of five epochs of stl whose validation accuracies are given: its folder."""
    out, real, script = tmp_path_factory.mktemp("scripted") / "run", mmlfer.evaluate, [0.25, 0.5, 0.125, 0.5, 0.375]
    given = iter(script)

    def evaluate(net, faces, method):
        numbers = real(net, faces, method)
        return {**numbers, "accuracy": next(given)} if len(faces.names) == 7 else numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmlfer, "evaluate", evaluate)
        result = invoke("train", "--data", noise_folder, "--out", out, "--epochs", 5, "--method", "stl",
                        "--lr-backbone", 0.01, "--lr-heads", 0.1, *NOISE)
    assert result.exit_code == 0, result.output
    return out


def test_best_is_the_first_epoch_of_the_highest_validation_accuracy(scripted):
    assert load(scripted / "best.pt")["epoch"] == 2 and load(scripted / "last.pt")["epoch"] == 5
    rows = list(csv.DictReader((scripted / "log.csv").open()))
    assert [float(row["val_acc"]) for row in rows] == [0.25, 0.5, 0.125, 0.5, 0.375]


def test_best_and_last_of_the_test_are_those_checkpoints(scripted, noise_folder):
    x, y_emo, _, split = read_folder(noise_folder)
    test, numbers = split == 1, json.loads((scripted / "test.json").read_text())
    pred = {name: own_predictions(scripted / f"{name}.pt", x[test]) for name in ("best", "last")}
    assert pred["best"] != pred["last"]
    for name, epoch in (("best", 2), ("last", 5)):
        assert numbers[name]["au_f1_macro"] is None  # stl's AU classifier is untrained
        assert (numbers[name]["epoch"], numbers[name]["pred"]) == (epoch, pred[name])
        right = sum(p == t for p, t in zip(pred[name], y_emo[test].tolist()))
        assert numbers[name]["accuracy"] == right / 4 and numbers[name]["n"] == 4
    names = [line.split()[0] for line in (noise_folder / "RAFCE_emolabel.txt").read_text().splitlines()]
    assert numbers["names"] == [n for n, t in zip(names, test) if t] and numbers["truth"] == y_emo[test].tolist()


def test_a_run_says_what_made_it(scripted, noise_folder):
    config = yaml.safe_load((scripted / "config.yaml").read_text())
    assert {name: config[name] for name in DEFAULTS} == DEFAULTS | {
        "data": str(noise_folder), "method": "stl", "epochs": 5, "lr_backbone": 0.01, "lr_heads": 0.1, "size": 32,
        "batch_size": 4, "weights": "none", "device": "cpu"}
    assert config["steps_per_epoch"] == 2 and config["torchvision"] == torchvision.__version__
    source = hashlib.sha256()
    for path in [ROOT / "mmlfer.py", *sorted(ROOT.glob("mmlfer_commands/*.py"))]:
        source.update(b"%s %d\n%s" % (path.name.encode(), path.stat().st_size, path.read_bytes()))
    assert config["source_sha256"] == source.hexdigest() and config["backbone"] == "none"
    for name in ("best", "last"):
        assert load(scripted / f"{name}.pt")["config"] == {name: config[name] for name in DEFAULTS}
    test = json.loads((scripted / "test.json").read_text())
    assert [test[key] for key in ("method", "stats", "form", "seed", "data", "rafce")] == [
        "stl", "wild", "wild", 0, str(noise_folder), False]


def test_places_given_from_here_hold_from_elsewhere(noise_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda cfg, *rest: seen.append(cfg))
    seen = []
    shutil.copy(ROOT / "stats/lab.yaml", tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    data = os.path.relpath(noise_folder)
    assert invoke("train", "--data", data, "--stats", "mine.yaml", "--method", "stl").exit_code == 0
    assert (seen[0].data, seen[0].stats) == (str(noise_folder), str(tmp_path / "mine.yaml"))


def test_the_log_counts_images_a_second(scripted):
    for row in csv.DictReader((scripted / "log.csv").open()):
        assert 0 < float(row["seconds"]) < 60
        assert float(row["images_per_second"]) == pytest.approx(2 * 4 / float(row["seconds"]), rel=0.01)


def run_mml(noise_folder, out, *more):
    return invoke("train", "--data", noise_folder, "--out", out, "--epochs", 3, "--schedule", "onecycle",
                  "--lr-meta", 0.5, "--hypergrad", "jvp", *NOISE, *more)


def test_a_resumed_run_has_its_meta_net_its_schedule_and_its_batches(noise_folder, tmp_path, monkeypatch):
    """Stopped in the midst of the second epoch, when all of them have moved."""
    assert run_mml(noise_folder, tmp_path / "whole").exit_code == 0
    step, taken = mmlfer.train_step, []

    def interrupted(*args):
        taken.append(1)
        if len(taken) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(*args)

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train, "train_step", interrupted)
    assert run_mml(noise_folder, tmp_path / "cut").exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    cut = load(tmp_path / "cut/last.pt")
    assert (cut["epoch"], cut["step"]) == (1, 1) and cut["meta"]["weight"].abs().max() > 0
    rates = [group["lr"] for group in cut["opt"]["param_groups"]]
    assert all(abs(rate - top) > top / 4 for rate, top in zip(rates, (0.001, 0.01)))
    assert invoke("train", "--out", tmp_path / "cut", "--resume").exit_code == 0
    whole, resumed = load(tmp_path / "whole/last.pt"), load(tmp_path / "cut/last.pt")
    for part in ("net", "meta"):
        for name, value in whole[part].items():
            assert torch.equal(resumed[part][name], value), (part, name)
    assert resumed["opt"]["param_groups"] == whole["opt"]["param_groups"]
    assert resumed["scheduler"] == whole["scheduler"] and len(resumed["log"]) == 3
    timed = {"seconds", "images_per_second"}
    for ours, row in zip(resumed["log"], whole["log"]):
        assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in row.items() if k not in timed}
    assert resumed["log"][1]["seconds"] >= cut["elapsed"] > 0


def test_skipped_images_do_not_reach_training(noise_folder, tmp_path, monkeypatch):
    """`train --skip-bad-images` trains and validates on the rest, each with its own label."""
    shutil.copytree(noise_folder, tmp_path / "faces")
    x, y_emo, y_au, split = read_folder(noise_folder)
    names = [line.split()[0] for line in (noise_folder / "RAFCE_emolabel.txt").read_text().splitlines()]
    lost = [int(np.flatnonzero(split == code)[1]) for code in (0, 2)]
    for i in lost:
        (tmp_path / "faces/aligned" / names[i].replace(".jpg", "_aligned.png")).write_bytes(b"")
    known = {image.numpy().tobytes(): i for i, image in enumerate(x)}
    step, seen = mmlfer.train_step, []

    def spy(run, *batches):
        for images, emo, au in batches:
            for image, k, row in zip(images, emo, au):
                key = [known.get(v.contiguous().numpy().tobytes()) for v in (image, image.flip(2))]
                seen.append(next(i for i in key if i is not None))
                assert k == y_emo[seen[-1]] and torch.equal(row.double(), y_au[seen[-1]])
        return step(run, *batches)

    monkeypatch.setattr(train, "train_step", spy)
    result = invoke("train", "--data", tmp_path / "faces", "--out", tmp_path / "r", "--epochs", 1, "--skip-bad-images",
                    "--hypergrad", "jvp", *NOISE)
    assert result.exit_code == 0, result.output
    assert len(seen) == 16 and not set(lost) & set(seen) and set(split[seen]) == {0, 2}


# ---------------------------------------------------------------- files


def test_a_file_is_whole_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    path, new, done = tmp_path / "last.pt", b"x" * 3_000, []
    path.write_bytes(b"old")
    fsync, replace = os.fsync, os.replace

    def watched_fsync(number):
        done.append("fsync")
        assert os.fstat(number).st_size == len(new) and path.read_bytes() == b"old"
        fsync(number)

    def watched_replace(source, target):
        done.append("replace")
        assert path.read_bytes() == b"old"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    mmlfer.write_whole(path, new)
    assert done == ["fsync", "replace"] and path.read_bytes() == new and os.listdir(tmp_path) == ["last.pt"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(mmlfer.InputError, match="No space left on device"):
        mmlfer.write_whole(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["last.pt"]


# ---------------------------------------------------------------- weights


def test_casia_weights_are_found_where_they_belong(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    torch.manual_seed(1)
    source = torchvision.models.resnet34()
    for b in source.buffers():
        b.copy_(torch.rand(b.shape) + 0.5) if b.ndim else b.fill_(7)
    torch.save(source.state_dict(), tmp_path / "weights/resnet34_casia.pth")
    monkeypatch.setattr(_backbones, "HERE", tmp_path)
    net, origin = _backbones.start_base_net("auto")
    assert str(tmp_path / "weights/resnet34_casia.pth") in origin
    for name, value in source.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(net.backbone.state_dict()[name], value), name
    none, _ = _backbones.start_base_net("none")
    assert not torch.equal(none.backbone.conv1.weight, source.conv1.weight)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = torchvision.models.resnet34().state_dict()
    state["layer2.0.bn1.running_var"][3] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(mmlfer.InputError) as error:
        _backbones.start_base_net(str(tmp_path / "w.pth"))
    assert str(error.value) == (f"{tmp_path}/w.pth: not a whole resnet34, 1 tensors: "
                                "layer2.0.bn1.running_var not finite")


def test_imagenet_tensors_are_all_loaded(monkeypatch):
    torch.manual_seed(2)
    source = torchvision.models.resnet34().state_dict()
    source["bn1.running_var"] += 0.25
    monkeypatch.setattr(torchvision.models.ResNet34_Weights, "get_state_dict", lambda *a, **k: dict(source))
    net, _ = _backbones.start_base_net("imagenet")
    for name, value in net.backbone.state_dict().items():
        assert torch.equal(value, source[name]), name


def test_a_backbone_is_normalised_as_it_was_trained():
    """Pixels go in as 0..255: by default to -1..1."""
    net, seen = mmlfer.make_base_net("resnet34", ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))), []
    net.backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    net.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.fe = net.au = torch.nn.Identity()
    net(torch.tensor([255, 102, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([1, 0, -1.5], abs=1e-6)
    assert mmlfer.make_base_net().mean.flatten().tolist() == mmlfer.make_base_net().std.flatten().tolist() == [0.5] * 3


def test_describe_counts_every_expression_and_partition(noise_folder):
    _, y_emo, y_au, split = read_folder(noise_folder)
    lines = mmlfer.describe(mmlfer.load_labels(noise_folder), "here").splitlines()
    assert lines[0] == "here: 22 images" and lines[1].split() == ["train", "test", "val"]
    for k, name in enumerate(EMOTIONS):
        counts = [sum(1 for e, s in zip(y_emo.tolist(), split) if (e, s) == (k, code)) for code in (0, 1, 2)]
        assert lines[2 + k].strip().rsplit(maxsplit=3) == [name, *map(str, counts)]
    assert lines[16].split() == ["all", "11", "4", "7"]
    active = [int(row.sum()) for row in y_au]
    mean = math.fsum(active) / 22
    assert lines[17].strip() == f"{active.count(0)} rows without AUs, {mean:.2f} active AUs a face"
