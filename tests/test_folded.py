"""Nets to predict with: BatchNorm folded into the convolutions, channels last."""

import pytest
import torch
from conftest import random_batch
from test_gradcam import make_checkpoint

import mmlfer
from mmlfer_commands import _nets, predict, serve, video
from mmlfer_commands import eval as evaluation


def lively_net(arch):
    """A net whose running statistics, gains and biases are away from their start."""
    torch.manual_seed(0)
    net = mmlfer.make_base_net(arch)
    for name, tensor in net.backbone.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.copy_(torch.rand(len(tensor)) / 2 + (0.75 if "var" in name or "weight" in name else -0.25))
    return net


@pytest.mark.parametrize("arch,left", [("resnet34", 0), ("resnet50", 0), ("iresnet18", 9), ("adaface-ir18", 9), ("evolve-ir50", 25)])
def test_a_folded_net_answers_the_same_and_leaves_the_net_alone(arch, left):
    """left: BatchNorms without a convolution before them, at the head of each block of an IResNet and at its end."""
    net, x = lively_net(arch), random_batch(6, 48)[0]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fast = _nets.folded(net)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules()) == left
    assert next(p for p in fast.parameters() if p.ndim == 4).is_contiguous(memory_format=torch.channels_last)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with torch.no_grad():
        f, *ours = net.eval()(x)
        g, *theirs = fast(x)
    assert f.std() > 0.01 and torch.allclose(g, f, atol=1e-5 * float(f.abs().max()), rtol=1e-4)
    for one, other in zip(ours, theirs):
        one, other = one / other.std(), other / other.std()  # of a usual size
        assert (one.softmax(1) - other.softmax(1)).abs().max() < 1e-5


def test_bf16_keeps_its_layers():
    net = lively_net("resnet34")
    net.precision = "bf16"
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in _nets.folded(net).modules()) == 36


@pytest.mark.parametrize("module", [predict, evaluation, video, serve])
def test_the_commands_that_predict_fold_their_nets(module):
    assert module.folded is _nets.folded


def test_predictions_come_from_the_folded_net_and_gradcam_from_the_net_itself(faces_folder, tmp_path, monkeypatch):
    ckpt, seen = make_checkpoint(tmp_path / "best.pt", faces_folder), []
    monkeypatch.setattr(serve, "folded", lambda net: seen.append(net) or _nets.folded(net))
    monkeypatch.setattr(serve, "choose_template", lambda *args: None)
    model = serve.Model(ckpt, None, "cpu")
    assert seen == [model.net] and model.fast is not model.net
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.net.modules())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.fast.modules())
