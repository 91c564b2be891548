"""Backbones from anywhere: what `--weights` takes, what it refuses, and that every tensor arrives."""

import argparse
import collections
import functools
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import torchvision
from conftest import SMALL, invoke, run_of

import mmlfer
from mmlfer_commands import _backbones

STAGES = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}

pytestmark = pytest.mark.usefixtures("real_resnet18")


@pytest.fixture(scope="module")
def source():
    """A torchvision ResNet-18 with running statistics, counts and biases away from their start."""
    torch.manual_seed(4)
    net = torchvision.models.resnet18()
    for value in net.state_dict().values():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand(len(value)) + 0.5)
        elif not value.is_floating_point():
            value.fill_(7)
    return net.state_dict()


def bare(state):
    return {k: v for k, v in state.items() if not k.startswith("fc.")}


def saved(content, path):
    torch.save(content, path)
    return str(path)


def start(weights, arch="resnet18", **options):
    return _backbones.start_base_net(weights, arch, **options)


def assert_backbone(net, expected):
    """All of the backbone's tensors equal these, under torchvision's own names."""
    own = net.backbone.state_dict()
    assert own.keys() == bare(expected).keys()
    wrong = [k for k, v in own.items() if not torch.equal(v, expected[k])]
    assert not wrong


# ---------------------------------------------------------------- what is taken


@pytest.mark.parametrize("wrapper", [
    (), ("state_dict",), ("model",), ("backbone",), ("net",), ("model_state_dict",), ("net_state_dict",),
    ("model_state",), ("ema",), ("model", "state_dict"), ("state_dict", "net")])
def test_every_wrapper_is_taken_off(source, tmp_path, wrapper):
    content = bare(source)
    for key in reversed(wrapper):
        content = {"epoch": 3, key: content, "optimizer": {"lr": 0.1}}
    net, origin = start(saved(content, tmp_path / "w.pth"))
    assert_backbone(net, source)
    assert origin == f"took 120 tensors from {tmp_path}/w.pth"
    assert net.mean.flatten().tolist() == net.std.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize("prefix", [
    "module.", "backbone.", "encoder.", "model.", "net.", "base.", "base_model.", "resnet.", "feature.", "features.",
    "encoder_q.", "module.feature.", "module.backbone.", "module.encoder_q.", "_orig_mod.", "module._orig_mod.",
    "_orig_mod.module.backbone._orig_mod."])
def test_every_prefix_is_taken_off(source, tmp_path, prefix):
    content = {prefix + k: v for k, v in source.items()}
    net, origin = start(saved(content, tmp_path / "w.pth"))
    assert_backbone(net, source)
    assert origin == f"took 120 tensors from {tmp_path}/w.pth, left out {prefix}fc.weight, {prefix}fc.bias"


def test_layers_that_were_compiled_one_by_one(source, tmp_path):
    content = {re.sub(r"^(layer\d\.\d)\.", r"\1._orig_mod.", k): v for k, v in source.items()}
    assert_backbone(start(saved(content, tmp_path / "w.pth"))[0], source)


@pytest.mark.parametrize("prefix", ["", "features.", "module.features.", "backbone."])
def test_the_sequential_form(source, tmp_path, prefix):
    """Of nn.Sequential(*list(resnet.children())[:-1])."""
    content = {}
    for name, value in bare(source).items():
        stage, rest = name.split(".", 1)
        content[f"{prefix}{STAGES[stage]}.{rest}"] = value
    net, origin = start(saved(content, tmp_path / "w.pth"))
    assert_backbone(net, source)
    assert origin == f"took 120 tensors from {tmp_path}/w.pth"


def test_heads_are_left_out_and_named(source, tmp_path):
    heads = {"module.feature.weight": torch.ones(2, 512), "module.feature.bias": torch.ones(2), "alpha.0.weight": 1,
             "head.weight": torch.ones(3), "note": "hello"}
    content = {"state_dict": {**{f"module.{k}": v for k, v in bare(source).items()}, **heads}}
    net, origin = start(saved(content, tmp_path / "w.pth"))
    assert_backbone(net, source)
    assert origin == f"took 120 tensors from {tmp_path}/w.pth, left out module.feature, alpha.0, head, note"


def test_the_second_encoder_of_momentum_contrast_is_left_out(source, tmp_path):
    content = {f"module.encoder_q.{k}": v for k, v in bare(source).items()}
    content |= {f"module.encoder_k.{k}": v * 0 for k, v in bare(source).items()}
    net, origin = start(saved(content, tmp_path / "w.pth"))
    assert_backbone(net, source)
    assert "left out module.encoder_k.conv1, module.encoder_k.bn1, " in origin and origin.endswith(", ...")


def test_files_from_before_batchnorm_counted(source, tmp_path):
    old = {k: v for k, v in bare(source).items() if not k.endswith("num_batches_tracked")}
    net, origin = start(saved(old, tmp_path / "w.pth"))
    assert origin == f"took 100 tensors from {tmp_path}/w.pth"
    assert_backbone(net, {**source, **{k: torch.tensor(0) for k in source if k not in old}})


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch's
def test_half_precision_and_sparse_tensors_are_taken(source, tmp_path):
    content = {k: v.half() if v.is_floating_point() else v for k, v in bare(source).items()}
    content["bn1.weight"] = content["bn1.weight"].float().to_sparse()
    net, _ = start(saved(content, tmp_path / "w.pth"))
    assert torch.allclose(net.backbone.layer4[1].bn2.running_var, source["layer4.1.bn2.running_var"], atol=1e-3)
    assert torch.allclose(net.backbone.bn1.weight, source["bn1.weight"], atol=1e-3)


@pytest.mark.parametrize("name", ["w.safetensors", "W.SafeTensors"])
def test_safetensors(source, tmp_path, monkeypatch, name):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / name
    safetensors.save_file({f"model.{k}": v for k, v in source.items()}, path)
    net, _ = start(str(path))
    assert_backbone(net, source)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(mmlfer.InputError, match=re.escape(f"{path}: not a checkpoint that can be read safely")):
        start(str(path))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(mmlfer.InputError) as error:
        start(str(path))
    assert str(error.value) == f"{path}: reading it takes: pip install safetensors"


def test_weights_trained_on_bgr_see_the_same_with_rgb(source, tmp_path):
    """conv1's channels are reversed: the net's output for RGB is the output of the file's own net for BGR."""
    path = saved(source, tmp_path / "w.pth")
    net, _ = start(path, bgr=True)
    rgb = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    reference = torchvision.models.resnet18()
    reference.load_state_dict(source)
    reference.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(net.backbone.eval()(rgb), reference.eval()(rgb[:, [2, 1, 0]]), atol=1e-4)
    result = _backbones.load_backbone(path, "resnet18", False, "auto")[0]
    assert_backbone(result, source)


@pytest.mark.parametrize("weights", ["none", "imagenet", "auto"])
def test_the_order_of_colours_is_said_of_a_file_alone(tmp_path, monkeypatch, weights):
    monkeypatch.setattr(_backbones, "HERE", tmp_path)
    monkeypatch.setattr(_backbones, "load_imagenet", lambda *_: pytest.fail("was taken"))
    monkeypatch.chdir(tmp_path)  # where auto finds no file
    with pytest.raises(mmlfer.InputError, match="--weights-bgr: says how a file was trained; name it with --weights"):
        start(weights, bgr=True)


@pytest.mark.parametrize("norm,mean,std", [("auto", [0.5] * 3, [0.5] * 3), ("half", [0.5] * 3, [0.5] * 3),
                                           ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
def test_the_normalisation_asked_for(source, tmp_path, norm, mean, std):
    path = saved(source, tmp_path / "w.pth")
    for weights in (path, "none"):
        net, _ = start(weights, norm=norm)
        assert net.mean.flatten().tolist() == pytest.approx(mean) and net.std.flatten().tolist() == pytest.approx(std)


# ---------------------------------------------------------------- runs of ours, ImageNet, CASIA


def test_a_run_of_ours_brings_its_normalisation(tmp_path):
    run = run_of(mmlfer.Config(data="-", arch="resnet18", weights="none", device="cpu"), 1)
    state = mmlfer.inference_state(run)
    state["net"] |= {"mean": torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), "std": torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)}
    path = saved(state, tmp_path / "best.pt")
    net, origin = start(path)
    assert net.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert net.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert_backbone(net, {k.removeprefix("backbone."): v for k, v in state["net"].items() if k.startswith("backbone.")})
    assert origin == f"took 120 tensors from {path}, left out fe.weight, fe.bias, au.weight, au.bias"
    net, _ = start(path, norm="half")  # the command line decides
    assert net.mean.flatten().tolist() == [0.5] * 3
    with pytest.raises(mmlfer.InputError, match="trained on RGB by mmlfer; leave out --weights-bgr"):
        start(path, bgr=True)
    for broken in ("text", torch.zeros(2), None):
        saved({**state, "net": {**state["net"], "mean": broken}}, tmp_path / "best.pt")
        with pytest.raises(mmlfer.InputError, match="of another version, or damaged"):
            start(path)


def test_the_options_reach_the_run(source, tmp_path):
    """--weights, --weights-bgr and --weights-norm of `train`, seen in the checkpoint's net."""
    path = saved(source, tmp_path / "w.pth")
    cfg = mmlfer.Config(data="-", method="stl", arch="resnet18", weights=path, weights_bgr=True, weights_norm="imagenet",
                        device="cpu")
    run = run_of(cfg, 1)
    assert torch.equal(run.net.backbone.conv1.weight, source["conv1.weight"].flip(1))
    assert torch.equal(run.net.backbone.layer2[1].bn1.running_mean, source["layer2.1.bn1.running_mean"])
    assert run.net.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_imagenet_weights_without_a_network_end_in_one_line(monkeypatch):
    def offline(self, *args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(mmlfer.InputError, match=r"--weights imagenet: no download of https.*no route"):
        start("imagenet")


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_imagenet_brings_its_tensors_and_its_normalisation(monkeypatch, arch):
    torch.manual_seed(6)
    state = getattr(torchvision.models, arch)().state_dict()
    state["bn1.running_mean"] += 3
    weights = torchvision.models.get_model_weights(arch)
    assert weights.IMAGENET1K_V1.transforms().mean == list(mmlfer.NORMS["imagenet"][0])
    assert weights.IMAGENET1K_V1.transforms().std == list(mmlfer.NORMS["imagenet"][1])
    asked = []
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **k: asked.append((self, k)) or state)
    net, origin = start("imagenet", arch)
    assert_backbone(net, state)
    assert asked == [(weights.IMAGENET1K_V1, {"progress": False, "check_hash": True})]
    assert net.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert net.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert origin == "ImageNet's, from torchvision"
    net, _ = start("imagenet", arch, norm="half")
    assert net.mean.flatten().tolist() == [0.5] * 3


def test_a_net_of_your_own_expressions_starts_from_any_of_these_files(source, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.models.get_model_weights("resnet18"), "get_state_dict", lambda self, **options: source)
    own = mmlfer.Vocabulary(("calm", "joy", "rage"), (1, 2, 4, 12, 45))
    for weights in ("none", "imagenet", saved(source, tmp_path / "w.pth")):
        net, _ = start(weights, vocabulary=own)
        assert net.vocabulary == own and net.fe.weight.shape == (3, 512) and net.au.weight.shape == (5, 512)


def test_auto_takes_the_casia_file_of_the_checkout_then_of_the_current_folder(source, tmp_path, monkeypatch):
    here, current = tmp_path / "checkout", tmp_path / "current"
    for folder, value in ((here, 1.0), (current, 2.0)):
        (folder / "weights").mkdir(parents=True)
        torch.save({**source, "bn1.bias": torch.full((64,), value)}, folder / "weights/resnet18_casia.pth")
    monkeypatch.setattr(_backbones, "HERE", here)
    monkeypatch.chdir(current)
    bias = lambda *a, **k: start(*a, **k)[0].backbone.bn1.bias.unique().tolist()  # noqa: E731
    assert bias("auto") == [1.0]
    assert "from scratch" in start("none")[1]
    assert "from scratch" in start("auto", "resnet34")[1]  # it has a file of its own name
    shutil.rmtree(here / "weights")
    assert bias("auto") == [2.0]
    shutil.rmtree(current / "weights")
    assert "from scratch" in start("auto")[1]


def test_a_file_called_none_is_a_file_where_it_has_a_path(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("none", "auto", "imagenet"):
        torch.save(source, name)
        assert start(f"./{name}")[1] == f"took 120 tensors from ./{name}, left out fc.weight, fc.bias"
    assert "from scratch" in start("none")[1]


# ---------------------------------------------------------------- what is refused


def refusal(content, path, arch="resnet18"):
    with pytest.raises(mmlfer.InputError) as error:
        start(saved(content, path), arch)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch's
def test_tensors_that_do_not_fit_are_listed(source, tmp_path):
    state = {**source, "bn1.weight": torch.zeros(3), "layer4.3.bn1.bias": torch.zeros(3)}
    del state["layer1.0.conv1.weight"]
    assert refusal(state, tmp_path / "w.pth") == (
        "not a whole resnet18, 3 tensors: layer4.3.bn1.bias has no place; bn1.weight (3,), not (64,); "
        "layer1.0.conv1.weight missing")
    state = {f"module.{k}": v * torch.nan if k == "layer2.0.bn1.running_var" else v for k, v in source.items()}
    assert refusal(state, tmp_path / "w.pth") == (
        "not a whole resnet18, 1 tensors: module.layer2.0.bn1.running_var not finite")
    sparse = (source["conv1.weight"] * torch.inf).to_sparse()
    assert "conv1.weight not finite" in refusal({**source, "conv1.weight": sparse}, tmp_path / "w.pth")
    assert refusal({"weights": torch.zeros(3)}, tmp_path / "w.pth") == (
        "not a whole resnet18, 100 tensors: conv1.weight missing; bn1.weight missing; bn1.bias missing; ...")
    assert refusal([1, 2], tmp_path / "w.pth") == "expected a state dict, got list"


@pytest.mark.parametrize("arch,other", [("resnet18", "resnet34"), ("resnet34", "resnet50"), ("resnet50", "resnet18")])
def test_a_file_of_another_size_says_which(tmp_path, arch, other):
    state = getattr(torchvision.models, other)().state_dict()
    message = refusal(state, tmp_path / "w.pth", arch)
    assert message.startswith(f"not a whole {arch}, ") and message.endswith(f"; it fits --arch {other}")


NO_WEIGHTS = {  # a change of a tensor, and what is said of it
    "int8": ("layer2.0.conv1.weight", lambda v: (10 * v).to(torch.int8),
             "of torch.int8, not of real floating-point numbers"),
    "complex": ("conv1.weight", lambda v: v.to(torch.complex64), "of torch.complex64, not of real floating-point numbers"),
    "variance": ("layer4.1.bn2.running_var", lambda v: torch.cat([v[:-1], -v[-1:]]), "below 0: no variance"),
    "meta": ("bn1.bias", lambda v: v.to("meta"), "without values: a meta tensor; save the net's own"),
    "meta count": ("bn1.num_batches_tracked", lambda v: v.to("meta"), "without values: a meta tensor; save the net's own"),
    "float64": ("layer1.0.bn1.weight", lambda v: v.double() + 1e300, "not finite"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_tensors_that_are_no_weights_are_refused(source, tmp_path, kind):
    name, change, why = NO_WEIGHTS[kind]
    assert refusal({**source, name: change(source[name])}, tmp_path / "w.pth") == (
        f"not a whole resnet18, 1 tensors: {name} {why}")


def test_a_file_of_meta_tensors_is_refused_without_naming_other_sizes(source, tmp_path):
    said = refusal({k: v.to("meta") for k, v in source.items()}, tmp_path / "w.pth")
    assert said.startswith("not a whole resnet18, 120 tensors: conv1.weight without values: ") and "--arch" not in said


def test_small_floats_are_taken(source, tmp_path):
    """bfloat16 and 8 bits; and integers where torchvision has them, in the counts of batches."""
    content = {**source, "bn1.weight": source["bn1.weight"].bfloat16(), "bn1.bias": source["bn1.bias"].to(torch.float8_e4m3fn)}
    net, _ = start(saved(content, tmp_path / "w.pth"))
    assert torch.allclose(net.backbone.bn1.weight, source["bn1.weight"], rtol=0.01)
    assert torch.allclose(net.backbone.bn1.bias, source["bn1.bias"], rtol=0.07)


@pytest.mark.parametrize("name,meant", [("ours.last.pt", "ours.pth"), ("copy", "copy.pth")])
def test_the_checkpoint_of_pretraining_names_the_file_to_give(source, tmp_path, name, meant):
    net = {f"backbone.{k}": v for k, v in bare(source).items()}
    assert refusal({"format": "mmlfer pretraining 1", "net": net}, tmp_path / name) == (
        f"what `mmlfer pretrain` resumes from; give {tmp_path}/{meant}, which it writes at its end")


def test_two_backbones_in_one_file_are_refused(source, tmp_path):
    state = {**{f"backbone.{k}": v for k, v in source.items()}, **{f"encoder.{k}": v * 2 for k, v in source.items()}}
    assert refusal(state, tmp_path / "w.pth") == (
        "two backbones, backbone.conv1.weight and encoder.conv1.weight; keep one of them")


@pytest.mark.parametrize("keys", [
    {"conv1.weight": (64, 3, 3, 3), "bn1.weight": (64,), "prelu.weight": (64,), "layer1.0.prelu.weight": (64,)},
    {"input_layer.0.weight": (64, 3, 3, 3), "body.0.res_layer.1.weight": (64, 64, 3, 3), "output_layer.3.weight": (512, 9)},
    {"layer1.0.PReLU.weight": (64,)}])
def test_parts_of_face_nets_are_refused(tmp_path, keys):
    """The whole files are in test_iresnet.py."""
    state = {"state_dict": {name: torch.zeros(shape) for name, shape in keys.items()}}
    message = refusal(state, tmp_path / "w.pth")
    assert message.startswith("not a whole resnet18, ") and "--arch" not in message


class Recorder:
    """A class of whoever wrote the file."""


STRANGE = {"a numpy scalar": np.float64(0.9), "a numpy array": np.zeros(3), "argparse.Namespace": argparse.Namespace(lr=0.1),
           "collections.defaultdict": collections.defaultdict(list), "pathlib.PosixPath": pathlib.PosixPath("runs"),
           "test_weights.Recorder": Recorder(), "functools.partial": functools.partial(int, "3")}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_holds_more_than_tensors_and_plain_values_names_the_type(source, tmp_path, name, zipped):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": source, "best": STRANGE[name]}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(mmlfer.InputError) as error:
        start(str(path))
    assert str(error.value) == (f"{path}: holds {name}; only tensors and plain values are read, because all else can run "
                                "code: where it was made, torch.save(net.state_dict(), FILE)")


def test_a_dict_that_holds_itself_ends(tmp_path):
    content = {"epoch": 1}
    content["net"] = content
    assert "not a whole resnet18" in refusal(content, tmp_path / "w.pth")


def test_a_refused_file_ends_train_in_one_line_before_anything_is_written(faces_folder, tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "w.pth")
    options = [*SMALL, "--weights", tmp_path / "w.pth"]
    result = invoke("train", "--data", faces_folder, "--out", tmp_path / "run", *options)
    assert result.exit_code == 1 and result.stderr == (
        f"Error: {tmp_path}/w.pth: not a whole resnet18, 100 tensors: conv1.weight (64, 3, 3, 3), not (64, 3, 7, 7); "
        "bn1.weight missing; bn1.bias missing; ...\n")
    assert not (tmp_path / "run").exists()


def test_a_backbone_is_normalised_as_it_was_trained():
    """The net takes pixels 0..255 and by default maps them to -1..1."""
    net, seen = mmlfer.make_base_net("resnet34", ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))), []
    net.backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    net.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.fe = net.au = torch.nn.Identity()
    net(torch.tensor([255, 102, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([1, 0, -1.5], abs=1e-6)
    assert mmlfer.make_base_net().mean.flatten().tolist() == mmlfer.make_base_net().std.flatten().tolist() == [0.5] * 3
