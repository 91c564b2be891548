"""The bilevel step over several processes, in float64, beside one process that has the whole batch."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, load, random_batch
from test_bilevel import CFG, make_run

import mmlfer
from mmlfer_commands import _processes, _rafce

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
MEANS = ("g", "v", "psi", "base")  # in the order of a step

STEPS = """
import sys
import torch
import mmlfer, thin
from conftest import random_batch
from mmlfer_commands import _processes
from test_bilevel import make_run

mmlfer.make_backbone = thin.make_backbone
world, records, own = _processes.join_world("cpu"), {}, _processes.mean_class().backward

def lacking(left_out, form):  # the means over processes, without one of the four of each step
    order = ["g", "psi", "base"] if form == "create_graph" else ["g", "v", "psi", "base"]  # v is in a backward pass
    count = []
    def mean(tensors):
        count.append(1)
        return tensors if order[(len(count) - 1) % len(order)] == left_out else world.mean(tensors)
    return mean

for form in ("create_graph", "jvp", "general"):
    for batchnorm, left_out in [(True, None), (False, None), *[(False, name) for name in ("g", "v", "psi", "base")]]:
        run = make_run("mml", form, batchnorm)
        run.world, run.mean, run.processes = world, world.mean, world.size
        if left_out:
            run.mean = lacking(left_out, form)
            if form == "create_graph" and left_out == "v":
                _processes.mean_class().backward = staticmethod(lambda ctx, *grads: grads)
        for step in range(2):
            batch, val = ([part[world.share] for part in random_batch(16, seed=seed)] for seed in (step, 9 + step))
            last = mmlfer.train_step(run, batch, val)
        _processes.mean_class().backward = own
        records[repr((form, batchnorm, left_out))] = {
            "net": run.net.state_dict(), "psi": run.meta.state_dict(), "step": list(last)}
net = make_run("stl").net
records["predicted"] = [[torch.from_numpy(p) for p in world.predict(net, random_batch(n)[0])] for n in (300, 50)]
torch.save(records, f"{sys.argv[1]}/{world.rank}.pt")
"""


def together(script, *args, processes=2):
    """Run a script as several processes that find each other, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {**ENVIRONMENT, "WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    started = [subprocess.Popen([sys.executable, str(script), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**world, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)})
               for rank in range(processes)]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * processes, said
    return said


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What two processes have after two steps, {(form, whether there is BatchNorm, mean that is left out): record}."""
    folder = tmp_path_factory.mktemp("steps")
    (folder / "steps.py").write_text(STEPS)
    together(folder / "steps.py", folder)
    return [load(folder / f"{rank}.pt") for rank in range(2)]


class Grouped(torch.nn.BatchNorm2d):
    """BatchNorm of rows 0, 2, 4 ... and of rows 1, 3, 5 ... apart; the running statistics are the means of both."""

    def forward(self, x):
        groups = [x[0::2], x[1::2]]
        with torch.no_grad():
            for running, values in ((self.running_mean, [g.mean((0, 2, 3)) for g in groups]),
                                    (self.running_var, [g.var((0, 2, 3)) for g in groups])):
                running.mul_(1 - self.momentum).add_(sum(values) / 2, alpha=self.momentum)
            self.num_batches_tracked += 1
        normed = [torch.nn.functional.batch_norm(g, None, None, self.weight, self.bias, True, 0, self.eps) for g in groups]
        return torch.stack(normed, 1).flatten(0, 1)


def alone(batchnorm):
    """What one process has after the same two steps of the whole batches, by the definition."""
    run = make_run("mml", "create_graph", batchnorm)
    for module in run.net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.__class__ = Grouped
    for step in range(2):
        last = mmlfer.train_step(run, random_batch(16, seed=step), random_batch(16, seed=9 + step))
    return {"net": run.net.state_dict(), "psi": run.meta.state_dict(), "step": list(last)}


def far(one, other):
    """The largest relative difference between two records' nets, psi and Step."""
    pairs = [(one[part][name], tensor) for part in ("net", "psi") for name, tensor in other[part].items()]
    pairs.append((torch.stack(one["step"]), torch.stack(other["step"])))
    return max(float((a - b).double().norm() / b.double().norm().clamp(min=1e-30)) for a, b in pairs)


@pytest.mark.parametrize("form", ["create_graph", "jvp", "general"])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_two_processes_of_8_are_one_of_16(records, form, batchnorm):
    """With BatchNorm, as one that normalises each process's rows apart."""
    assert far(records[0][repr((form, batchnorm, None))], alone(batchnorm)) < 1e-12


@pytest.mark.parametrize("form", ["create_graph", "jvp", "general"])
@pytest.mark.parametrize("left_out", MEANS)
def test_each_of_the_four_means_is_needed(records, form, left_out):
    assert far(records[0][repr((form, False, left_out))], alone(False)) > 1e-10


def test_all_processes_have_the_same_nets_to_the_bit(records):
    for key in records[0]:
        if key.endswith("None)"):
            one, other = (record[key] for record in records)
            for part in ("net", "psi"):
                assert all(torch.equal(one[part][name], tensor) for name, tensor in other[part].items()), (key, part)
            assert one["step"] == other["step"]


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("augment", [False, True])
def test_the_plan_does_not_depend_on_the_number_of_processes(faces_folder, n, augment):
    cfg = mmlfer.dataclasses.replace(CFG, batch_size=8, augment=augment)
    faces = mmlfer.load_images(_rafce.load_labels(faces_folder), faces_folder, 32)
    whole, *shares = (mmlfer.Batches(faces, cfg, torch.device("cpu"), share=_processes.World(rank, size).share)
                      for rank, size in [(0, 1), *((rank, n) for rank in range(n))])
    for step, *parts in zip(whole.epoch(3), *(batches.epoch(3) for batches in shares), strict=True):
        for column, *own in zip(step, *parts, strict=True):
            assert all(torch.equal(part, column[rank::n]) for rank, part in enumerate(own))
            assert {len(part) for part in own} == {8 // n}
    assert len(step) == (6 if augment else 4)


def test_predictions_are_shared_out_and_gathered_in_order(records):
    """300 faces are five batches of 64; with 50 the second process has none."""
    net = make_run("stl").net
    for n, *got in zip((300, 50), *(record["predicted"] for record in records), strict=True):
        expected = mmlfer.predict_faces(net, random_batch(n)[0])
        assert all(np.array_equal(a.numpy(), b) for own in got for a, b in zip(own, expected, strict=True))
