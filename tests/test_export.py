"""The checkpoint as an ONNX file."""

import json
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import invoke
from PIL import Image

import mmlfer
from mmlfer_commands import export


@pytest.fixture(scope="module")
def exported(sketch_34, tmp_path_factory):
    """A checkpoint of ResNet-34 beside a test.json, and its export."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(sketch_34, folder / "best.pt")
    figures = {"confusion": [[1]], **dict.fromkeys(("n", "diag", "macro_f1", "per_class", "au_f1", "au_f1_macro"), 0)}
    result = {"best": {"epoch": 0, "accuracy": 0.4375, **figures}, "last": {"epoch": 3, "accuracy": 0.25, **figures}}
    (folder / "test.json").write_text(json.dumps(result))
    result = invoke("export", "--ckpt", folder / "best.pt", "--out", folder / "model.onnx")
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def answer(path, x):
    return onnxruntime.InferenceSession(str(path)).run(["expression", "au"], {"image": x})


@pytest.mark.parametrize("n", [1, 2, 3, 65])
def test_onnxruntime_answers_as_torch_does(exported, faces_folder, n):
    folder, _ = exported
    faces = [np.asarray(Image.open(p)) for p in sorted((faces_folder / "aligned").iterdir())]
    x = np.stack([faces[i % 60] for i in range(n)]).transpose(0, 3, 1, 2)
    p_emo, p_au = answer(folder / "model.onnx", x)
    state = torch.load(folder / "best.pt", weights_only=True)
    net = mmlfer.make_base_net()
    net.load_state_dict(state["net"])
    with torch.no_grad():
        _, z_emo, z_au = net.eval()(torch.tensor(x))
    assert p_emo.shape == (n, 14) and p_au.shape == (n, 32)
    assert p_emo == pytest.approx(torch.softmax(z_emo, 1).numpy(), abs=1e-4)
    assert p_au == pytest.approx(torch.sigmoid(z_au).numpy(), abs=1e-4)
    assert (p_emo.argmax(1) == z_emo.argmax(1).numpy()).all()


def test_it_is_one_file_with_a_free_batch_and_nothing_of_this_machine(exported):
    folder, said = exported
    assert sorted(p.name for p in folder.iterdir()) == ["best.pt", "model.onnx", "test.json"]
    assert said.startswith(f"{folder}/model.onnx: 81.") and "opset 18; onnxruntime's probabilities are within " in said
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version >= 18) for o in model.opset_import] == [("", True)]
    (image,) = model.graph.input
    shape = image.type.tensor_type.shape.dim
    assert image.name == "image" and shape[0].dim_param and [d.dim_value for d in shape[1:]] == [3, 32, 32]
    content = (folder / "model.onnx").read_bytes()
    for private in (str(mmlfer.HERE), sys.prefix, "site-packages", str(folder)):
        assert private.encode() not in content


def test_the_metadata_say_what_a_user_must_know(exported):
    folder, _ = exported
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    facts = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["expressions"] == list(mmlfer.EMOTIONS) and facts["aus"] == list(mmlfer.AUS)
    assert facts["au_names"][:2] == ["inner brow raiser", "outer brow raiser"] and facts["aus_trained"] == list(mmlfer.AUS)
    assert (facts["size"], facts["colour_order"], facts["method"]) == (32, "RGB", "mtl")
    assert facts["test_accuracy"] == 0.4375 and facts["template"] is None
    assert facts["versions"]["torch"] == str(torch.__version__) and facts["versions"]["onnx"] == onnx.__version__


def test_the_accuracy_is_of_this_checkpoint_or_unknown(sketch, tmp_path):
    state = {"epoch": 2, "emotions": ["awe"]}
    assert export.tested(tmp_path / "best.pt", state) is None
    others = {"confusion": [[4]], **dict.fromkeys(("n", "diag", "macro_f1", "per_class", "au_f1", "au_f1_macro"), 0)}
    for content, expected in (({"best": {"epoch": 2, "accuracy": 0.5, **others}}, 0.5), ({"best": {"epoch": 1, "accuracy": 0.5, **others}}, None),
                              ([], None), ({"best": None}, None)):
        (tmp_path / "test.json").write_text(json.dumps(content))
        assert (export.tested(tmp_path / "best.pt", state) or {}).get("accuracy") == expected
        assert export.tested(tmp_path / "other.pt", state) is None


def test_the_template_stands_in_the_metadata(sketch):
    state = {**mmlfer.read_checkpoint(sketch), "template": [[0.3, 0.4], [0.7, 0.4], [0.5, 0.7]]}
    assert json.loads(export.metadata(sketch, state)["template"]) == state["template"]
    state["config"].update(method="stl", stats="/home/me/lab.yaml", size=48, epochs=9)
    state.update(epoch=7, trained_aus=[])
    facts = {name: json.loads(value) for name, value in export.metadata(sketch, state).items()}
    assert [facts[name] for name in ("aus_trained", "method", "stats", "size", "epoch")] == [[], "stl", "lab.yaml", 48, 7]


def linear_onnx(change):
    """An ONNX model of one linear layer, and the same layer in torch after `change`."""

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 46)

        def forward(self, image):
            z = self.layer(image.float().mean((2, 3)) / 255)
            return z[:, :14].softmax(1), z[:, 14:].sigmoid()

    torch.manual_seed(0)
    twin = Twin().eval()
    content = export.to_onnx(twin, 32).SerializeToString()
    with torch.no_grad():
        change(twin.layer)
    return content, twin


def test_a_model_that_differs_from_torch_is_refused():
    content, twin = linear_onnx(lambda layer: None)
    assert export.check_onnx(content, twin, 32) < 1e-5
    content, twin = linear_onnx(lambda layer: layer.bias[20].add_(0.001))
    with pytest.raises(ValueError, match=r"^probabilities differ from torch's by 2\.\de-04$"):
        export.check_onnx(content, twin, 32)
    content, twin = linear_onnx(lambda layer: layer.bias[:14].neg_())
    with pytest.raises(ValueError, match="^another first expression than torch's$"):
        export.check_onnx(content, twin, 32)
    content, twin = linear_onnx(lambda layer: layer.bias[14:].fill_(float("nan")))
    with pytest.raises(ValueError, match="^probabilities differ from torch's by nan$"):
        export.check_onnx(content, twin, 32)


def test_a_wrong_export_is_not_written(sketch, tmp_path, monkeypatch):
    wrong, _ = linear_onnx(lambda layer: None)
    monkeypatch.setattr(export, "to_onnx", lambda model, size: onnx.load_from_string(wrong))
    (tmp_path / "model.onnx").write_text("what stood there")
    result = invoke("export", "--ckpt", sketch, "--out", tmp_path / "model.onnx")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path}/model.onnx: not written, the exported model is wrong: ")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "what stood there"


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_says_how_to_get_it(sketch, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    result = invoke("export", "--ckpt", sketch, "--out", tmp_path / "model.onnx")
    assert (result.exit_code, result.stderr) == (1, f"Error: export needs {module}: pip install -e '.[onnx]'\n")


def test_the_checkpoint_is_no_output(sketch):
    result = invoke("export", "--ckpt", sketch, "--out", sketch)
    assert (result.exit_code, result.stderr) == (
        1, f"Error: {sketch}: is an input or lies among the inputs; name another output\n")
