"""The IResNet family: a plain restatement of each layout, files in others' names, both forms of the hypergradient."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, SMALL_PRETRAINING, invoke, random_batch
from test_arch import grad_psi, make_run, val_loss_after_look_ahead
from test_bilevel import small_net
from test_gradcam import make_checkpoint
from test_weights import refusal, saved, start
from torch.nn import functional

import mmlfer
from mmlfer_commands import gradcam

BLOCKS = {"iresnet18": (2, 2, 2, 2), "iresnet34": (3, 4, 6, 3), "iresnet50": (3, 4, 14, 3), "iresnet100": (3, 13, 30, 3),
          "adaface-ir18": (2, 2, 2, 2), "adaface-ir50": (3, 4, 14, 3), "adaface-ir101": (3, 13, 30, 3),
          "evolve-ir50": (3, 4, 14, 3)}
COUNTS = {"iresnet18": 180, "iresnet34": 324, "iresnet50": 468, "iresnet100": 918, "adaface-ir18": 174,
          "adaface-ir50": 462, "adaface-ir101": 912, "evolve-ir50": 342}


def file_of(arch, seed=0):
    """A file's tensors as insightface, AdaFace and face.evoLVe write them, {key: tensor}, with random values; with what
    they have after the backbone."""
    state, random = {}, torch.Generator().manual_seed(seed)

    def norm(key, n):
        for name in ("weight", "running_var"):
            state[f"{key}.{name}"] = torch.rand(n, generator=random) + 0.5
        for name in ("bias", "running_mean"):
            state[f"{key}.{name}"] = torch.randn(n, generator=random) / 5
        state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    def conv(key, n, out, side):
        state[f"{key}.weight"] = torch.randn(out, n, side, side, generator=random) / (n * side * side) ** 0.5

    def slope(key, n):
        state[f"{key}.weight"] = torch.rand(n, generator=random) / 2

    ours = arch.startswith("iresnet")
    stem = ("conv1", "bn1", "prelu") if ours else ("input_layer.0", "input_layer.1", "input_layer.2")
    conv(stem[0], 3, 64, 3), norm(stem[1], 64), slope(stem[2], 64)
    n, number = 64, 0
    for layer, count in enumerate(BLOCKS[arch], 1):
        out = 32 << layer
        for b in range(count):
            if ours:
                block, names, short = f"layer{layer}.{b}", ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3"), "downsample"
            else:
                block, short = f"body.{number}", "shortcut_layer"
                names = [f"res_layer.{i}" for i in range(6)]
                if arch == "evolve-ir50":
                    names.insert(2, None)
            number += 1
            for name, make in zip(names, (lambda k: norm(k, n), lambda k: conv(k, n, out, 3), lambda k: norm(k, out),  # noqa: B023
                                          lambda k: slope(k, out), lambda k: conv(k, out, out, 3), lambda k: norm(k, out))):  # noqa: B023
                if name:
                    make(f"{block}.{name}")
            if (ours and b == 0) or n != out:
                conv(f"{block}.{short}.0", n, out, 1), norm(f"{block}.{short}.1", out)
            n = out
    norm("bn2" if ours else "output_layer.0", 512)
    linear, last = ("fc", "features") if ours else ("output_layer.3", "output_layer.4")
    state[f"{linear}.weight"], state[f"{linear}.bias"] = torch.zeros(512, 3), torch.zeros(512)
    norm(last, 512)
    if arch.startswith("adaface"):
        state = {**{f"model.{k}": v for k, v in state.items()}, "head.kernel": torch.zeros(512, 9), "head.t": torch.ones(1)}
    return state


def restated(state, arch, x):
    """f of normalised images x by the file's own tensors and functions alone, in test mode."""
    state = {k.removeprefix("model."): v.double() for k, v in state.items()}

    def norm(x, key):
        shape = (1, -1, 1, 1)
        return ((x - state[f"{key}.running_mean"].view(shape)) / (state[f"{key}.running_var"].view(shape) + 1e-5).sqrt()
                * state[f"{key}.weight"].view(shape) + state[f"{key}.bias"].view(shape))

    def slope(x, key):
        return x.clamp(min=0) + state[f"{key}.weight"].view(1, -1, 1, 1) * x.clamp(max=0)

    def conv(x, key, stride=1):
        w = state[f"{key}.weight"]
        return functional.conv2d(x, w, None, stride, w.shape[-1] // 2)

    if arch.startswith("iresnet"):
        x = slope(norm(conv(x, "conv1"), "bn1"), "prelu")
        for layer, count in enumerate(BLOCKS[arch], 1):
            for b in range(count):
                k, s = f"layer{layer}.{b}", 2 if b == 0 else 1
                y = slope(norm(conv(norm(x, f"{k}.bn1"), f"{k}.conv1"), f"{k}.bn2"), f"{k}.prelu")
                y = norm(conv(y, f"{k}.conv2", s), f"{k}.bn3")
                x = y + (norm(conv(x, f"{k}.downsample.0", s), f"{k}.downsample.1") if b == 0 else x)
        return norm(x, "bn2").mean((2, 3))
    x = slope(norm(conv(x, "input_layer.0"), "input_layer.1"), "input_layer.2")
    starts = np.cumsum([0, *BLOCKS[arch]])
    for number in range(sum(BLOCKS[arch])):
        k, s = f"body.{number}", 2 if number in starts else 1
        y = conv(norm(x, f"{k}.res_layer.0"), f"{k}.res_layer.1")
        if arch == "evolve-ir50":
            y = norm(conv(slope(y, f"{k}.res_layer.2"), f"{k}.res_layer.3", s), f"{k}.res_layer.4")
        else:
            y = slope(norm(y, f"{k}.res_layer.2"), f"{k}.res_layer.3")
            y = norm(conv(y, f"{k}.res_layer.4", s), f"{k}.res_layer.5")
        if f"{k}.shortcut_layer.0.weight" in state:
            x = norm(conv(x, f"{k}.shortcut_layer.0", s), f"{k}.shortcut_layer.1")
        else:
            x = functional.max_pool2d(x, 1, s)
        x = x + y
    return norm(x, "output_layer.0").mean((2, 3))


@pytest.mark.parametrize("arch", BLOCKS)
def test_a_file_is_taken_whole_and_gives_what_its_own_layout_says(arch, tmp_path):
    """AdaFace's are trained on BGR: the net sees RGB."""
    state = file_of(arch)
    content = {"state_dict": state, "epoch": 3} if arch.startswith("adaface") else state
    net, origin = start(saved(content, tmp_path / "w.ckpt"), arch)
    x = torch.rand(2, 3, 33, 48, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    with torch.no_grad():
        f = net.double().eval().backbone(x)
    bgr = arch.startswith("adaface")
    expected = restated(state, arch, x.flip(1) if bgr else x)
    assert f.shape == (2, 512) and torch.allclose(f, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert len(net.backbone.state_dict()) == COUNTS[arch]
    left = {"i": "fc, features", "a": "model.output_layer.3, model.output_layer.4, head", "e": "output_layer.3, output_layer.4"}
    said = ", as AdaFace trains them: on BGR, turned to RGB" if bgr else ""
    assert origin == f"took {COUNTS[arch]} tensors from {tmp_path}/w.ckpt{said}, left out {left[arch[0]]}"


@pytest.mark.parametrize("arch", ["adaface-ir18", "iresnet18"])
def test_bgr_is_turned_once(arch, tmp_path):
    path = saved(file_of(arch), tmp_path / "w.pth")
    first = [start(path, arch, bgr=bgr)[0].backbone.conv1.weight for bgr in (False, True)]
    own = file_of(arch)["conv1.weight" if arch == "iresnet18" else "model.input_layer.0.weight"]
    assert torch.equal(first[1], own.flip(1)) and torch.equal(first[0], own.flip(1) if arch[0] == "a" else own)


@pytest.mark.parametrize("wrapper,prefix", [((), "module."), (("state_dict",), "backbone."), (("model",), "")])
def test_wrappers_and_prefixes_are_taken_off(wrapper, prefix, tmp_path):
    for arch in ("iresnet18", "evolve-ir50"):
        content = {prefix + k: v for k, v in file_of(arch).items() if "num_batches" not in k}
        for key in wrapper:
            content = {key: content, "optimizer": {}}
        net, _ = start(saved(content, tmp_path / "w.pth"), arch)
        key = "layer4.1.conv2" if arch == "iresnet18" else "body.22.res_layer.3"
        assert torch.equal(net.backbone.layer4[1].conv2.weight, file_of(arch)[f"{key}.weight"])


OTHERS = [("resnet34", "iresnet34"), ("iresnet34", "iresnet50"), ("iresnet50", "adaface-ir50"),
          ("evolve-ir50", "adaface-ir50"), ("adaface-ir50", "evolve-ir50"), ("adaface-ir101", "iresnet100")]


@pytest.mark.parametrize("arch,other", OTHERS)
def test_a_file_of_another_member_is_named(arch, other, tmp_path):
    message = refusal({"state_dict": file_of(other)}, tmp_path / "w.pth", arch)
    assert message.startswith(f"not a whole {arch}, ") and message.endswith(f"; it fits --arch {other}")


def test_a_torchvision_file_is_named_too(tmp_path):
    import torchvision

    state = torchvision.models.resnet34().state_dict()
    assert refusal(state, tmp_path / "w.pth", "iresnet34").endswith("; it fits --arch resnet34")


DAMAGES = {
    "missing": ("model.body.3.res_layer.4.weight", None, "layer2.1.conv2.weight missing"),
    "shape": ("model.input_layer.2.weight", lambda v: v[:1], "model.input_layer.2.weight (1,), not (64,)"),
    "nan": ("model.body.7.res_layer.3.weight", lambda v: v * torch.nan, "model.body.7.res_layer.3.weight not finite"),
    "variance": ("model.output_layer.0.running_var", lambda v: -v, "model.output_layer.0.running_var below 0: no variance"),
    "int8": ("model.body.0.res_layer.1.weight", lambda v: v.to(torch.int8),
             "model.body.0.res_layer.1.weight of torch.int8, not of real floating-point numbers"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_file_is_taken_whole_or_not_at_all(kind, tmp_path):
    key, change, why = DAMAGES[kind]
    state = file_of("adaface-ir18")
    state |= {key: change(state[key])} if change else {}
    if not change:
        del state[key]
    assert refusal(state, tmp_path / "w.pth", "adaface-ir18") == f"not a whole adaface-ir18, 1 tensors: {why}"


def test_what_is_too_much_is_refused(tmp_path):
    """A block more, squeeze and excitation, and a second backbone in one file."""
    state = file_of("evolve-ir50")
    said = [refusal({**state, key: torch.zeros(64)}, tmp_path / "w.pth", "evolve-ir50")
            for key in ("body.0.res_layer.5.fc1.weight", "body.24.res_layer.0.weight")]
    assert said[0] == "not a whole evolve-ir50, 1 tensors: body.0.res_layer.5.fc1.weight has no place"
    assert said[1].startswith("not a whole evolve-ir50, ") and "has no place" in said[1] and "--arch" not in said[1]
    two = {**{f"model.{k}": v for k, v in state.items()}, **{f"ema.{k}": v for k, v in state.items()},
           **{f"encoder.{k}": v for k, v in state.items()}}
    assert refusal(two, tmp_path / "w.pth", "evolve-ir50").startswith("two backbones, model.input_layer.0.weight and ")


# ---------------------------------------------------------------- the step


@pytest.mark.parametrize("arch", ["iresnet18", "adaface-ir18", "evolve-ir50"])
def test_both_hypergradients_agree(arch):
    """Slopes of PReLU among the directions: they differ from channel to channel, and get gradients."""
    batch, val, forms = random_batch(4), random_batch(4, seed=1), []
    for form in ("create_graph", "jvp"):
        run = make_run(arch, form)
        for name, p in run.net.named_parameters():
            if "prelu" in name:
                p.data = torch.rand(p.shape, generator=torch.Generator().manual_seed(len(name))).double() / 2
        forms.append(torch.cat([g.flatten() for g in grad_psi(run, batch, val)]))
    assert forms[0].norm() > 0 and (forms[0] - forms[1]).norm() < 1e-10 * forms[0].norm()


def test_the_hypergradient_of_an_iresnet_matches_finite_differences():
    batch, val, run = random_batch(4), random_batch(4, seed=1), make_run("iresnet18", "jvp")
    gradient = torch.cat([g.flatten() for g in grad_psi(run, batch, val)])
    psi = torch.nn.utils.parameters_to_vector(run.meta.parameters()).detach()
    direction = torch.randn(len(psi), generator=torch.Generator().manual_seed(7)).double()
    up, down = (val_loss_after_look_ahead(run, batch, val, psi + e * direction) for e in (1e-6, -1e-6))
    assert (up - down) / 2e-6 == pytest.approx(float(gradient @ direction), rel=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_the_tangent_of_prelu_alone_matches_finite_differences(shared):
    """Only the slopes move: one of each channel, or one of all; after a convolution and after a linear layer."""
    torch.manual_seed(0)
    net = small_net(torch.nn.Conv2d(3, 8, 3), torch.nn.PReLU(1 if shared else 8), torch.nn.Conv2d(8, 8, 3))
    net.fe = torch.nn.Sequential(torch.nn.Linear(8, 14), torch.nn.PReLU(1 if shared else 14)).double()
    x = torch.randn(4, 3, 17, 17, dtype=torch.float64)
    losses_of = lambda z_emo, z_au: torch.stack([z_emo.logsumexp(1), z_au.square().sum(1)], 1)  # noqa: E731
    taped = mmlfer.Taped(net, x, losses_of)
    theta = {n: p.detach() for n, p in net.named_parameters()}
    direction = {n: torch.randn_like(p) * (n in ("backbone.1.weight", "fe.1.weight")) for n, p in theta.items()}
    ends = []
    for eps in (1e-6, -1e-6):
        moved = {n: p + eps * direction[n] for n, p in theta.items()}
        ends.append(losses_of(*torch.func.functional_call(net, moved, (x,))[1:]))
    slope = (ends[0] - ends[1]) / 2e-6
    assert slope.abs().max() > 1e-3 and torch.allclose(taped.along(direction), slope, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def run_of_iresnet(faces_folder, tmp_path_factory):
    """A run of one epoch that starts from an AdaFace file."""
    folder = tmp_path_factory.mktemp("iresnet")
    path = saved({"state_dict": file_of("adaface-ir18")}, folder / "adaface_ir18.ckpt")
    words = [*SMALL[:4], "--arch", "adaface-ir18", "--weights", path, "--device", "cpu", "--hypergrad", "jvp"]
    result = invoke("train", "--data", faces_folder, "--out", folder / "run", "--epochs", 1, *words)
    assert result.exit_code == 0, result.output
    assert "backbone: took 174 tensors" in result.stdout and "on BGR, turned to RGB" in result.stdout
    return folder


def test_a_run_starts_from_a_file_and_its_checkpoint_brings_its_backbone(run_of_iresnet, faces_folder, tmp_path):
    """The checkpoint's net sees RGB: it is not turned again."""
    best = run_of_iresnet / "run" / "best.pt"
    numbers = json.loads(invoke("eval", "--ckpt", best, "--json").stdout)
    assert numbers["confusion"] == json.loads((best.parent / "test.json").read_text())["best"]["confusion"]
    net, origin = start(str(best), "adaface-ir18")
    assert torch.equal(net.backbone.conv1.weight, torch.load(best, weights_only=True)["net"]["backbone.conv1.weight"])
    assert "BGR" not in origin and "174 tensors" in origin
    again = invoke("train", "--out", best.parent, "--resume", "--arch", "iresnet18")
    assert again.exit_code == 1 and "--arch adaface-ir18, not iresnet18" in again.stderr


def test_gradcam_of_an_iresnet_is_of_what_is_averaged(faces_folder, tmp_path):
    ckpt = make_checkpoint(tmp_path / "best.pt", faces_folder, arch="iresnet18")
    net = mmlfer.load_net(ckpt, "cpu")[0].double()
    x = random_batch(2)[0]
    maps, z_emo, _ = gradcam.gradcam(net, x)
    with torch.no_grad():
        a = net.backbone.forward_features((x.double() / 255 - 0.5) / 0.5)
    for i in range(2):
        positive = (net.fe.weight[z_emo[i].argmax()].detach()[:, None, None] * a[i]).sum(0).clamp(min=0)[None, None]
        positive = functional.interpolate(positive, (32, 32), mode="bilinear")[0, 0]
        assert torch.allclose(maps[i], positive / positive.max(), atol=1e-9) and positive.max() > 0
    assert "forward_features" not in vars(net.backbone)
    result = invoke("gradcam", "--ckpt", ckpt, "--out", tmp_path / "g.png", faces_folder / "aligned/0001_aligned.jpg")
    assert result.exit_code == 0 and (tmp_path / "g.png").exists()


def test_export_of_an_iresnet_agrees_with_torch(faces_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    ckpt = make_checkpoint(tmp_path / "best.pt", faces_folder, arch="evolve-ir50")
    result = invoke("export", "--ckpt", ckpt, "--out", tmp_path / "m.onnx")
    assert result.exit_code == 0 and "onnxruntime's probabilities are within" in result.stdout


def test_pretraining_of_an_iresnet_gives_a_file_to_train_from(people, tmp_path):
    out = tmp_path / "w.pth"
    words = ["iresnet18" if word == "resnet18" else word for word in SMALL_PRETRAINING]
    result = invoke("pretrain", "--faces", people, "--out", out, "--epochs", 1, *words)
    assert result.exit_code == 0 and f"mmlfer train --arch iresnet18 --weights {out}" in result.stdout
    assert "neck.running_mean" in torch.load(tmp_path / "w.last.pt", weights_only=True)["net"]
    net, origin = start(str(out), "iresnet18")
    assert origin == f"took 180 tensors from {out}"
    assert torch.equal(net.backbone.layer4[1].prelu.weight,
                       torch.load(out, weights_only=True)["state_dict"]["layer4.1.prelu.weight"])
