"""Options reach the functions that they are for, and numbers reach what is printed."""

import json
import types

import numpy as np
import pytest
import torch
from conftest import invoke
from PIL import Image

import mmlfer
from mmlfer_commands import (
    _alignment,
    _figures,
    _processes,
    _rafce,
    bench,
    crop,
    demo,
    plot,
    predict,
    pretrain,
    serve,
    synth,
    train,
    video,
)


class Stop(Exception):
    """Raised where a test has seen enough."""


def recorder(seen, result=None):
    """A function that records its arguments, then returns `result`, or raises Stop if that is None."""

    def record(*args, **options):
        seen.append((*args, *options.values()))
        if result is None:
            raise Stop
        return result

    return record


@pytest.mark.parametrize("command", [("eval",), ("predict", "face.png"), ("gradcam", "face.png", "--out", "g.png"),
                                     ("bench", "--rounds", 1), ("demo", "--out", "d"), ("video", "a.mp4", "--out", "v"),
                                     ("serve", "--port", 0)])
def test_a_device_that_is_not_there_is_asked_for(sketch, faces_folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/faces").symlink_to(faces_folder)
    Image.new("RGB", (32, 32)).save("face.png")
    name, *words = command
    if name not in ("bench", "demo"):
        words += ["--ckpt", sketch]
    monkeypatch.setattr(serve, "run_server", lambda *args: None)
    if name == "bench":  # in this process
        monkeypatch.setattr(bench, "in_processes", lambda n, function, jobs, **options: map(function, jobs))
    result = invoke(name, *words, "--device", "abacus")
    assert result.exit_code == 1 and "--device abacus: " in result.stderr


def test_bench_does_what_its_options_say(monkeypatch):
    jobs, calls, rounds, processes = [], [], [], []
    monkeypatch.setattr(bench, "in_processes", lambda n, function, work, **options: (
        jobs.extend(work), processes.append((n, options)), [1.0] * len(work))[2])
    monkeypatch.setattr(bench, "bench_call", recorder(calls, "call"))
    monkeypatch.setattr(bench, "time_calls", recorder(rounds, {name: [1.0, 2.0, 9.0] for name in bench.BENCH}))
    monkeypatch.setattr(bench, "pick_device", lambda name: torch.device("cpu"))
    result = invoke("bench", "--arch", "resnet50", "--batch-size", 3, "--size", 40, "--rounds", 7, "--json", "--device", "cuda:3")
    rows = json.loads(result.stdout)
    assert jobs == calls == [(name, "resnet50", 3, 40, "cuda:3") for name in bench.BENCH]
    assert rounds == [(dict.fromkeys(bench.BENCH, "call"), 7)]
    assert processes == [(1, {"max_tasks_per_child": 1})]  # one after the other, each of its own peak
    assert {row["seconds"] for row in rows.values()} == {2.0}  # the median


def test_synth_draws_what_its_options_say(tmp_path, monkeypatch):
    faces, people = [], []
    monkeypatch.setattr(synth, "synthesize", recorder(faces))
    monkeypatch.setattr(synth, "synthesize_people", recorder(people))
    invoke("synth", tmp_path, "--n", 7, "--test", 2, "--stats", "lab", "--size", 40, "--seed", 9, "--au-noise", 0.5)
    invoke("synth", tmp_path, "--labels", "l", "--size", 41)
    invoke("synth", tmp_path, "--people", 5, "--per-person", 3, "--stats", "lab", "--size", 42, "--seed", 8)
    assert faces == [(tmp_path, 7, "lab", None, 40, 9, 0.5, 2), (tmp_path, 1400, "wild", "l", 41, 0, 0.0, 0)]
    assert people == [(tmp_path, 5, 3, "lab", 42, 8)]


def test_crop_and_predict_take_the_alignment_that_is_given(sketch, tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
    chosen, cropped, found = [], [], []
    for module in (crop, predict, serve, video):
        monkeypatch.setattr(module, "choose_template", recorder(chosen, "template" if module in (crop, predict) else None))

    def crop_photos(photos, names, crops):
        cropped.append((photos, crops.template, crops.size, crops.out))
        for path, crops.count in (("a", 3), ("b", 3), ("c", 3)):  # three faces in the first
            yield path, []

    monkeypatch.setattr(crop, "crop_photos", crop_photos)
    monkeypatch.setattr(predict, "items_of_photos", recorder(found, []))
    photo, like = tmp_path / "p.png", ("--like", tmp_path / "like")
    result = invoke("crop", photo, "--out", tmp_path / "o", "--size", 50, *like)
    assert result.stdout == f"3 faces of 1 images, 2 without a face, 0 that cannot be read: {tmp_path}/o\n"
    assert invoke("predict", "--ckpt", sketch, "--photos", photo, *like).exit_code == 0
    assert cropped == [([photo], "template", 50, tmp_path / "o")] and found == [([photo], 32, "template")]
    for command in (("video", tmp_path / "a.mp4", "--out", tmp_path / "v"), ("serve", "--port", 0)):
        assert isinstance(invoke(*command, "--ckpt", sketch, *like).exception, Stop)
    assert [args[0] for args in chosen] == [tmp_path / "like"] * 4
    assert [args[1]["config"]["size"] for args in chosen[1:]] == [32] * 3


def test_the_demo_reports_its_best_epoch(trained, faces_folder, tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/faces").symlink_to(faces_folder)
    test = json.loads((trained[0] / "test.json").read_text())
    test["best"].update(accuracy=0.4321, n=77), test["last"].update(accuracy=0.1, n=76)
    given = []
    monkeypatch.setattr(demo, "fit", recorder(given, test))
    result = invoke("demo", "--out", tmp_path / "d", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "On these 77 stand-in test faces" in result.stdout and "accuracy of this model                43.21 %" in result.stdout
    assert "confusion: true expressions down, predicted across" in result.stdout  # the whole report
    assert given[0][0].device == "cpu" and given[0][1] == tmp_path / "d"


def test_pretraining_takes_its_rates():
    opt = types.SimpleNamespace(seed=0, batch_size=64, arch="resnet18", precision="float32", lr=0.2, momentum=0.7,
                                weight_decay=0.3, epochs=2)
    run = pretrain.Pretraining(opt, 8, 640, _processes.World(0, 1, torch.device("cpu")))
    (group,) = run.sgd.param_groups
    assert [*map(id, group["params"])] == [*map(id, run.net.parameters())]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.2 * 64 / 512, 0.7, 0.3, False)


def test_the_digest_of_images_is_of_all_of_them():
    """Also of images after the first part of 256."""
    images = torch.zeros(300, 3, 2, 2, dtype=torch.uint8)
    digests = {train.digest_of_images(images)}
    for i in (0, 255, 256, 299):
        changed = images.clone()
        changed[i, 2, 1, 1] = 1
        digests.add(train.digest_of_images(changed))
    digests.add(train.digest_of_images(torch.zeros(75, 3, 4, 4, dtype=torch.uint8)))  # as many bytes
    assert len(digests) == 6


def test_each_kind_of_random_numbers_keeps_its_stream():
    """From these numbers runs, data sets and partitions are drawn again; two of one number are of different commands."""
    assert {name: int(stream) for name, stream in mmlfer.Stream.__members__.items()} == {
        "LABELS": 1, "FACES": 2, "BATCHES": 3, "PEOPLE": 4, "HELD_OUT": 4, "PAIRS": 5, "AU_NOISE": 5, "FLIPS": 6,
        "TEST_LABELS": 7, "TEST_FACES": 8, "MOVES": 9, "UNCODED": 10, "SHARES": 11, "MASKS": 12, "PARTITION": 20}


# ---------------------------------------------------------------- plot


def test_a_run_with_runs_below_it_is_a_run(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "plot_methods", lambda rows, path: drawn.append("several runs"))
    monkeypatch.setattr(plot, "plot_curves", lambda log, steps, path: drawn.append("run"))
    monkeypatch.setattr(plot, "plot_confusion", lambda numbers, path: drawn.append("tested"))
    monkeypatch.setattr(plot, "read_results", lambda folder: None)
    monkeypatch.setattr(plot, "read_part", lambda path, parse: None)
    (tmp_path / "below").mkdir()
    (tmp_path / "below/test.json").touch()
    for name in ("x.txt", "log.csv", "test.json"):
        (tmp_path / name).touch()
        assert invoke("plot", tmp_path).exit_code == 0
    assert drawn == ["several runs", "run", "run", "tested"]


def test_a_written_figure_is_closed(tmp_path):
    plt = _figures.pyplot()
    plt.close("all")
    _figures.save_figure(plt.subplots()[0], tmp_path / "f.SVG")
    assert plt.get_fignums() == [] and (tmp_path / "f.SVG").read_bytes().startswith(b"<?xml")


# ---------------------------------------------------------------- faces looked at again

FIVE = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.75], [0.65, 0.75]])


def test_a_second_look_takes_the_surest_detection_of_the_face_asked_for(monkeypatch):
    """The square that the detector sees has a neighbouring face, and two detections of the face."""
    target = _alignment.PUBLIC * 300 + (384 - 300) / 2
    place = np.array([target[0, 0] - 0.3 * 280, target[0, 1] - 0.4 * 280])
    found = [_alignment.Face(np.zeros(4), 280 * FIVE + place + shift, score)
             for shift, score in ((300, 0.99), (4, 0.7), (0, 0.9), (8, 0.8))]
    monkeypatch.setattr(_alignment, "detect", lambda image, use: found)
    seen = _alignment.look(np.zeros((500, 500, 3), np.uint8), target, 384, 300)  # asked for where it already is
    assert np.allclose(seen.points, found[2].points) and seen.score == 0.9
    found[1:] = [_alignment.Face(np.zeros(4), found[2].points, 0.59)]  # not sure
    assert _alignment.look(np.zeros((500, 500, 3), np.uint8), target, 384, 300) is None


def test_two_detections_that_closer_looks_bring_together_are_one_face(monkeypatch):
    found = [_alignment.Face(np.array([x, 0, 9, 9.0]), 100 * FIVE + (x, 0), score) for x, score in ((0, 0.9), (60, 0.8))]
    monkeypatch.setattr(_alignment, "search", lambda image: iter(found))
    monkeypatch.setattr(_alignment, "look_closely", lambda image, three: found[0])
    assert [face.score for face in crop.find_faces(None)] == [0.9]


@pytest.mark.parametrize("apart,small", [(9.9, True), (10.1, False)])
def test_a_face_is_small_by_its_eyes(apart, small):
    points = 100 * FIVE  # a mouth of 30 pixels
    points[1] = points[0] + (apart, 0)
    told = _alignment.Face(np.array([1.26, 2, 3, 4]), points, 0.87654321).described(np.zeros((200, 200, 3)))
    assert told["small"] is small and told["score"] == 0.8765 and told["box"] == [1.3, 2, 3, 4]


# ---------------------------------------------------------------- tables


def test_numbers_of_a_split_are_of_its_images(sketch, faces_folder, tmp_path):
    """`eval --data` on images of which some are missing: these are reported, the others counted."""
    folder = tmp_path / "faces"
    (folder / "aligned").mkdir(parents=True)
    for file in mmlfer.LABEL_FILES:
        (folder / file).write_bytes((faces_folder / file).read_bytes())
    test = _rafce.load_labels(folder).of("test").names
    for name in test[1:]:
        (folder / f"aligned/{name}").symlink_to(faces_folder / f"aligned/{mmlfer.stem(name)}_aligned.jpg")
    refused = invoke("eval", "--ckpt", sketch, "--data", folder)
    assert refused.exit_code == 1 and f"{test[0]} is not found below {folder}" in refused.stderr
    result = invoke("eval", "--ckpt", sketch, "--data", folder, "--skip-bad-images", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["n"] == len(test) - 1
    assert "left out 1 images that cannot be read" in result.stderr
