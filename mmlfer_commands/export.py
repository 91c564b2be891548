"""mmlfer export: a model to share, as a folder, or an ONNX file to deploy without torch."""

import json
import warnings
from pathlib import Path

import click
import numpy as np

from mmlfer import AU_NAMES, PATH, refused, torch, write_whole
from mmlfer_commands._models import (
    CARD, adjust_option, ckpt_option, load_model, tested, write_folder)
from mmlfer_commands._outputs import check_output, new_folder
from mmlfer_commands._runs import check_installed, versions

OPSET = 18
CLOSE = 1e-4  # between onnxruntime's probabilities and torch's


def deployable(net):
    """x (N, 3, S, S) uint8 RGB -> probabilities of the expressions (N, K) and the AUs (N, J)."""

    class Deployable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, image):
            _, z_emo, z_au = self.net(image)
            return z_emo.softmax(1), z_au.sigmoid()

    return Deployable().eval()


def metadata(ckpt, state):
    """What a user of the file must know, {name: JSON}."""
    import onnx

    cfg = state["config"]
    facts = {
        "expressions": state["emotions"], "aus": state["aus"], "aus_trained": state["trained_aus"],
        "au_names": [AU_NAMES[au] for au in state["aus"]], "template": state.get("template"),
        "size": cfg["size"], "colour_order": "RGB", "logit_adjust": cfg["logit_adjust"],
        "input": "image: (N, 3, size, size), uint8, 0..255; normalised inside",
        "template_points": "right eye, left eye (the subject's), middle of the mouth: x, y in "
        "parts of the side; null: not measured",
        "method": cfg["method"], "stats": Path(cfg["stats"]).name, "epoch": state["epoch"],
        "test_accuracy": (tested(ckpt, state) or {}).get("accuracy"),
        "versions": {**versions(), "onnx": onnx.__version__}}
    return {name: json.dumps(value) for name, value in facts.items()}


def to_onnx(model, size):
    """The ONNX model of a module over images; nothing of this machine is left in it."""
    x = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (x,), dynamo=True, verbose=False, opset_version=OPSET, external_data=False,
            input_names=["image"], output_names=["expression", "au"],
            dynamic_shapes={"image": {0: torch.export.Dim("N", min=1)}})
    proto = program.model_proto
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info,
                 *graph.initializer):
        part.ClearField("metadata_props")  # places in source files, of torch's tracing
        part.ClearField("doc_string")
    return proto


def check_onnx(content, model, size):
    """Compare a model's bytes with torch on batches of 1 and 3; returns the largest difference."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    rng, differences = np.random.default_rng(0), []
    for n in (1, 3):
        x = rng.integers(0, 256, (n, 3, size, size), np.uint8)
        ours = session.run(["expression", "au"], {"image": x})
        with torch.no_grad():
            theirs = [p.numpy() for p in model(torch.from_numpy(x))]
        if (ours[0].argmax(1) != theirs[0].argmax(1)).any():
            raise ValueError("another first expression than torch's")
        differences += [abs(a - b).max() for a, b in zip(ours, theirs)]
    largest = np.max(differences)  # NaN stays NaN
    if not largest <= CLOSE:
        raise ValueError(f"probabilities differ from torch's by {largest:.1e}")
    return largest


def export_onnx(ckpt, tau, out):
    """Write a model as an ONNX file, once checked. -> largest difference from torch's, bytes"""
    check_installed("export", ("onnx", "onnxscript", "onnxruntime"), "onnx")
    net, state = load_model(ckpt, "cpu", tau=tau)
    model, size = deployable(net), state["config"]["size"]
    proto = to_onnx(model, size)
    for name, value in metadata(ckpt, state).items():
        proto.metadata_props.add(key=name, value=value)
    content = proto.SerializeToString()
    with refused(out, "not written, the exported model is wrong: {}", Exception):  # onnx's kinds
        largest = check_onnx(content, model, size)
    write_whole(out, content)
    return largest, len(content)


@click.command("export")
@ckpt_option
@adjust_option
@click.option("--out", required=True, type=PATH, help="New folder, or NAME.onnx for an ONNX file.")
def command(ckpt, tau, out):
    """Write a model to share, as a folder, or as one ONNX file (needs the extra `onnx`).

    The folder has model.safetensors (the net alone), config.json and a model card, README.md, and
    names no image, person or machine; --ckpt takes it, or its name on the Hugging Face Hub.

    The ONNX file has the input "image" (N, 3, S, S), uint8, RGB 0..255, and the outputs
    "expression" (N, K) and "au" (N, J), probabilities. Its metadata have labels, size, alignment.
    """
    check_output(out, ckpt)
    if out.suffix.lower() != ".onnx":
        check_installed("export", ("safetensors",), "hub")
        _, state = load_model(ckpt, "cpu", tau=tau)
        with new_folder(out) as part:
            write_folder(part, state, tested(ckpt, state), versions())
        size = sum(path.stat().st_size for path in out.iterdir())
        return click.echo(f"{out}: {size / 2**20:.1f} MB; fill in the licence in {CARD}, then "
                          f"share it, for instance by: hf upload USER/NAME {out}")
    largest, size = export_onnx(ckpt, tau, out)
    click.echo(f"{out}: {size / 2**20:.1f} MB, opset {OPSET}; onnxruntime's probabilities are "
               f"within {largest:.1e} of torch's")
