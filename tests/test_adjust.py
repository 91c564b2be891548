"""Logit adjustment, in training and afterwards, and the figure that chooses the epoch."""

import csv
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL, invoke, load
from test_bilevel import grad_psi, make_run, random_batch

import mmlfer
from mmlfer_commands import _models, _stats, export, predict, serve, train, video


def test_l_emo_is_of_z_plus_tau_log_p():
    rng = np.random.default_rng(4)
    z, y, p, tau = rng.normal(0, 2, (6, 3)), [0, 1, 2, 2, -1, 0], [0.7, 0.2, 0.1], 0.6
    losses = mmlfer.loss_emo(torch.tensor(z), torch.tensor(y), tau * _stats.log_prior(p).double())
    for row, k, loss in zip(z, y, losses.tolist()):
        moved = [math.exp(v) * q**tau for v, q in zip(row, p)]
        assert loss == pytest.approx(-math.log(moved[k] / sum(moved)) if k >= 0 else 0, rel=1e-6)
    plain = mmlfer.loss_emo(torch.tensor(z), torch.tensor(y))
    assert torch.equal(plain, mmlfer.loss_emo(torch.tensor(z), torch.tensor(y), torch.zeros(3)))


def test_expressions_without_a_training_row_are_not_moved():
    assert _stats.log_prior([0.25, 0.0, 0.75]).tolist() == pytest.approx([math.log(0.25), 0, math.log(0.75)])


def test_the_prior_is_of_named_training_rows_alone():
    names, vocabulary = [""] * 6, mmlfer.Vocabulary(("a", "b", "c"), (1,))
    shares = np.array([[0.5, 0.5, 0]] * 2 + [[math.nan] * 3] * 2 + [[0, 0, 1]] * 2, np.float32)
    faces = mmlfer.Faces(names, np.array([0, 1, 1, -1, 2, -1]), np.array([0, 0, 0, 0, 1, 0]), np.ones((6, 1), np.int8),
                         vocabulary=vocabulary, shares=shares)
    assert faces.prior("hard") == pytest.approx([1 / 3, 2 / 3, 0])
    assert faces.prior("soft") == pytest.approx([1 / 4, 2 / 4, 1 / 4])  # 0.5 + 0.5, 0.5 + 0.5 + 1, 0 + 1
    assert dataclasses.replace(faces, shares=None).prior("hard") == pytest.approx([1 / 3, 2 / 3, 0])


@pytest.mark.parametrize("form", ["jvp", "general"])
def test_the_hypergradients_agree_and_feel_the_shift(form):
    batch, val, forms = random_batch(4), random_batch(4, seed=1), []
    for hypergrad, shift in (("create_graph", 1), (form, 1), (form, 0)):
        run = make_run(hypergrad=hypergrad)
        run.shift = shift * torch.linspace(-6, 0, 14).double()
        forms.append(torch.cat([g.flatten() for g in grad_psi(run, batch, val)]))
    assert torch.allclose(*forms[:2], rtol=1e-8, atol=1e-14)
    assert not torch.allclose(*forms[1:], rtol=1e-2)


@pytest.fixture(scope="module")
def skewed(faces_folder, trained, tmp_path_factory):
    """A checkpoint whose training rows are far from even, and what its z_emo should be lowered by for tau = 1."""
    out = tmp_path_factory.mktemp("skewed")
    ckpt = trained[0] / "best.pt"
    prior = np.arange(1.0, 15) ** 3
    torch.save({**load(ckpt), "prior": (prior / prior.sum()).tolist()}, out / "best.pt")
    shutil.copy(trained[0] / "test.json", out)
    return out / "best.pt", np.log(prior / prior.sum())


def adjusted(ckpt, log_p, tau, folder):
    """p_emo of a checkpoint's faces, lowered by hand: p exp(-tau log p_k), divided by the sum."""
    net, _ = mmlfer.load_net(ckpt, "cpu")
    images = sorted((folder / "aligned").iterdir())
    p_emo, _ = mmlfer.predict_faces(net, mmlfer.as_batch([mmlfer.read_image(path, 32) for path in images]))
    odds = p_emo * np.exp(-tau * log_p)
    return images, odds / odds.sum(1, keepdims=True)


def test_the_checkpoint_holds_what_the_training_rows_say(trained, faces_folder):
    with open(faces_folder / "RAFCE_partition.txt") as file:
        parts = dict(line.split() for line in file)
    with open(faces_folder / "RAFCE_emolabel.txt") as file:
        of_train = [int(k) for name, k in map(str.split, file) if parts[name] == "0"]
    wanted = [of_train.count(k) / len(of_train) for k in range(14)]
    assert load(trained[0] / "best.pt")["prior"] == load(trained[0] / "last.pt")["prior"] == pytest.approx(wanted)


@pytest.mark.parametrize("tau", [0.5, 1])
def test_predict_and_eval_lower_z_by_tau_log_p(skewed, faces_folder, tmp_path, tau):
    ckpt, log_p = skewed
    images, p_emo = adjusted(ckpt, log_p, tau, faces_folder)
    assert (p_emo.argmax(1) != adjusted(ckpt, log_p, 0, faces_folder)[1].argmax(1)).any()
    result = invoke("predict", "--ckpt", ckpt, "--logit-adjust", tau, "--json", faces_folder / "aligned")
    answers = {answer["image"]: list(answer["p_expressions"].values()) for answer in json.loads(result.stdout)}
    assert np.allclose([answers[str(path)] for path in images], p_emo, atol=1e-5)
    numbers = json.loads(invoke("eval", "--ckpt", ckpt, "--logit-adjust", tau, "--split", "all", "--data", faces_folder, "--json").stdout)
    with open(faces_folder / "RAFCE_emolabel.txt") as file:
        truth = {name.split(".")[0]: int(k) for name, k in map(str.split, file)}
    right = [truth[path.stem.removesuffix("_aligned")] == k for path, k in zip(images, p_emo.argmax(1))]
    assert numbers["accuracy"] == pytest.approx(np.mean(right)) and numbers["n"] == len(right)
    plain = json.loads(invoke("eval", "--ckpt", ckpt, "--split", "all", "--data", faces_folder, "--json").stdout)
    assert plain["au_f1"] == numbers["au_f1"] and plain["confusion"] != numbers["confusion"]


def test_an_exported_model_is_adjusted_once(skewed, faces_folder, tmp_path):
    ckpt, log_p = skewed
    assert invoke("export", "--ckpt", ckpt, "--logit-adjust", 1, "--out", tmp_path / "m").exit_code == 0
    images, p_emo = adjusted(ckpt, log_p, 1, faces_folder)
    answers = json.loads(invoke("predict", "--ckpt", tmp_path / "m", "--json", *images).stdout)
    assert np.allclose([list(answer["p_expressions"].values()) for answer in answers], p_emo, atol=1e-5)
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["options"]["logit_adjust"] == 1 and config["test"] is None
    assert "Not tested." in (tmp_path / "m/README.md").read_text()
    assert config["prior"] == pytest.approx(np.exp(log_p).tolist())
    result = invoke("predict", "--ckpt", tmp_path / "m", "--logit-adjust", 1, images[0])
    assert (result.exit_code, result.stderr) == (1, f"Error: {tmp_path / 'm'}: was made with --logit-adjust 1 already; leave it out here\n")


def test_an_onnx_file_is_adjusted(skewed, faces_folder, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    ckpt, log_p = skewed
    assert invoke("export", "--ckpt", ckpt, "--logit-adjust", 0.5, "--out", tmp_path / "m.onnx").exit_code == 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    images, p_emo = adjusted(ckpt, log_p, 0.5, faces_folder)
    x = mmlfer.as_batch([mmlfer.read_image(path, 32) for path in images]).numpy()
    assert np.allclose(session.run(["expression"], {"image": x})[0], p_emo, atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["logit_adjust"]) == 0.5 and json.loads(facts["test_accuracy"]) is None


def test_checkpoints_that_cannot_be_adjusted_are_named(trained, tmp_path):
    ckpt = tmp_path / "best.pt"
    (tmp_path / "x.png").touch()
    state = load(trained[0] / "best.pt")
    for changed, wanted in (
            ({"prior": None}, "does not hold p(expression), which --logit-adjust needs; train it again"),
            ({"config": {**state["config"], "logit_adjust": 0.5}}, "was made with --logit-adjust 0.5 already; leave it out here"),
            ({"prior": [1.0]}, "of another version of mmlfer, or damaged"),
            ({"prior": ["a"] * 14}, "of another version of mmlfer, or damaged")):
        torch.save({**state, **changed}, ckpt)
        result = invoke("predict", "--ckpt", ckpt, "--logit-adjust", 1, tmp_path / "x.png")
        assert (result.exit_code, result.output.splitlines()[-1]) == (1, f"Error: {ckpt}: {wanted}")
    del state["prior"]  # as checkpoints without it were written
    torch.save(state, ckpt)
    assert _models.load_model(ckpt)[1]["prior"] is None


@pytest.mark.parametrize("command,room", [(("video", "a.mp4", "--out", "v"), video), (("serve", "--port", 0), serve),
                                          (("predict", "a.png"), predict), (("export", "--out", "m"), export)])
def test_tau_reaches_the_net(sketch, tmp_path, monkeypatch, command, room):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    seen = []
    monkeypatch.setattr(room, "load_model", lambda *args, **options: seen.append((args, options)) or 1 / 0)
    invoke(*command, "--ckpt", sketch, "--logit-adjust", 0.25)
    args, options = seen[0]
    assert 0.25 in (*args, *options.values())


@pytest.mark.parametrize("select,best", [("acc", 2), ("diag", 3), ("macro-f1", 1)])
def test_the_chosen_figure_chooses_the_epoch(faces_folder, tmp_path, monkeypatch, select, best):
    """Each figure is best in another epoch, and then as good once more."""
    figures = {"accuracy": [0.1, 0.5, 0.2, 0.5], "diag": [0.2, 0.1, 0.4, 0.4], "macro_f1": [0.6, 0.5, 0.1, 0.6]}
    evaluate, validated = train.evaluate, []

    def fixed(net, faces, *args):
        numbers = evaluate(net, faces, *args)
        if (faces.split == mmlfer.VAL).all():
            numbers |= {name: values[len(validated)] for name, values in figures.items()}
            validated.append(numbers)
        return numbers

    monkeypatch.setattr(train, "evaluate", fixed)
    words = ["train", "--out", tmp_path / "r", "--resume"]
    first = invoke(*words, "--data", faces_folder, *SMALL, "--method", "stl", "--epochs", 4, "--select", select)
    assert first.exit_code == 0, first.output
    assert load(tmp_path / "r/best.pt")["epoch"] == best
    rows = list(csv.DictReader((tmp_path / "r/log.csv").open()))
    assert [float(row["val_macro_f1"]) for row in rows] == figures["macro_f1"]
    assert json.loads((tmp_path / "r/test.json").read_text())["options"]["select"] == select


def test_tables_tell_adjusted_runs_apart(trained, tmp_path):
    """A run from before the options is of the same row as one with their defaults, and not as one without them."""
    shutil.copytree(trained[0], tmp_path / "a")
    run = json.loads((tmp_path / "a/test.json").read_text())
    for place, seed, changed in (("a", 0, {}), ("b", 1, None), ("c", 0, {"logit_adjust": 1.0}), ("d", 0, {"select": "diag"})):
        shutil.copytree(trained[0], tmp_path / place, dirs_exist_ok=True)
        options = {name: value for name, value in run["options"].items() if name not in ("logit_adjust", "select")}
        options = options if changed is None else {**run["options"], **changed}
        (tmp_path / place / "test.json").write_text(json.dumps({**run, "seed": seed, "options": options}))
    lines = invoke("table", tmp_path, "--out", "-").stdout.split("## ")[2].splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("| ") and "seeds" not in line and "---" not in line]
    method = run["method"]
    assert [[cell.strip() for cell in row] for row in rows][:3] == [
        [f"{method} wild, logit-adjust 0.0, select acc", "2"], [f"{method} wild, logit-adjust 0.0, select diag", "1"],
        [f"{method} wild, logit-adjust 1.0, select acc", "1"]]
