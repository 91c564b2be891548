"""The cost of a step."""

import json
import resource
import sys
import time

import pytest
import torch
from conftest import invoke

from mmlfer_commands import bench


def test_bench_prints_one_object(monkeypatch):
    """All in this process, instead of a new one for each job, which loads torch."""
    monkeypatch.setattr(bench, "in_processes", lambda workers, function, jobs, **options: map(function, jobs))
    result = invoke("bench", "--batch-size", 2, "--size", 32, "--rounds", 1, "--json", "--device", "cpu", "--precision", "bf16")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    names = ["forward", "plain", "create_graph", "jvp", "general"]
    assert list(rows) == [*names, *(f"{name} bf16" for name in names)]
    for row in rows.values():
        assert list(row) == ["seconds", "per_forward", "per_plain", "images_per_second", "peak_mb"]
        assert all(v > 0 for v in row.values())
        assert row["per_forward"] == pytest.approx(row["seconds"] / rows["forward"]["seconds"])
        assert row["per_plain"] == pytest.approx(row["seconds"] / rows["plain"]["seconds"])
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["peak_mb"] > 100  # torch alone


def test_the_first_round_is_not_counted():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.3 if order.count(name) == 1 else 0)) for name in "ab"}
    seconds = bench.time_calls(calls, 4)
    assert order == ["a", "b"] * 5
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4}
    assert max(max(times) for times in seconds.values()) < 0.3


@pytest.mark.parametrize("name,method,form,precision", [
    ("plain", "mtl", "create_graph", "float32"), ("create_graph", "mml", "create_graph", "float32"),
    ("jvp", "mml", "jvp", "float32"), ("general", "mml", "general", "float32"), ("plain bf16", "mtl", "create_graph", "bf16"), ("jvp bf16", "mml", "jvp", "bf16")])
def test_each_call_is_one_step_of_its_method(monkeypatch, name, method, form, precision):
    steps = []
    monkeypatch.setattr(bench, "train_step", lambda run, batch, val: steps.append((run, batch, val)))
    call = bench.bench_call(name, "resnet18", 3, 40, "cpu")
    assert not steps
    call()
    (run, (x, y_emo, y_au), (x_val, y_val, _)), = steps
    assert (run.cfg.method, run.hypergrad, bool(run.meta), run.net.precision) == (method, form, method == "mml", precision)
    assert x.shape == x_val.shape == (3, 3, 40, 40) and x.dtype == torch.uint8 and not torch.equal(x, x_val)
    assert y_emo.shape == y_val.shape == (3,) and y_au.shape == (3, 32) and 0 < y_au.mean() < 0.3


def test_a_forward_pass_trains_nothing(monkeypatch):
    made = []

    class Run(bench.Run):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(bench, "Run", Run)
    call = bench.bench_call("forward", "resnet18", 2, 32, "cpu")
    before = [p.clone() for p in made[0].net.parameters()]
    call()
    assert all(map(torch.equal, before, made[0].net.parameters()))


@pytest.mark.parametrize("platform,unit", [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_the_systems_own_unit(monkeypatch, platform, unit):
    monkeypatch.setattr(bench, "bench_call", lambda *job: lambda: calls.append(job))
    monkeypatch.setattr(sys, "platform", platform)
    calls, peak = [], 3 * 2**20 // unit
    monkeypatch.setattr(resource, "getrusage", lambda who: type("Usage", (), {"ru_maxrss": peak}))
    assert bench.bench_peak(("plain", "resnet18", 2, 32, "cpu")) == 3
    assert calls == [("plain", "resnet18", 2, 32, "cpu")] * 2


def test_a_step_too_large_for_memory_is_one_line(monkeypatch):
    def run_out(*args, **options):
        raise RuntimeError("can't allocate memory:\nyou tried 8 TB")
        yield

    monkeypatch.setattr(bench, "in_processes", run_out)
    assert invoke("bench", "--batch-size", 9999).stderr == (
        "Error: --batch-size 9999 --size 112: cannot be run (can't allocate memory: you tried 8 TB); take less\n")


LEFT_OUT = ("bf16 is left out: without instructions for it, here, it is slower than float32; --precision bf16 times it all "
            "the same\n")


@pytest.mark.parametrize("has,precision,bf16,line", [
    (False, "auto", False, LEFT_OUT), (True, "auto", True, ""), (False, "float32", False, ""), (True, "float32", False, ""),
    (False, "bf16", True, ""), (True, "bf16", True, "")])
@pytest.mark.parametrize("json_", [(), ("--json",)])
def test_bf16_is_timed_where_the_device_has_instructions_for_it(monkeypatch, has, precision, bf16, line, json_):
    names = ["forward", "plain", "create_graph", "jvp", "general"]
    names += [f"{name} bf16" for name in names] if bf16 else []
    asked, timed = [], []
    monkeypatch.setattr(bench, "has_bf16", lambda device: has)
    monkeypatch.setattr(bench, "in_processes", lambda workers, function, jobs, **options: (asked.extend(jobs), [1.0] * len(jobs))[1])
    monkeypatch.setattr(bench, "bench_call", lambda name, *job: name)
    monkeypatch.setattr(bench, "time_calls", lambda calls, rounds: (timed.extend(calls), {name: [2.0] for name in calls})[1])
    result = invoke("bench", "--precision", precision, "--device", "cpu", *json_)
    assert (result.exit_code, result.stderr) == (0, line), result.output
    assert [job[0] for job in asked] == timed == names
    assert list(json.loads(result.stdout)) == names if json_ else ("jvp bf16: " in result.stdout) is bf16


def test_table_of_the_numbers():
    row = {"seconds": 2.0, "per_forward": 1.0, "per_plain": 0.5, "images_per_second": 8.0, "peak_mb": 100.0}
    lines = bench.bench_table({name: {**row, "seconds": 2.0 + i} for i, name in enumerate(bench.BENCH)}, "resnet34", 16, 112, "cpu").splitlines()
    assert lines[0].startswith("resnet34, batch 16, 112x112, ") and lines[2].split() == ["forward", "2.000", "1.00", "0.50", "8.0", "100"]
    assert [line.split()[-5] for line in lines[2:12]] == [f"{2 + i}.000" for i in range(10)] and len(lines) == 16
    seconds = {"plain": 3, "create_graph": 4, "jvp": 5, "jvp bf16": 10}
    assert lines[-4:] == [f"60 epochs of RAF-CE's 169 steps, {name}: {60 * 169 * s / 3600:.2f} h (computed)" for name, s in seconds.items()]


def test_forms_that_a_net_does_not_have_are_left_out(monkeypatch):
    """SiLU has no tangent rule here, and torch's hardsigmoid no second derivative."""
    monkeypatch.setattr(bench, "in_processes", lambda workers, function, jobs, **options: map(function, jobs))

    class Net(torch.nn.Sequential):
        num_features = 4

        def __init__(self, layer):
            super().__init__(torch.nn.Conv2d(3, 4, 3), layer, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    for layer, left in ((torch.nn.SiLU, ["jvp"]), (torch.nn.Hardsigmoid, ["create_graph", "jvp"]), (torch.nn.ReLU, [])):
        monkeypatch.setattr("mmlfer.make_backbone", lambda arch, size=112, layer=layer: Net(layer()))
        result = invoke("bench", "--batch-size", 2, "--size", 32, "--rounds", 1, "--json", "--precision", "float32")
        assert list(json.loads(result.stdout)) == [name for name in bench.STEPS if name not in left], layer
        assert result.stderr.startswith(f"left out: {', '.join(left)}: resnet34 has a layer") if left else not result.stderr
