"""The three sizes of backbone: both forms of the hypergradient, and the architecture in runs."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, invoke, random_batch, run_of
from PIL import Image

import mmlfer

ARCHS = ["resnet18", "resnet34", "resnet50"]

pytestmark = pytest.mark.usefixtures("real_resnet18")


def make_run(arch, hypergrad="create_graph", method="mml"):
    """A run in float64 whose meta net is away from its zeros."""
    run = run_of(mmlfer.Config(data="-", arch=arch, method=method, size=32, batch_size=4, weights="none",
                                   device="cpu", hypergrad=hypergrad), 1)
    run.net.double()
    run.statistics = mmlfer.Statistics.of(run.table.double(), run.form)
    run.meta.double()
    for p in run.meta.parameters():
        torch.nn.init.normal_(p, 0, 0.02, generator=torch.Generator().manual_seed(3))
    return run


def grad_psi(run, batch, val):
    return mmlfer.meta_test(run, *mmlfer.meta_train(run, batch), val, run.hypergrad)


def val_loss_after_look_ahead(run, batch, val, psi):
    """L^val(theta*(psi)) by a backward pass and a plain step; theta is put back afterwards."""
    before = {k: v.clone() for k, v in run.net.state_dict().items()}
    torch.nn.utils.vector_to_parameters(psi, run.meta.parameters())
    f, z_emo, z_au = run.net(batch[0])
    losses = mmlfer.all_losses(z_emo, z_au, batch[1], batch[2], run.statistics)
    omega = mmlfer.loss_weights(run.meta, f, run.cfg).detach()
    run.net.zero_grad()
    (omega * losses).sum(1).mean().backward()
    with torch.no_grad():
        for name, p in run.net.named_parameters():
            p -= (0.001 if name.startswith("backbone") else 0.01) * p.grad
        value = mmlfer.loss_emo(run.net(val[0])[1], val[1]).mean().item()
    run.net.load_state_dict(before)
    return value


@pytest.mark.parametrize("arch", ARCHS)
def test_both_hypergradients_agree_and_match_finite_differences(arch):
    batch, val = random_batch(4), random_batch(4, seed=1)
    forms = [torch.cat([g.flatten() for g in grad_psi(make_run(arch, form), batch, val)])
             for form in ("create_graph", "jvp")]
    assert forms[0].norm() > 0 and (forms[0] - forms[1]).norm() < 1e-9 * forms[0].norm()
    run = make_run(arch)
    start = torch.nn.utils.parameters_to_vector(run.meta.parameters()).detach()
    direction = torch.randn(len(start), generator=torch.Generator().manual_seed(7)).double()
    eps = 1e-8 if arch != "resnet50" else 1e-10  # so small that no ReLU of the millions switches
    up, down = (val_loss_after_look_ahead(run, batch, val, start + e * direction) for e in (eps, -eps))
    assert (up - down) / (2 * eps) == pytest.approx(float(forms[1] @ direction), rel=1e-5)


@pytest.mark.parametrize("arch,features,tensors", [("resnet18", 512, 120), ("resnet34", 512, 216),
                                                   ("resnet50", 2048, 318)])
def test_features_and_tensors_of_each_size(arch, features, tensors):
    """The base net's features are those of torchvision's net of this name without its last layer."""
    import torchvision

    torch.manual_seed(1)
    net = mmlfer.make_base_net(arch)
    assert len(net.backbone.state_dict()) == tensors
    reference = getattr(torchvision.models, arch)()
    reference.load_state_dict(net.backbone.state_dict(), strict=False)
    reference.fc = torch.nn.Flatten()
    x = random_batch(3)[0]
    with torch.no_grad():
        f, z_emo, z_au = net.eval()(x)
        expected = reference.eval()((x / 255 - 0.5) / 0.5)
    assert f.shape == (3, features) and z_emo.shape == (3, 14) and z_au.shape == (3, 32)
    assert torch.allclose(f, expected, atol=1e-5)
    meta = mmlfer.make_meta_net("mml", features)
    assert mmlfer.loss_weights(meta, f, mmlfer.Config()).tolist() == [[1.0, 0.5, 0.5]] * 3


def test_a_run_of_another_size_is_trained_tested_and_predicted_with(faces_folder, tmp_path):
    out, image = tmp_path / "run", tmp_path / "face.png"
    result = invoke("train", "--data", faces_folder, "--out", out, "--epochs", 1, "--method", "mal", "--hypergrad", "jvp", *SMALL)
    assert result.exit_code == 0, result.output
    state = torch.load(out / "best.pt", weights_only=True)
    assert state["config"]["arch"] == "resnet18" and "backbone.layer3.2.conv1.weight" not in state["net"]
    numbers = json.loads(invoke("eval", "--ckpt", out / "best.pt", "--json").stdout)
    test = json.loads((out / "test.json").read_text())
    assert numbers["confusion"] == test["best"]["confusion"]
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(image)
    assert invoke("predict", "--ckpt", out / "best.pt", image).exit_code == 0
    result = invoke("train", "--out", out, "--resume", "--arch", "resnet34")
    assert result.exit_code == 1 and "--arch resnet18, not resnet34" in result.stderr


def test_a_checkpoint_of_resnet50_is_loaded_whole(tmp_path):
    run = run_of(mmlfer.Config(data="-", arch="resnet50", weights="none", device="cpu"), 1)
    mmlfer.save_checkpoint(mmlfer.inference_state(run), tmp_path / "best.pt")
    net, state = mmlfer.load_net(tmp_path / "best.pt", "cpu")
    assert state["meta"]["weight"].shape == (2, 2048)
    x = random_batch(2)[0]
    with torch.no_grad():
        assert torch.allclose(net(x)[1], run.net.eval()(x)[1], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_from_before_there_were_sizes_is_a_resnet34(sketch_34, tmp_path):
    state = torch.load(sketch_34, weights_only=True)
    for name in ("arch", "weights_bgr", "weights_norm"):
        del state["config"][name]
    torch.save(state, tmp_path / "old.pt")
    net, state = mmlfer.load_net(tmp_path / "old.pt", "cpu")
    assert state["config"]["arch"] == "resnet34" and len(net.backbone.layer3) == 6
