"""Where a checkpoint looks."""

import shutil

import torch
from conftest import random_batch

import mmlfer
from mmlfer_commands import gradcam


def test_gradcam_matches_gradients_by_hand():
    torch.manual_seed(0)
    net = mmlfer.make_base_net().double().eval()
    x = random_batch(3, size=64)[0]
    maps, z_emo, _ = gradcam.gradcam(net, x)
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
    other, *_ = gradcam.gradcam(net, x, torch.tensor([3, 3, 3]))
    assert not torch.allclose(other, maps)
    assert not net.backbone.layer4._forward_hooks


def test_truth_is_known_for_images_of_the_data_alone(faces_folder, tmp_path):
    inside = faces_folder / "aligned/0001_aligned.jpg"
    shutil.copy(inside, tmp_path / "0001_aligned.jpg")
    labels = mmlfer.load_labels(faces_folder)
    truths = gradcam.known_truths([inside, tmp_path / "0001_aligned.jpg"], faces_folder)
    assert truths == [mmlfer.EMOTIONS[labels.y_emo[0]], None]
    assert gradcam.known_truths([inside], tmp_path / "gone") == [None]
