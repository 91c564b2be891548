"""Images moved at random in training: --augment."""

import dataclasses
import json
import math

import compare_scenes
import numpy as np
import pytest
import torch
from conftest import SMALL, assert_same_run, end_at_the_third_step, invoke, load
from PIL import Image

import mmlfer
from mmlfer_commands import _alignment, _rafce


def naive_move(image, right, down, scale, degrees):
    """An image (3, S, S) turned clockwise and scaled about its middle, then shifted by pixels: what
    lies at p goes to q = scale R p + shift, so that each new pixel q is read at R^-1 (q - shift) / scale."""
    side, out = image.shape[1], np.zeros(image.shape)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    forward = scale * np.array([[c, -s], [s, c]])  # of (x to the right, y down): clockwise
    middle = (side - 1) / 2
    for y in range(side):
        for x in range(side):
            old = np.linalg.inv(forward) @ (np.array([x, y]) - middle - [right, down]) + middle
            column, row = np.clip(old, 0, side - 1)
            for j in (math.floor(row), math.floor(row) + 1):
                for i in (math.floor(column), math.floor(column) + 1):
                    share = max(0, 1 - abs(row - j)) * max(0, 1 - abs(column - i))
                    if share:
                        out[:, y, x] += share * image[:, j, i]
    return out


@pytest.mark.parametrize("moves", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (-0.7, 0.4, -0.9, 0.6)])
def test_an_image_is_moved_as_a_naive_resampling_does(moves):
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (2, 3, 20, 20), np.uint8)
    ours = mmlfer.moved(torch.from_numpy(images), torch.tensor([moves, [0.0] * 4]))
    right, down, scale, turn = moves
    expected = naive_move(images[0], 0.04 * 20 * right, 0.04 * 20 * down, 1 + 0.05 * scale, 5 * turn)
    assert ours.dtype == torch.float32 and np.abs(ours[0].numpy() - expected).max() < 0.01
    assert (ours[1] - torch.from_numpy(images[1])).abs().max() < 0.01  # each by its own


@pytest.fixture(scope="module")
def batches(faces_folder):
    """Batches without --augment, with it, and with it and another seed."""
    faces = mmlfer.load_images(_rafce.load_labels(faces_folder), faces_folder, 32)
    cfg = mmlfer.Config(batch_size=4, seed=3)
    options = {}, {"augment": True}, {"augment": True, "seed": 4}
    return [mmlfer.Batches(faces, dataclasses.replace(cfg, **o), torch.device("cpu")) for o in options]


def test_every_image_of_every_epoch_has_its_own_move(batches):
    _, moved, other = batches
    draws = {}
    for name, source, epoch in (("first", moved, 0), ("second", moved, 1), ("other seed", other, 0)):
        for part in (4, 5):
            draws[name, part] = torch.cat([step[part] for step in source.epoch(epoch)])
    everything = torch.cat(list(draws.values()))
    assert everything.shape == (6 * 4 * moved.steps, 4) and len(everything.unique()) == everything.numel()
    assert (everything.abs() <= 1).all() and (everything.abs().mean(0) - 0.5).abs().max() < 0.1
    assert all(torch.equal(a, b) for a, b in zip(moved.epoch(1)[2], moved.epoch(1)[2]))


def test_moves_are_drawn_by_the_seed_and_the_epoch_from_a_stream_of_their_own(batches):
    _, moved, _ = batches
    for epoch in (0, 3):
        drawn = np.random.default_rng([3, 9, epoch]).uniform(-1, 1, (2, 4 * moved.steps, 4)).astype(np.float32)
        for part, moves in zip((4, 5), drawn):
            assert torch.cat([step[part] for step in moved.epoch(epoch)]).tolist() == moves.tolist()


def test_both_batches_of_a_step_are_moved_and_nothing_else_changes(batches):
    plain, moved, _ = batches
    assert len(plain.epoch(0)[0]) == 4
    for off, on in zip(plain.epoch(0), moved.epoch(0)):
        assert all(torch.equal(a, b) for a, b in zip(off, on))
        for (x, *labels), (x_moved, *labels_moved), moves in zip(plain.pair(*off), moved.pair(*on), on[4:]):
            assert x.dtype == torch.uint8 and all(map(torch.equal, labels, labels_moved))
            assert torch.equal(x_moved, mmlfer.moved(x, moves)) and not torch.equal(x_moved, x)


def test_a_run_with_moves_resumes_to_the_same_end(faces_folder, tmp_path, monkeypatch):
    options = ("--data", faces_folder, "--epochs", 1, "--method", "mtl", "--arch", "resnet18", *SMALL)
    assert invoke("train", "--out", tmp_path / "whole", *options, "--augment").exit_code == 0
    end_at_the_third_step(monkeypatch)
    assert invoke("train", "--out", tmp_path / "cut", *options, "--augment").exit_code == 143
    assert load(tmp_path / "cut/last.pt")["step"] == 3
    assert invoke("train", "--out", tmp_path / "cut", "--resume").exit_code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert invoke("train", "--out", tmp_path / "plain", *options).exit_code == 0
    with_moves, without = (load(tmp_path / name / "last.pt")["net"]["fe.weight"] for name in ("cut", "plain"))
    assert not torch.equal(with_moves, without)


def test_each_face_of_the_comparison_in_scenes_is_the_one_that_was_pasted(tmp_path):
    assert invoke("synth", tmp_path / "faces", "--n", 5, "--size", 96).exit_code == 0
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.rglob("*.jpg"))[:4]])
    crops, found = compare_scenes.crops_in_scenes(images, _alignment.template_of_folder(tmp_path / "faces"), np.random.default_rng(0))
    assert found.all() and crops.shape == images.shape
    middle = (slice(None), slice(24, 72), slice(24, 72))
    away = np.abs(crops[middle][:, None] - images[middle][None].astype(float)).mean((2, 3, 4))
    assert away.argmin(1).tolist() == [0, 1, 2, 3]


def test_the_comparison_in_scenes_counts_what_predict_says(sketch, faces_folder, monkeypatch):
    """Of eleven faces five are named rightly, ten in scenes; two of the ten were not found; four are named alike."""
    faces = _rafce.load_labels(faces_folder).of("test")
    paths = [faces_folder / "aligned" / f"{name.split('.')[0]}_aligned.jpg" for name in faces.names]
    told = json.loads(invoke("predict", "--ckpt", sketch, *paths, "--json").stdout)
    answers, asked = compare_scenes.answers, []
    right, right_in_scenes, found = (np.array(list(map(int, row)), bool) for row in ("11111000000", "11110111111", "11111111001"))
    named = [np.where(right, faces.y_emo, 13), np.where(right_in_scenes, faces.y_emo, 13)]
    monkeypatch.setattr(compare_scenes, "crops_in_scenes", lambda images, *_: (images, found))
    monkeypatch.setattr(compare_scenes, "answers", lambda *args: asked.append(answers(*args)) or named[len(asked) - 1])
    assert len(paths) == 11 and 13 not in faces.y_emo
    assert [values for values in compare_scenes.compare_on(faces_folder, 11, [str(sketch)])] == [
        pytest.approx([500 / 11, 800 / 11, 400 / 11])]
    for part in asked:
        assert [mmlfer.EMOTIONS[k] for k in part] == [one["expressions"][0]["name"] for one in told]


def test_a_face_of_a_scene_that_was_not_found_is_none():
    far = _alignment.Face(np.zeros(4), np.full((5, 2), 100.0), 0.9)
    near = _alignment.Face(np.zeros(4), np.full((5, 2), 12.0), 0.9)
    assert compare_scenes.nearest([far, near], (10, 10), 20) is near
    assert compare_scenes.nearest([far], (10, 10), 20) is None is compare_scenes.nearest([], (10, 10), 20)
