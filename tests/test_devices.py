"""Devices that a test machine need not have: torch's device `meta`, which holds no numbers, shows where tensors are."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import run_of

import mmlfer
from mmlfer_commands import _processes

META = torch.device("meta")


@pytest.fixture
def faces():
    """12 faces, 4 of them for validation."""
    split = np.repeat([mmlfer.TRAIN, mmlfer.VAL], [8, 4])
    return mmlfer.Faces([""] * 12, np.arange(12), split, np.zeros((12, 32), np.uint8), torch.zeros(12, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("hypergrad", ["jvp", "create_graph"])
def test_a_step_is_taken_where_the_run_is(faces, monkeypatch, hypergrad):
    """torch refuses to mix devices. Only Statistics reads a value: whether its table has rows of zeros."""
    monkeypatch.setattr(mmlfer, "pick_device", lambda name: torch.device(name))
    monkeypatch.setattr(mmlfer.Statistics, "of", classmethod(lambda cls, table, form: cls(table, form, None)))
    cfg = mmlfer.Config(data="-", arch="resnet18", size=32, batch_size=4, weights="none", device="meta", hypergrad=hypergrad,
                        augment=True, schedule="onecycle")
    run, batches = run_of(cfg, 2), mmlfer.Batches(faces, cfg, META)
    held = [*run.net.parameters(), *run.net.buffers(), *run.meta.parameters(), run.table, run.trace]
    held += [batches.images, batches.y_emo, batches.y_au, *batches.epoch(0)[1]]
    assert {tensor.device for tensor in held} == {META}
    for part in batches.pair(*batches.epoch(0)[0]):
        assert [tensor.device for tensor in part] == [META] * 3
    run.trace[0] = torch.stack(mmlfer.train_step(run, *batches.pair(*batches.epoch(0)[0])))
    assert {run.opt.state[p]["momentum_buffer"].device for p in run.net.parameters()} == {META}


def test_a_checkpoint_goes_where_it_is_asked_for(sketch, monkeypatch):
    monkeypatch.setattr(mmlfer, "pick_device", lambda name: torch.device(name))
    net, _ = mmlfer.load_net(sketch, "meta")
    assert {tensor.device for tensor in net.state_dict().values()} == {META} and not net.training


@pytest.mark.parametrize("rank,local", [(9, 1), (8, 0)])
def test_each_process_has_the_gpu_of_its_place_on_its_machine(monkeypatch, rank, local):
    """The second machine of 8 GPUs."""
    for name, value in (("RANK", rank), ("WORLD_SIZE", 16), ("LOCAL_RANK", local)):
        monkeypatch.setenv(name, str(value))
    chosen, joined = [], []
    monkeypatch.setattr(_processes, "pick_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, timeout: joined.append(backend))
    world = _processes.join_world("auto")
    assert dataclasses.astuple(world)[:2] == (rank, 16) and world.device == torch.device("cuda", local)
    assert chosen == [world.device] and joined == ["nccl"]
    assert _processes.join_world("cpu").device == torch.device("cpu") and joined == ["nccl", "gloo"]
