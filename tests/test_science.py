"""The paper's analysis and evidence: building RAF-CE, Table 1, Tables 2 and 3, figures, predictions."""

import csv
import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, invoke, random_batch, run_program
from PIL import Image

import mmlfer

#            Surprise Fear Disgust Happiness Sadness Anger
DISTRIBUTIONS = {
    "happily surprised": (0.4, 0.1, 0.0, 0.5, 0.0, 0.0),
    "sadly angry": (0.0, 0.0, 0.1, 0.0, 0.5, 0.4),
    "disgustedly surprised": (0.5, 0.0, 0.5, 0.0, 0.0, 0.0),  # a tie for first place
    "happily disgusted": (0.1, 0.1, 0.3, 0.5, 0.0, 0.0),
    "sadly fearful": (0.0, 0.25, 0.0, 0.25, 0.5, 0.0),  # tie for second: fear comes first
    "happily sad": (0.0, 0.0, 0.0, 0.5, 0.25, 0.25),  # happily angry is none of the 14
    "fearfully surprised": (0.25, 0.25, 0.25, 0.25, 0.0, 0.0),  # all tied: the first pair
}
TIED_AND_DISCARDED = (0.0, 0.0, 0.0, 0.6, 0.0, 0.4)  # happily angry


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_compound_of_six_probabilities(name):
    assert mmlfer.EMOTIONS[mmlfer.compound(DISTRIBUTIONS[name])] == name


def test_every_pair_of_the_14_and_no_other():
    found = {}
    for i in range(6):
        for j in range(i + 1, 6):
            p = [0.0] * 6
            p[i], p[j] = 0.6, 0.4
            found[i, j] = mmlfer.compound(p)
    assert sorted(k for k in found.values() if k is not None) == list(range(14))
    assert [pair for pair, k in found.items() if k is None] == [(3, 5)]


@pytest.fixture
def sources(tmp_path):
    """A small RAF-ML and RAF-AU: ties of each kind, one image in each alone, one discarded."""
    ml, au = tmp_path / "ml", tmp_path / "au"
    (ml / "EmoLabel").mkdir(parents=True), (au / "aligned").mkdir(parents=True)
    rows = [*DISTRIBUTIONS.values(), TIED_AND_DISCARDED]
    names = [f"{i:04d}.jpg" for i in range(1, len(rows) + 1)]
    lines = [f"{n} {' '.join(map(str, p))}\n" for n, p in zip(names, rows)]
    lines.append("0100.jpg 1 0 0 0 0 0\n")
    (ml / "EmoLabel/distribution.txt").write_text("".join(lines))
    aus = ["l12+R25", "null", "T24", "4", "1+4", "12", "1+2+25", "5"]
    (au / "RAFAU_label.txt").write_text("".join(f"{n} {a}\n" for n, a in zip(names, aus)) + "0200.jpg 77")
    for name in names[:6]:
        Image.new("RGB", (20, 20), "red").save(au / "aligned" / name.replace(".", "_aligned."))
    return ml, au


@pytest.mark.parametrize("copy", [False, True])
def test_build_makes_rafce_of_its_sources(sources, tmp_path, copy):
    ml, au = sources
    out = tmp_path / "rafce"
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", out, *(["--copy"] if copy else []))
    assert result.exit_code == 0, result.output
    assert "9 images in RAF-ML, 9 in RAF-AU, 8 in both" in result.output
    assert "discarded 1 whose" in result.output and "kept 7, 1 of them without an image" in result.output
    faces = mmlfer.load_labels(out)
    assert [mmlfer.EMOTIONS[k] for k in faces.y_emo] == list(DISTRIBUTIONS)
    assert (out / "RAFCE_AUlabel.txt").read_text().splitlines()[:3] == ["0001.jpg l12+R25", "0002.jpg null",
                                                                       "0003.jpg T24"]  # fmt: skip
    image = out / "aligned/0001_aligned.jpg"
    assert image.is_symlink() != copy and Image.open(image).size == (20, 20)
    again = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", out)
    assert again.exit_code == 1 and "not empty" in again.stderr


def test_build_takes_an_official_partition(sources, tmp_path):
    ml, au = sources
    (au / "RAFCE_partition.txt").write_text("".join(f"{i:04d}.jpg {i % 3}\n" for i in range(1, 8)))
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert str(au / "RAFCE_partition.txt") in result.output
    assert mmlfer.load_labels(tmp_path / "o").split.tolist() == [1, 2, 0, 1, 2, 0, 1]


def test_build_complains_in_one_line(sources, tmp_path):
    ml, au = sources
    (au / "RAFAU_label.txt").write_text("0001.jpg 12\n0002.jpg 77\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert result.stderr == (f"Error: {au}/RAFAU_label.txt:2: AU 77 is not one of the 32 AUs of RAF-CE; "
                             "mend this row\n")  # fmt: skip
    (ml / "EmoLabel/distribution.txt").write_text("0001.jpg 1 2 3\n")
    result = invoke("build", "--raf-ml", ml, "--raf-au", au, "--out", tmp_path / "o")
    assert "distribution.txt:1: expected an image name and 6 values, got 4 fields" in result.stderr
    result = invoke("build", "--raf-ml", tmp_path / "no", "--raf-au", au, "--out", tmp_path / "o")
    assert result.exit_code == 1 and "no distribution.txt there" in result.stderr
    assert not (tmp_path / "o").exists()


# ---------------------------------------------------------------- Table 1


def naive_frequencies(folder):
    emo, rows = {}, {}
    for line in (folder / "RAFCE_emolabel.txt").read_text().splitlines():
        name, k = line.split()
        emo[name] = int(k)
    for line in (folder / "RAFCE_AUlabel.txt").read_text().splitlines():
        name, text = line.split()
        numbers = set() if text == "null" else {int(t.strip("LRTB")) for t in text.split("+")}
        rows.setdefault(emo[name], []).append(numbers)
    return {(mmlfer.EMOTIONS[k], au): sum(au in r for r in of_k) / len(of_k)
            for k, of_k in rows.items() for au in mmlfer.AUS}  # fmt: skip


def test_statistics_match_a_naive_count(faces_folder, tmp_path):
    labels = tmp_path / "labels"  # label files alone, no images
    labels.mkdir()
    for name in mmlfer.LABEL_FILES:
        shutil.copy(faces_folder / name, labels)
    result = invoke("stats", "--data", labels, "--out", tmp_path / "s.yaml", "--against", "wild")
    assert result.exit_code == 0, result.output
    naive, written = naive_frequencies(faces_folder), yaml.safe_load((tmp_path / "s.yaml").read_text())
    for (emotion, au), p in naive.items():
        assert written[emotion].get(au, 0) == pytest.approx(p if p >= 0.2 else 0, abs=1e-4)
    header, _, first = result.stdout.splitlines()[:3]
    for column, cell in list(zip(header.split("|"), first.split("|")))[2:-1]:
        p = naive["happily surprised", int(column.split()[1])]
        assert cell.strip() == ("" if p < 0.2 else f"**{100 * p:.0f}**" if p >= 0.7 else f"{100 * p:.0f}")
    assert "here: " in result.output and "there: 13 observed AUs; AU 12 in 10 and AU 25 in 14" in result.output
    assert "0.73 prototypical + 2.12 variant = 2.85 observed" in result.output


def test_statistics_written_are_statistics_read(tmp_path):
    mmlfer.write_labels(tmp_path, *zip(*[(f"{i}.jpg", i % 14, 0, "12+25" if i < 28 else "4") for i in range(42)]))
    assert invoke("stats", "--data", tmp_path, "--out", tmp_path / "s.yaml").exit_code == 0
    table = mmlfer.load_stats(str(tmp_path / "s.yaml"))
    assert np.allclose(table[:, [mmlfer.AUS.index(a) for a in (12, 25, 4)]], [[0.6667, 0.6667, 0.3333]] * 14)


def test_lab_against_wild_gives_the_papers_observations():
    lab, wild = mmlfer.load_stats("lab"), mmlfer.load_stats("wild")
    text = mmlfer.observations(wild, lab)
    assert "observed here only: AU 16, 27" in text
    assert "observed there only: AU 7, 15, 17" not in text and "AU 7, 15, 20, 24" in text
    assert "AU 12 in 4 and AU 25 in 11" in text


def test_heat_map_has_both_tables(faces_folder, tmp_path):
    result = invoke("stats", "--data", faces_folder, "--against", "lab", "--plot", tmp_path / "h.png")
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "h.png").size[0] > 800


# ---------------------------------------------------------------- Tables 2 and 3


def fake_run(folder, method, form, seed, pred, truth, rafce=False):
    confusion = mmlfer.confusion_matrix(truth, pred)
    best = {"epoch": 1, **mmlfer.expression_metrics(confusion), "pred": list(pred)}
    run = {"method": method, "form": form, "stats": form, "seed": seed, "rafce": rafce, "best": best,
           "names": [f"{i}.jpg" for i in range(len(truth))], "truth": list(truth)}  # fmt: skip
    (folder / f"{method}-{form}-{seed}").mkdir(parents=True)
    (folder / f"{method}-{form}-{seed}" / "test.json").write_text(json.dumps(run))


def test_mcnemar_by_hand():
    assert mmlfer.mcnemar(0, 0) == 1
    assert mmlfer.mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mmlfer.mcnemar(1, 8) == mmlfer.mcnemar(8, 1)
    naive = sum(math.comb(20, k) for k in range(21) if abs(k - 10) >= 5) / 2**20
    assert mmlfer.mcnemar(15, 5) == pytest.approx(naive)


def test_table_gives_means_spread_and_signal(tmp_path):
    truth = [0] * 10 + [1] * 10
    fake_run(tmp_path, "mml", "wild", 0, [0] * 10 + [1] * 10, truth)  # 100 %
    fake_run(tmp_path, "mml", "wild", 1, [0] * 9 + [1] * 11, truth)  # 95 %
    fake_run(tmp_path, "stl", "wild", 0, [0] * 20, truth)  # 50 %
    fake_run(tmp_path, "stl", "wild", 1, [0] * 18 + [1] * 2, truth)  # 60 %
    fake_run(tmp_path, "mtl", "wild", 0, [0] * 11 + [1] * 9, truth)  # 95 %
    result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert result.exit_code == 0 and result.stdout == text + "\n"
    assert "| mml wild | 2 | 97.50 ± 3.54 | 97.50 ± 3.54 |\n" in text
    assert "| mtl | 1 | 95.00 | 95.00 |\n" in text
    assert "| happily disgusted | 10 | 10.00 ± 14.14 | 90.00 | 100.00 ± 0.00 |" in text
    assert "| mml wild - stl | 42.50 ± 10.61 | 10:0 p=0.002, 8:1 p=0.039 | signal |" in text
    assert "| mml wild - mtl | 5.00 | 1:0 p=1.000 | within noise |" in text
    assert "paper's Acc." not in text and "Not RAF-CE" in text


def test_the_papers_column_stands_beside_rafce_alone(tmp_path):
    fake_run(tmp_path, "mml", "wild", 0, [0], [0], rafce=True)
    text = mmlfer.results(tmp_path)
    assert "| mml wild | 1 | 100.00 | 100.00 | 55.23 / 31.68 |" in text
    fake_run(tmp_path, "stl", "wild", 0, [0], [0], rafce=False)
    assert "55.23" not in mmlfer.results(tmp_path)


def test_table_refuses_what_it_cannot_pair(tmp_path):
    result = invoke("table", tmp_path)
    assert result.exit_code == 1 and "no test.json below it" in result.stderr
    fake_run(tmp_path, "mml", "wild", 0, [0, 1], [0, 0])
    fake_run(tmp_path, "stl", "wild", 0, [0], [0])
    result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
    assert result.exit_code == 1 and "other test images than" in result.stderr
    shutil.rmtree(tmp_path / "stl-wild-0")
    fake_run(tmp_path / "again", "mml", "wild", 0, [0, 1], [0, 0])
    assert "mml wild with seed 0 stands below" in invoke("table", tmp_path, "--out", tmp_path / "r.md").stderr


def test_runs_with_statistics_of_ones_own_are_not_the_papers(tmp_path):
    fake_run(tmp_path, "mml", "wild", 0, [0, 1], [0, 0], rafce=True)
    path = tmp_path / "mml-wild-0/test.json"
    path.write_text(path.read_text().replace('"stats": "wild"', '"stats": "mine.yaml"'))
    text = mmlfer.results(tmp_path)
    assert "| mml mine.yaml | 1 | 50.00 | 50.00 |  |" in text and "55.23" not in text


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"method": []}', "[" * 100000])
def test_table_refuses_strange_files(tmp_path, text):
    (tmp_path / "test.json").write_text(text)
    result = invoke("table", tmp_path, "--out", tmp_path / "r.md")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}/test.json: not a run's test.json")


# ---------------------------------------------------------------- figures and predictions


def test_gradcam_matches_gradients_by_hand():
    torch.manual_seed(0)
    net = mmlfer.make_base_net().double().eval()
    x = random_batch(3, size=64)[0]
    maps, z_emo, _ = mmlfer.gradcam(net, x)
    stage = x.double() / 255
    stage = (stage - 0.5) / 0.5
    for name, layer in net.backbone.named_children():
        if name == "avgpool":
            break
        stage = layer(stage)
    # z_k = w_k . mean over space of A + b, so d z_k / d A_c = w_kc / (h w) everywhere
    for i in range(3):
        w = net.fe.weight[z_emo[i].argmax()] / stage[i, 0].numel()
        by_hand = (w[:, None, None] * stage[i]).sum(0).relu()[None, None]
        by_hand = torch.nn.functional.interpolate(by_hand, (64, 64), mode="bilinear")[0, 0]
        assert torch.allclose(maps[i], by_hand / by_hand.max(), rtol=1e-9, atol=1e-12)
    other, *_ = mmlfer.gradcam(net, x, torch.tensor([3, 3, 3]))
    assert not torch.allclose(other, maps)
    assert not net.backbone.layer4._forward_hooks


def test_figures_of_a_run(trained, faces_folder, tmp_path):
    out, _ = trained
    assert invoke("plot", out).output.split() == [f"{out}/curves.png", f"{out}/confusion.png"]
    faces = sorted((faces_folder / "aligned").iterdir())[:2]
    result = invoke("gradcam", "--ckpt", out / "best.pt", *faces, "--out", tmp_path / "g.foo")
    assert result.exit_code == 1 and "name it like figure.png" in result.stderr
    result = invoke("gradcam", "--ckpt", out / "best.pt", "--ckpt", out / "last.pt", *faces, "--out", tmp_path / "g.png")
    assert result.exit_code == 0, result.output
    for path in (out / "curves.png", out / "confusion.png", tmp_path / "g.png"):
        picture = np.asarray(Image.open(path).convert("L"))
        assert min(picture.shape) > 500 and picture.std() > 10
        path.unlink()


@pytest.mark.parametrize("name,text", [("config.yaml", "a: [1"), ("config.yaml", "text"), ("test.json", "[]"),
                                       ("log.csv", "a,b\n1,2\n")])  # fmt: skip
def test_plot_refuses_what_is_no_run(trained, tmp_path, name, text):
    for file in ("config.yaml", "test.json", "log.csv"):
        shutil.copy(trained[0] / file, tmp_path)
    (tmp_path / name).write_text(text)
    result = invoke("plot", tmp_path)
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}: not a finished run")


def test_curves_have_the_right_axes(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(mmlfer, "save_figure", lambda plt, figure, path: kept.append(figure))
    log = [{"epoch": e, "val_acc": e / 4, "val_diag": 0.1, "w_au": 0.5, "w_am": 0.2} for e in (1, 2, 3)]
    mmlfer.plot_curves(log, 169, tmp_path / "c.png")
    left, right = kept[0].axes
    assert left.get_xlabel() == right.get_xlabel() == "iteration" and right.get_ylabel() == "weight"
    assert left.lines[0].get_xdata().tolist() == [169, 338, 507]
    assert left.lines[0].get_ydata().tolist() == [25, 50, 75]
    assert [line.get_ydata()[0] for line in right.lines] == [0.5, 0.2]


def test_truth_is_known_for_images_of_the_data_alone(faces_folder, tmp_path):
    inside = faces_folder / "aligned/0001_aligned.jpg"
    shutil.copy(inside, tmp_path / "0001_aligned.jpg")
    labels = mmlfer.load_labels(faces_folder)
    truths = mmlfer.known_truths([inside, tmp_path / "0001_aligned.jpg"], faces_folder)
    assert truths == [mmlfer.EMOTIONS[labels.y_emo[0]], None]
    assert mmlfer.known_truths([inside], tmp_path / "gone") == [None]


def test_without_matplotlib_a_line_says_how_to_get_it(trained, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    result = invoke("plot", trained[0])
    assert result.stderr == "Error: figures need matplotlib: pip install -e '.[plot]'\n"


def test_predict_names_expressions_and_aus(trained, faces_folder, tmp_path):
    out, _ = trained
    result = invoke("predict", "--ckpt", out / "best.pt", faces_folder / "aligned", "--top", 2, "--json",
                    "--csv", tmp_path / "p.csv")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [r["image"] for r in rows] == [str(p) for p in sorted((faces_folder / "aligned").iterdir())]
    for row in rows:
        first, second = row["expressions"]
        assert first["name"] in mmlfer.EMOTIONS and 1 >= first["p"] >= second["p"] >= 0
        assert all(a["name"] == mmlfer.AU_NAMES[a["au"]] and a["p"] > 0.5 for a in row["aus"])
    table = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert list(table[0]) == ["image", "expression_1", "p_1", "expression_2", "p_2", "aus"]
    assert [t["expression_1"] for t in table] == [r["expressions"][0]["name"] for r in rows]


def test_predict_agrees_with_eval(trained, faces_folder):
    out, _ = trained
    faces = mmlfer.load_labels(faces_folder)
    test = {n: mmlfer.EMOTIONS[k] for n, k, s in zip(faces.names, faces.y_emo, faces.split) if s == mmlfer.TEST}
    paths = [faces_folder / "aligned" / n.replace(".", "_aligned.") for n in test]
    rows = json.loads(invoke("predict", "--ckpt", out / "best.pt", *paths, "--json").stdout)
    right = sum(r["expressions"][0]["name"] == k for r, k in zip(rows, test.values()))
    numbers = json.loads(invoke("eval", "--ckpt", out / "best.pt", "--json").stdout)
    assert right / len(rows) == pytest.approx(numbers["accuracy"])


def test_predict_skips_and_names_what_it_cannot_read(trained, faces_folder, tmp_path):
    shutil.copy(faces_folder / "aligned/0001_aligned.jpg", tmp_path / "b.jpg")
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    result = invoke("predict", "--ckpt", trained[0] / "best.pt", tmp_path, "--json")
    assert result.exit_code == 1 and f"Warning: skipped {tmp_path}" in result.stderr.replace("cannot identify image file '", "")
    assert [r["image"] for r in json.loads(result.stdout)] == [str(tmp_path / "b.jpg")]
    (tmp_path / "empty").mkdir()
    result = invoke("predict", "--ckpt", trained[0] / "best.pt", tmp_path / "empty")
    assert result.exit_code == 1 and "no images" in result.stderr
    assert "no such file" in invoke("predict", "--ckpt", trained[0] / "best.pt", tmp_path / "gone").stderr


def test_memory_stays_flat_over_predictions(trained, faces_folder):
    from test_train import resident_mb

    sizes = []
    for i in range(8):
        assert invoke("predict", "--ckpt", trained[0] / "best.pt", faces_folder / "aligned").exit_code == 0
        sizes += [resident_mb()] if i in (3, 7) else []
    assert sizes[1] - sizes[0] < 20, sizes


# ---------------------------------------------------------------- run.sh


def test_run_sh_without_data_says_how_to_get_it(tmp_path):
    result = subprocess.run(["bash", ROOT / "run.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "no RAF-CE in ./rafce. Ask for it at" in result.stderr
    assert "synth ./rafce" in result.stderr and not list(tmp_path.iterdir())


def test_help_is_complete_and_light():
    names = [c for c in mmlfer.main.commands]
    assert names == ["train", "eval", "synth", "demo", "build", "stats", "table", "plot", "gradcam", "predict",
                     "bench"]  # fmt: skip
    for name, command in mmlfer.main.commands.items():
        text = run_program(name, "--help").stdout if name == "train" else invoke(name, "--help").output
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help and parameter.opts[0] in text, (name, parameter.name)
    code = "import sys, mmlfer; print([m for m in ('torchvision', 'matplotlib') if m in sys.modules]); " \
           "print('torch.nn' in sys.modules)"  # fmt: skip
    import sys

    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split("\n")[:2] == ["[]", "False"]
