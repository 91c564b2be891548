"""Checkpoint files from anywhere: what is refused, and that no code in them is run."""

import os

import pytest
import torch
from conftest import invoke, load
from PIL import Image

import mmlfer


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def write_trap(path):
    torch.save({"format": mmlfer.FORMAT, "net": Trap()}, path)


STRANGE = {
    "text": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
    "code": write_trap,
    "foreign": lambda path: torch.save({"weights": torch.zeros(3)}, path),
    "tensor": lambda path: torch.save(torch.zeros(3), path),
    "folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("args", [("eval",), ("predict", "face.png"), ("gradcam", "--out", "g.png", "face.png")])
@pytest.mark.parametrize("kind", STRANGE)
def test_strange_checkpoints_are_refused_and_run_no_code(tmp_path, monkeypatch, kind, args):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "strange.pt"
    STRANGE[kind](path)
    Image.new("RGB", (32, 32)).save("face.png")
    result = invoke(*args, "--ckpt", path)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    assert result.stderr.startswith(f"Error: {path}{'/config.json' * (kind == 'folder')}: ")
    assert not (tmp_path / "trapped").exists()


def test_truncated_and_other_checkpoints_are_refused(trained, tmp_path):
    whole = (trained[0] / "best.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    result = invoke("eval", "--ckpt", tmp_path / "cut.pt")
    assert result.exit_code == 1 and "not a checkpoint that can be read safely" in result.stderr
    state = load(trained[0] / "best.pt")
    for damage in ({"config": None}, {"net": []}, {"config": {**state["config"], "size": "x"}},
                   {"config": {**state["config"], "method": "zz"}}, {"config": {**state["config"], "arch": "vgg"}},
                   {"config": {**state["config"], "data": None}}, {"config": {}}, {"aus": [1, 3]}, {"aus": None},
                   {"emotions": [1, 2]}, {"trained_aus": [8]}):
        torch.save({**state, **damage}, tmp_path / "damaged.pt")
        result = invoke("eval", "--ckpt", tmp_path / "damaged.pt")
        assert result.stderr == f"Error: {tmp_path}/damaged.pt: of another version of mmlfer, or damaged\n"
    torch.save({**state, "net": {**state["net"], "fe.weight": torch.zeros(7, 512)}}, tmp_path / "fe.pt")
    result = invoke("eval", "--ckpt", tmp_path / "fe.pt")
    assert result.exit_code == 1 and "fe.weight" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("size,taken", [(31, False), (32, True), (512, True), (513, False)])
def test_a_checkpoint_of_any_size_that_train_takes_is_read(sketch, tmp_path, size, taken):
    state = load(sketch)
    torch.save({**state, "config": {**state["config"], "size": size}}, tmp_path / "c.pt")
    if taken:
        assert mmlfer.read_checkpoint(tmp_path / "c.pt")["config"]["size"] == size
    else:
        with pytest.raises(mmlfer.InputError, match="of another version of mmlfer, or damaged"):
            mmlfer.read_checkpoint(tmp_path / "c.pt")
