"""The backbone in bf16: --precision."""

import contextlib
import dataclasses
import json
import re
import types

import compare_precision
import numpy as np
import pytest
import torch
from conftest import (
    SMALL,
    assert_same_run,
    end_at_the_third_step,
    invoke,
    load,
    random_batch,
    run_of,
)

import mmlfer
from mmlfer_commands import _hypergrads, _runs, train, video

CFG = mmlfer.Config(data="-", arch="resnet18", size=32, batch_size=4, weights="none", device="cpu", precision="bf16",
                    hypergrad="jvp")
BF16, FLOAT = torch.bfloat16, torch.float32


def batches(n=4):
    return [random_batch(n, seed=seed, dtype=FLOAT) for seed in (0, 1)]


@pytest.mark.parametrize("hypergrad", ["jvp", "create_graph"])
def test_the_backbone_alone_computes_in_bf16(hypergrad):
    run, seen = run_of(dataclasses.replace(CFG, hypergrad=hypergrad)), {}
    for name, layer in [*run.net.named_modules(), ("meta", run.meta)]:
        layer.register_forward_hook(lambda layer, x, y, name=name: seen.setdefault(name, set()).add(
            y.dtype if isinstance(y, torch.Tensor) else tuple(part.dtype for part in y)))
    batch, val = batches()
    taped, omega = mmlfer.meta_train(run, batch)
    grad_psi = mmlfer.meta_test(run, taped, omega, val, hypergrad)
    mmlfer.train_step(run, batch, val)
    assert {name: seen[name] for name in ("backbone.conv1", "backbone.bn1", "backbone.layer4.0.bn2", "backbone", "fe", "au",
                                          "meta", "")} == {
        "backbone.conv1": {BF16}, "backbone.bn1": {BF16}, "backbone.layer4.0.bn2": {BF16}, "backbone": {BF16},
        "fe": {FLOAT}, "au": {FLOAT}, "meta": {FLOAT}, "": {(FLOAT,) * 3}}
    kept = [taped.f, taped.losses, omega, *grad_psi, *run.net.parameters(), *run.meta.parameters()]
    kept += [b for name, b in run.net.named_buffers() if "num" not in name] + [p.grad for p in run.net.parameters()]
    kept += [run.opt.state[p]["momentum_buffer"] for p in run.net.parameters()]
    assert {part.dtype for part in kept} == {FLOAT}


def test_a_tangent_pass_rounds_where_the_forward_does(real_resnet18, monkeypatch):
    """The result of each rule has the number format of its layer's result."""
    run, formats = run_of(CFG), []

    def noted(rule):
        def with_note(layer, x, y, dx, d):
            dy = rule(layer, x, y, dx, d)
            formats.append((type(layer).__name__, y.dtype, dy.dtype))
            return dy
        return with_note

    monkeypatch.setattr(mmlfer, "TANGENTS", {name: noted(rule) for name, rule in mmlfer.TANGENTS.items()})
    batch, val = batches()
    mmlfer.meta_test(run, *mmlfer.meta_train(run, batch), val, "jvp")
    assert len(formats) == 60 and all(y is dy for _, y, dy in formats)
    assert {(name, y) for name, y, _ in formats} == {
        ("Conv2d", BF16), ("BatchNorm2d", BF16), ("ReLU", BF16), ("MaxPool2d", BF16), ("Linear", FLOAT)}


def test_float32_never_enters_autocast(monkeypatch):
    monkeypatch.setattr(torch, "autocast", None)
    run = run_of(dataclasses.replace(CFG, precision="float32"))
    mmlfer.train_step(run, *batches())
    with pytest.raises(TypeError):
        mmlfer.train_step(run_of(CFG), *batches())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bf16_is_checked_on_the_device_of_the_net(monkeypatch, device):
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda *args: asked.append(args) or contextlib.nullcontext())
    net = types.SimpleNamespace(precision="bf16", mean=types.SimpleNamespace(device=torch.device(device)), backbone=lambda x: x,
                                training=False)
    assert torch.equal(mmlfer.features(net, torch.ones(2)), torch.ones(2)) and asked == [(device, BF16)]


def calm_run(cfg=CFG):
    """A run with residual branches at a fifth of their scale, because a net with random weights enlarges rounding."""
    run = run_of(cfg)
    with torch.no_grad():
        for name, p in run.net.named_parameters():
            p *= 0.2 if ".bn2." in name else 1
    return run


def test_the_hypergradient_in_bf16_lies_near_that_in_float64(real_resnet18):
    run = calm_run(dataclasses.replace(CFG, precision="float32"))
    pairs = [[random_batch(8, seed=seed, dtype=FLOAT) for seed in (step, step + 9)] for step in range(2)]
    rows = compare_precision.compare(run, pairs)
    assert list(rows) == [("float32", "create_graph"), ("float32", "jvp"), ("bf16", "create_graph"), ("bf16", "jvp")]
    for (precision, _), values in rows.items():
        least, most = (0.9999, 1e-4) if precision == "float32" else (0.9, 0.5)
        cosine, error = values.T
        assert len(cosine) == 2 and cosine.min() > least and error.max() < most
        assert precision == "float32" or error.min() > 1e-3


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_auto_compares_the_forms_in_float32(capsys, precision):
    """In bf16 they differ by some percent, from rounding alone."""
    run = calm_run(dataclasses.replace(CFG, precision=precision, hypergrad="auto"))
    assert _hypergrads.choose_hypergrad(run, *batches()) == "jvp" and run.net.precision == precision
    difference = re.search(r"by (\S+); going on with jvp", capsys.readouterr().out)[1]
    assert float(difference) < 1e-4


def test_a_run_in_bf16_resumes_to_the_same_end_and_says_what_it_is(faces_folder, tmp_path, monkeypatch):
    options = ("--data", faces_folder, "--epochs", 1, "--arch", "resnet18", "--precision", "bf16", *SMALL)
    whole = invoke("train", "--out", tmp_path / "whole", *options)
    assert whole.exit_code == 0 and re.search(r"\nboth tests took \d+\.\d s\n$", whole.stdout), whole.output
    assert json.loads((tmp_path / "whole/test.json").read_text())["options"]["precision"] == "bf16"
    loaded, load_net = [], mmlfer.load_net
    end_at_the_third_step(monkeypatch)
    monkeypatch.setattr(train, "load_net", lambda *args: (loaded.append(args[1:3]), load_net(*args))[1])
    assert invoke("train", "--out", tmp_path / "cut", *options).exit_code == 143
    assert load(tmp_path / "cut/last.pt")["step"] == 3
    refused = invoke("train", "--out", tmp_path / "cut", "--resume", "--precision", "float32")
    assert refused.exit_code == 1 and "its run has --precision bf16, not float32" in refused.stderr
    assert invoke("train", "--out", tmp_path / "cut", "--resume").exit_code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert loaded == [("cpu", "bf16")]


def test_predict_and_eval_compute_as_they_are_asked(sketch, faces_folder, monkeypatch):
    """They use the format that is asked for, not that of the training: the results are near each other, not equal."""
    formats, answers, features = [], {}, mmlfer.features
    monkeypatch.setattr(mmlfer, "features", lambda net, x: (formats.append(net.precision), features(net, x))[1])
    for precision in ("float32", "bf16"):
        result = invoke("predict", "--ckpt", sketch, faces_folder / "aligned", "--json", "--device", "cpu", "--top", 14,
                        "--precision", precision)
        assert result.exit_code == 0, result.output
        answers[precision] = np.array([[e["p"] for e in sorted(face["expressions"], key=lambda e: e["name"])]
                                       for face in json.loads(result.stdout)])
        predicted = len(formats)
        assert invoke("eval", "--ckpt", sketch, "--precision", precision, "--json").exit_code == 0
        assert 0 < predicted < len(formats) and {*formats} == {precision}
        formats.clear()
    difference = np.abs(answers["bf16"] - answers["float32"]).max()
    assert answers["bf16"].shape == (60, 14) and 1e-5 < difference < 0.1


SLOWER = "--precision bf16: slower than float32: this CPU has no bf16 instructions\n"


def test_video_gives_precision_to_the_net(tmp_path, monkeypatch):
    def load_model(*args):
        raise mmlfer.InputError(f"asked for {args[1:3]}")

    monkeypatch.setattr(video, "load_model", load_model)
    for options, precision in ((), "float32"), (("--precision", "bf16"), "bf16"):
        result = invoke("video", tmp_path / "a.mp4", "--ckpt", "x.pt", "--out", tmp_path, *options)
        assert result.stderr == f"Error: asked for ('auto', '{precision}')\n"


@pytest.mark.parametrize("command", ["train", "eval", "predict", "video"])
def test_a_cpu_without_bf16_is_reported_once(command, sketch, faces_folder, tmp_path, monkeypatch):
    arguments = {"train": ("--data", tmp_path), "eval": ("--ckpt", sketch, "--data", tmp_path),
                 "predict": ("--ckpt", sketch, faces_folder / "aligned/0001_aligned.jpg"),
                 "video": (tmp_path / "a.mp4", "--ckpt", sketch, "--out", tmp_path)}[command]
    option = ("--precision", "bf16")
    for name, has in (("_is_avx512_bf16_supported", True), ("_is_amx_tile_supported", False)):
        monkeypatch.setattr(torch.cpu, name, lambda has=has: has)
    monkeypatch.setattr(_runs.platform, "machine", lambda: "x86_64")
    mmlfer.tell_once.cache_clear()
    assert SLOWER not in invoke(command, *arguments, *option, "--device", "cpu").stderr
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    mmlfer.tell_once.cache_clear()
    assert SLOWER not in invoke(command, *arguments, "--device", "cpu").stderr
    assert invoke(command, *arguments, *option, "--device", "cpu").stderr.count(SLOWER) == 1


def test_which_devices_have_bf16_instructions(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    for machine, amx, has in (("x86_64", False, False), ("AMD64", False, False), ("x86_64", True, True), ("aarch64", False, True)):
        monkeypatch.setattr(_runs.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert _runs.has_bf16(torch.device("cpu")) is has
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not _runs.has_bf16(types.SimpleNamespace(type="cuda"))
