"""Any net of timm: the general form of the hypergradient, random masks, weights, and the commands. Random weights alone."""

import json
import re

import pytest
import torch
from conftest import assert_same_run, end_at_the_third_step, invoke, random_batch
from test_bilevel import small_net
from test_gradcam import make_checkpoint
from test_weights import refusal, saved, start

import mmlfer
from mmlfer_commands import _hypergrads, _stats, gradcam, train

timm = pytest.importorskip("timm")
SIZES = {"efficientnet_b0": 32, "convnext_atto": 32, "resnet18": 32, "mobilenetv3_small_100": 32, "vit_tiny_patch16_224": 32,
         "vit_small_patch14_dinov2": 56, "swin_tiny_patch4_window7_224": 64}
FEATURES = {"efficientnet_b0": 1280, "convnext_atto": 320, "resnet18": 512, "mobilenetv3_small_100": 1024,
            "vit_tiny_patch16_224": 192, "vit_small_patch14_dinov2": 384, "swin_tiny_patch4_window7_224": 768}


def make_run(name, form="auto", method="mml", dtype=torch.float64):
    """A run whose meta net is away from its zeros, in test sizes; its residual branches are not zero, so that no ReLU
    has exactly 0."""
    torch.manual_seed(0)
    size = SIZES[name]
    cfg = mmlfer.Config(data="-", arch=f"timm:{name}", size=size, batch_size=4, weights="none", device="cpu", hypergrad=form,
                        method=method)
    net = mmlfer.make_base_net(cfg.arch, size=size)
    for p in net.parameters():
        if p.ndim == 1 and not p.any():
            p.data = torch.rand(p.shape) / 5 - 0.1
    run = mmlfer.Run(cfg, 1, net, _stats.load_stats("wild", mmlfer.RAFCE))
    run.net.to(dtype)
    run.statistics = mmlfer.Statistics.of(run.table.to(dtype), run.form)
    for p in run.meta.to(dtype).parameters():
        torch.nn.init.normal_(p, 0, 0.02, generator=torch.Generator().manual_seed(3))
    return run


def batches(name, dtype=None):
    return (random_batch(4, SIZES[name], seed, dtype) for seed in (0, 1))


def grads(run, form, batch, val):
    return [g.clone() for g in mmlfer.meta_test(run, *mmlfer.meta_train(run, batch), val, form)]


@pytest.mark.parametrize("name", [name for name in SIZES if "mobilenet" not in name])
def test_the_general_form_equals_the_definition(name):
    """Each pass draws its own masks, and swin has stochastic depth: equal only with one mask in both."""
    run, (batch, val) = make_run(name), batches(name)
    definition = grads(run, "create_graph", batch, val)
    assert definition[0].norm() > 0
    assert _hypergrads.relative(grads(run, "general", batch, val), definition) < 1e-8


def val_loss_after_look_ahead(run, batch, val, psi):
    """L^val(theta*(psi)) by a backward pass and a plain step, for test_the_general_form_without_second_derivatives."""
    torch.nn.utils.vector_to_parameters(psi, run.meta.parameters())
    f, *z = run.net(batch[0])
    losses = mmlfer.all_losses(*z, *batch[1:], run.statistics)
    grad = torch.autograd.grad((mmlfer.loss_weights(run.meta, f, run.cfg).detach() * losses).sum(1).mean(),
                               list(run.net.parameters()))
    alpha = [0.001 if name.startswith("backbone") else 0.01 for name, _ in run.net.named_parameters()]
    star = {name: p - a * g for (name, p), a, g in zip(run.net.named_parameters(), alpha, grad)}
    with torch.no_grad():
        return float(mmlfer.loss_emo(torch.func.functional_call(run.net, star, (val[0],))[1], val[1]).mean())


def test_the_general_form_without_second_derivatives():
    """mobilenetv3 has hardsigmoid: against finite differences of the whole look-ahead; no definition is to be had."""
    name = "mobilenetv3_small_100"
    run, (batch, val) = make_run(name), batches(name)
    gradient = torch.cat([g.flatten() for g in grads(run, "general", batch, val)])
    with pytest.raises(RuntimeError, match="is not implemented"):
        grads(run, "create_graph", batch, val)
    psi = torch.nn.utils.parameters_to_vector(run.meta.parameters()).detach()
    direction = torch.randn(len(psi), generator=torch.Generator().manual_seed(7)).double()
    up, down = (val_loss_after_look_ahead(run, batch, val, psi + e * direction) for e in (1e-6, -1e-6))
    assert (up - down) / 2e-6 == pytest.approx(float(gradient @ direction), rel=1e-6)
    assert _hypergrads.difference_to_differences(run, batch, val) < 1e-7


CHOICES = {"mobilenetv3_small_100": ("general", "central differences"), "resnet18": ("jvp", "create_graph"),
           "convnext_atto": ("general", "create_graph"), "swin_tiny_patch4_window7_224": ("general", "create_graph")}


@pytest.mark.parametrize("name", CHOICES)
def test_auto_takes_the_rules_where_all_layers_have_one_and_the_general_form_elsewhere(name, capsys):
    form, other = CHOICES[name]
    run, (batch, val) = make_run(name, dtype=torch.float32), batches(name, torch.float32)
    before = {k: v.clone() for k, v in run.net.state_dict().items()}
    assert _hypergrads.choose_hypergrad(run, batch, val) == form
    assert re.fullmatch(rf"hypergradient: {form} differs from {other} by \d\.\de-\d+; going on with {form}\n",
                        capsys.readouterr().out)
    assert all(torch.equal(v, before[k]) for k, v in run.net.state_dict().items())


def test_auto_ends_in_a_line_where_nothing_agrees(monkeypatch, capsys):
    name = "mobilenetv3_small_100"
    run, (batch, val) = make_run(name, dtype=torch.float32), batches(name, torch.float32)
    along = mmlfer.Taped.along_in_general
    monkeypatch.setattr(mmlfer.Taped, "along_in_general", lambda *args: 1.08 * along(*args))
    with pytest.raises(mmlfer.InputError, match="general differs from central differences by .*: ?|--hypergrad general all the same"):
        _hypergrads.choose_hypergrad(run, batch, val)


class Random(torch.nn.Module):
    """Dropout and a path that is dropped for a whole face."""

    def forward(self, x):
        x = torch.nn.functional.dropout(x, 0.5, self.training)
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5) if self.training else x


def test_a_mask_is_one_for_both_passes_and_another_in_each_step():
    net, x = small_net(torch.nn.Conv2d(3, 8, 3), Random()), torch.randn(4, 3, 9, 9, dtype=torch.float64)
    losses_of = lambda z_emo, z_au: torch.stack([z_emo.logsumexp(1), z_au.square().sum(1)], 1)  # noqa: E731
    one, other = (mmlfer.Taped(net, x, losses_of, seed) for seed in (5, 6))
    theta = {n: p.detach() for n, p in net.named_parameters()}
    assert torch.equal(one.losses, one.losses_at(theta)) and not torch.equal(one.losses, other.losses)
    direction = {n: torch.randn_like(p) for n, p in theta.items()}
    ends = [one.losses_at({n: p + e * direction[n] for n, p in theta.items()}) for e in (1e-6, -1e-6)]
    assert torch.allclose(one.along_in_general(direction), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", ["general", "create_graph"])
def test_running_statistics_move_once_a_step_and_by_training_images_alone(form):
    name = "efficientnet_b0"
    a, b, (batch, val) = make_run(name, form), make_run(name, form), batches(name)
    mmlfer.train_step(a, batch, val)
    b.net(batch[0])
    moved = dict(b.net.named_buffers())
    names = [n for n, v in a.net.named_buffers() if "running" in n or "tracked" in n]
    assert len(names) == 3 * 49 and all(torch.equal(dict(a.net.named_buffers())[n], moved[n]) for n in names)


# ---------------------------------------------------------------- nets and weights


@pytest.mark.parametrize("name", SIZES)
def test_features_are_those_of_timm_without_the_classifier(name):
    arch, size = f"timm:{name}", SIZES[name]
    net, origin = start("none", arch, size=size)
    facts = timm.get_pretrained_cfg(name)
    assert net.mean.flatten().tolist() == pytest.approx(facts.mean) and net.std.flatten().tolist() == pytest.approx(facts.std)
    assert net.backbone.num_features == net.fe.in_features == FEATURES[name] and net.backbone.training
    reference = timm.create_model(name, num_classes=0, **({"img_size": size} if "patch" in name else {}))
    reference.load_state_dict(net.backbone.state_dict())
    x = random_batch(2, size)[0]
    with torch.no_grad():
        f = net.eval()(x)[0]
        assert torch.allclose(f, reference.eval()((x / 255 - net.mean) / net.std), atol=1e-4)


def test_a_state_dict_of_the_net_is_taken_whole_or_not_at_all(tmp_path):
    """As EmotiEffLib's state_vggface2_enet0_new.pt: EfficientNet-B0 in TensorFlow's padding, without classifier."""
    torch.manual_seed(1)
    state = timm.create_model("tf_efficientnet_b0", num_classes=0).state_dict()
    arch = "timm:tf_efficientnet_b0"
    net, origin = start(saved(state, tmp_path / "w.pt"), arch)
    assert origin == f"took {len(state)} tensors from {tmp_path}/w.pt" and net.backbone.bn1.eps == 1e-3
    assert all(torch.equal(v, state[k]) for k, v in net.backbone.state_dict().items())
    heads = {f"module.{k}": v for k, v in state.items()} | {"module.classifier.weight": torch.zeros(8, 1280)}
    net, origin = start(saved({"state_dict": heads}, tmp_path / "w.pt"), arch, bgr=True)
    assert origin.endswith(", left out module.classifier.weight")
    assert torch.equal(net.backbone.conv_stem.weight, state["conv_stem.weight"].flip(1))
    del heads["module.bn2.bias"]
    assert refusal(heads, tmp_path / "w.pt", arch) == f"not a whole {arch}, 1 tensors: bn2.bias missing"
    larger = timm.create_model("tf_efficientnet_b1", num_classes=0).state_dict()  # all of b0's tensors, and more
    assert ": blocks.0.1.conv_dw.weight has no place; " in refusal(larger, tmp_path / "w.pt", arch)
    assert "not a whole resnet18" in refusal(state, tmp_path / "w.pt", "resnet18")


def test_timms_own_weights(monkeypatch):
    made, create = [], timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **o: made.append((name, pretrained)) or create(name, **o))
    net, origin = start("timm", "timm:resnet18.a1_in1k")
    assert made[-1] == ("resnet18.a1_in1k", True) and origin == "its own pretrained weights, from timm"

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(mmlfer.InputError, match=r"--weights timm: no download \(no route\); fetch it elsewhere and name its file"):
        start("timm", "timm:resnet18")


@pytest.mark.parametrize("weights,arch,other", [("imagenet", "timm:resnet18", "timm, a file"), ("timm", "resnet18", "imagenet, a file"),
                                                ("imagenet", "iresnet18", "a file"), ("timm", "evolve-ir50", "a file")])
def test_words_that_an_arch_does_not_take(weights, arch, other):
    with pytest.raises(mmlfer.InputError) as error:
        start(weights, arch)
    assert str(error.value) == f"--weights {weights}: there are none for --arch {arch}; give {other} or none"


@pytest.mark.parametrize("arch,why", [("timm:resnet19", "timm has no such net; near it: .*resnet1"),
                                      ("timm:resnet18.nope", "timm has no such net; near it: "),
                                      ("timm:test_maxvit", r"--size 100: timm cannot make it \(.*\); its own size is 160")])
def test_nets_that_timm_cannot_make_end_in_a_line(arch, why):
    with pytest.raises(mmlfer.InputError, match=why):
        mmlfer.make_base_net(arch, size=100)


def test_without_timm_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(mmlfer.InputError) as error:
        mmlfer.make_base_net("timm:resnet18")
    assert str(error.value) == "--arch timm:resnet18: needs timm: pip install -e '.[timm]'"


@pytest.mark.parametrize("arch", ["timm:hf-hub:x/y", "timm:local-dir:/tmp", "timm:../x", "timm:", "timm:a.b.c", "os", "vgg16", 3,
                                  "timm:resnet18\n"])
def test_no_other_name_in_a_checkpoint_makes_anything(arch, sketch, tmp_path, monkeypatch):
    state = torch.load(sketch, weights_only=True)
    state["config"]["arch"] = arch
    torch.save(state, tmp_path / "x.pt")
    monkeypatch.setattr(mmlfer, "make_backbone", lambda *a: pytest.fail("was made"))
    with pytest.raises(mmlfer.InputError, match="of another version of mmlfer, or damaged"):
        mmlfer.load_net(tmp_path / "x.pt")
    result = invoke("train", "--data", tmp_path, "--arch", arch)
    assert result.exit_code == 2 and "--arch" in result.stderr


# ---------------------------------------------------------------- the commands

WORDS = ("--size", 32, "--batch-size", 4, "--arch", "timm:test_convnext", "--weights", "none", "--device", "cpu")


def test_a_run_is_trained_resumed_tested_and_predicted_with(faces_folder, tmp_path, monkeypatch):
    """With stochastic depth: a resumed run draws the masks of the uninterrupted one."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **o: create(*a, drop_path_rate=0.3, **o))
    for name in ("whole", "parts"):
        with pytest.MonkeyPatch.context() as patch:
            if name == "parts":
                end_at_the_third_step(patch)
            result = invoke("train", "--data", faces_folder, "--out", tmp_path / name, "--epochs", 1, *WORDS)
            assert result.exit_code == (128 + 15 if name == "parts" else 0), result.output
    assert "hypergradient: general differs from create_graph by" in result.output
    result = invoke("train", "--out", tmp_path / "parts", "--resume")
    assert result.exit_code == 0, result.output
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    best = tmp_path / "whole/best.pt"
    numbers = json.loads(invoke("eval", "--ckpt", best, "--json").stdout)
    assert numbers["confusion"] == json.loads((tmp_path / "whole/test.json").read_text())["best"]["confusion"]
    assert invoke("predict", "--ckpt", best, faces_folder / "aligned").exit_code == 0


def test_the_size_is_timms_own_unless_given(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "fit", lambda cfg, *args: seen.append(cfg.size))
    for words in ([], ["--size", 112]):
        invoke("train", "--data", tmp_path, "--out", tmp_path / "r", "--arch", "timm:vit_tiny_patch16_224", *words)
    assert seen == [224, 112]
    result = invoke("train", "--data", tmp_path, "--out", tmp_path / "r", "--arch", "timm:vit_small_patch14_dinov2")
    assert result.exit_code == 1 and "made for 518 pixels; name a --size of 32 to 512" in result.stderr


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_100"])
def test_gradcam_of_a_net_with_a_map(name, faces_folder, tmp_path):
    """Swin's map has its channels last."""
    ckpt = make_checkpoint(tmp_path / "best.pt", faces_folder, arch=f"timm:{name}", size=64)
    net, x = mmlfer.load_net(ckpt, "cpu")[0], random_batch(2, 64)[0]
    maps, z_emo, _ = gradcam.gradcam(net, x)
    a = net.backbone.forward_features((x / 255 - net.mean) / net.std).detach().requires_grad_()
    z = net.fe(net.backbone.forward_head(a))
    assert torch.allclose(z, z_emo, atol=1e-5)
    g, = torch.autograd.grad(z.amax(1).sum(), a)
    places = (1, 2) if "swin" in name else (2, 3)
    small = (g.mean(places, keepdim=True) * a).sum(3 if "swin" in name else 1).clamp(min=0)[:, None]
    expected = torch.nn.functional.interpolate(small, (64, 64), mode="bilinear")[:, 0]
    assert torch.allclose(maps, expected / expected.amax((1, 2), keepdim=True).clamp(min=1e-12), atol=1e-4) and maps.max() > 0


def test_gradcam_of_a_net_without_a_map_is_a_line(faces_folder, tmp_path):
    ckpt = make_checkpoint(tmp_path / "best.pt", faces_folder, arch="timm:vit_tiny_patch16_224")
    result = invoke("gradcam", "--ckpt", ckpt, "--out", tmp_path / "g.png", faces_folder / "aligned/0001_aligned.jpg")
    assert result.exit_code == 1 and result.stderr == (
        "Error: gradcam: timm:vit_tiny_patch16_224 keeps no map of places to its end: it has no Grad-CAM\n")


def test_export_of_a_net_of_timm(faces_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    ckpt = make_checkpoint(tmp_path / "best.pt", faces_folder, arch="timm:test_vit", size=64)
    result = invoke("export", "--ckpt", ckpt, "--out", tmp_path / "m.onnx")
    assert result.exit_code == 0 and "onnxruntime's probabilities are within" in result.stdout, result.output
