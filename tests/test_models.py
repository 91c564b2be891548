"""Models as folders and on the Hugging Face Hub, with the Hub's own client against a small server."""

import json
import os
import re
import shutil
import subprocess
import sys

import hub
import huggingface_hub.constants
import pytest
import safetensors.torch
import yaml
from conftest import ROOT, SMALL, command_line, invoke

import mmlfer
from mmlfer_commands import _models


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """The folder that `export` writes of a run of mml."""
    out = tmp_path_factory.mktemp("shared") / "model"
    result = invoke("export", "--ckpt", trained[0] / "best.pt", "--out", out)
    assert result.exit_code == 0 and "fill in the licence" in result.output, result.output
    return out


@pytest.fixture
def there(folder, tmp_path, monkeypatch):
    """The Hub with this folder as user/model, and an empty cache."""
    with hub.serving({path.name: path.read_bytes() for path in folder.iterdir()}) as server:
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(huggingface_hub.constants.ENDPOINT, server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_a_folder_has_the_net_its_description_and_a_card(folder, trained):
    state = mmlfer.read_checkpoint(trained[0] / "best.pt")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    net = safetensors.torch.load_file(folder / "model.safetensors")
    assert net.keys() == state["net"].keys() and all(mmlfer.torch.equal(net[name], state["net"][name]) for name in net)
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["size"], config["colour_order"]) == ("resnet18", 32, "RGB")
    assert config["emotions"] == list(mmlfer.EMOTIONS) and config["aus"] == list(mmlfer.AUS)
    assert config["statistics"]["name"] == "wild" and config["template"] == state["template"]
    assert mmlfer.torch.equal(mmlfer.torch.tensor(config["statistics"]["table"]), state["table"])
    test = json.loads((trained[0] / "test.json").read_text())["best"]
    assert config["test"]["accuracy"] == test["accuracy"] and config["test"]["n"] == test["n"]
    assert config["trained_on"]["images"] == len(state["train_names"]) > 0
    text = _models.card({**state, "images": 1}, {**config["test"], "au_f1": {"1": None}, "au_f1_macro": None})  # of stl
    assert "AU F1" not in text and "| AU |" not in text and "macro F1" in text and "1 image" in text


def test_nothing_in_a_folder_names_an_image_or_a_path(folder, trained):
    state = mmlfer.read_checkpoint(trained[0] / "best.pt")
    words = [*state["train_names"], state["config"]["data"], str(trained[0].parent), state["data_sha256"], str(ROOT)]
    for path in folder.iterdir():
        content = path.read_bytes()
        assert [word for word in words if word.encode() in content] == [], path.name


def test_the_hubs_client_reads_the_card(folder, there):
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    card.validate()
    assert there.seen[-1].startswith("POST /api/validate-yaml")
    assert card.data.library_name == "mmlfer" and "action-units" in card.data.tags and card.data.license is None
    config = json.loads((folder / "config.json").read_text())
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["Acc."] == round(100 * config["test"]["accuracy"], 2) and "AU F1, mean" in values
    for name, n in config["test"]["images"].items():
        assert re.search(rf"^\| {name} \| {n} \| ", card.text, re.M)
    assert "# license: fill it in" in (folder / "README.md").read_text()


def test_the_card_has_the_limits_and_the_citation_of_the_readme(folder):
    readme, card = ((path / "README.md").read_text() for path in (ROOT, folder))
    limits, told = (" ".join(page.split("## Limits and intended use")[1].split("\n## ")[0].split()) for page in (card, readme))
    assert len(limits) > 400
    for words in re.split(r"[.,:;] ", limits):
        assert words.removesuffix(".").removeprefix("The faces of a data set ").lower() in told.lower(), words
    cited, citation = (page.split("```bibtex")[1].split("```")[0] for page in (card, readme))
    assert cited == citation


def table_of(ckpt, faces_folder, tmp_path):
    out = tmp_path / "table.csv"
    assert invoke("predict", "--ckpt", ckpt, faces_folder / "aligned", "--csv", out).exit_code == 0
    return out.read_bytes()


def test_a_folder_and_the_hub_answer_as_the_checkpoint(folder, there, trained, faces_folder, tmp_path):
    ckpts = (trained[0] / "best.pt", folder, "hf:user/model")
    tables = [table_of(ckpt, faces_folder, tmp_path) for ckpt in ckpts]
    assert tables[0] == tables[1] == tables[2]
    evaluated = [invoke("eval", "--ckpt", ckpt, "--data", faces_folder).stdout for ckpt in ckpts]
    assert "Acc." in evaluated[0] and evaluated[0] == evaluated[1] == evaluated[2]
    for number, ckpt in enumerate(ckpts[:2]):
        assert invoke("export", "--ckpt", ckpt, "--out", tmp_path / f"{number}.onnx").exit_code == 0
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    assert invoke("export", "--ckpt", folder, "--out", tmp_path / "again").exit_code == 0
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_page_and_the_figure_take_a_folder(folder, there, trained, faces_folder, tmp_path):
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    images = sorted((faces_folder / "aligned").iterdir())[:2]
    heads = []
    for ckpt, out in zip((folder, "hf:user/model"), pictures):
        assert invoke("gradcam", "--ckpt", ckpt, "--out", out, *images).exit_code == 0
        heads.append(_models.load_model(ckpt)[1]["source"])
    assert heads == [str(folder), f"hf:user/model@{hub.COMMIT}"]
    assert _models.tested(trained[0] / "best.pt", mmlfer.read_checkpoint(trained[0] / "best.pt")) \
        == _models.tested(folder, _models.load_model(folder)[1]) is not None


def test_training_starts_from_a_folders_backbone(folder, faces_folder, tmp_path):
    out = tmp_path / "run"
    result = invoke("train", "--data", faces_folder, "--out", out, *SMALL, "--method", "stl", "--epochs", 1,
                    "--weights", folder)
    assert result.exit_code == 0 and f"tensors from {folder}, left out " in result.output and "backbone: took" in result.output, result.output


def test_eval_of_a_folder_asks_for_the_data(folder):
    result = invoke("eval", "--ckpt", folder)
    assert result.exit_code == 1 and result.stderr == f"Error: {folder}: does not say where its data lie; name them with --data\n"


def test_the_revision_is_fetched_once_kept_and_told(there, faces_folder):
    image = faces_folder / "aligned/0001_aligned.jpg"
    first = invoke("predict", "--ckpt", "hf:user/model@v1", image)
    assert first.exit_code == 0 and first.stderr == f"model: hf:user/model@{hub.COMMIT}\n"
    there.seen.clear()
    again = invoke("predict", "--ckpt", f"hf:user/model@{hub.COMMIT}", image)
    assert again.stdout == first.stdout and not [line for line in there.seen if line.startswith("GET /user")]


def test_a_fetched_model_works_without_a_network(sketch_34, faces_folder, tmp_path):
    """Whole processes, as people start them, with HF_ENDPOINT."""
    folder = tmp_path / "model"
    assert invoke("export", "--ckpt", sketch_34, "--out", folder).exit_code == 0
    words = command_line("predict", "--ckpt", "hf:user/model", faces_folder / "aligned/0001_aligned.jpg")
    with hub.serving({path.name: path.read_bytes() for path in folder.iterdir()}) as server:
        own = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path)}
        first = subprocess.run(words, capture_output=True, text=True, env=own)
    again = subprocess.run(words, capture_output=True, text=True, env={**own, "HF_HUB_OFFLINE": "1"})
    new = subprocess.run(words, capture_output=True, text=True, env={**own, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "new")})
    assert first.returncode == again.returncode == 0 and first.stdout == again.stdout != "", first.stderr
    assert (new.returncode, new.stderr) == (1, "Error: hf:user/model: not in the cache, and the Hub cannot be reached; try again "
                                            "with a connection, or give a folder of `mmlfer export`\n")


@pytest.mark.parametrize("name, told", [
    ("hf:user/other", "no such repository on the Hub, or a private one; check the name, or log in with: hf auth login"),
    ("hf:user/model@v9", "no such revision; leave out @REVISION for the newest"),
    ("hf:user/model/more", "not a name on the Hub; write hf:USER/NAME[@REVISION]"),
    ("hf:", "not a name on the Hub; write hf:USER/NAME[@REVISION]"),
])
def test_names_that_the_hub_does_not_have(there, faces_folder, name, told):
    result = invoke("predict", "--ckpt", name, faces_folder / "aligned/0001_aligned.jpg")
    assert (result.exit_code, result.stderr) == (1, f"Error: {name}: {told}\n")


def test_files_of_the_hub_that_are_missing_or_too_large(there, faces_folder):
    def error():
        return invoke("predict", "--ckpt", "hf:user/model", faces_folder / "aligned/0001_aligned.jpg").stderr

    weights = there.files["model.safetensors"]
    there.files["model.safetensors"] = weights + bytes(3_000_000)
    assert re.fullmatch(r"Error: hf:user/model: model\.safetensors: \d+ MB, expected \d+ at most: not a model that `mmlfer export` wrote\n", error())
    assert not [line for line in there.seen if line.startswith("GET") and "safetensors" in line]  # it was not fetched
    del there.files["model.safetensors"]
    assert error() == "Error: hf:user/model: no config.json and model.safetensors: not a model of `mmlfer export`\n"


def damaged(folder, out, **change):
    """A copy of a folder with other entries in config.json, or with another model.safetensors."""
    shutil.copytree(folder, out)
    if "weights" in change:
        (out / "model.safetensors").write_bytes(change["weights"])
    else:
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, **change}))
    return out


def test_damaged_folders_are_one_line(folder, faces_folder, tmp_path):
    weights, config = (folder / "model.safetensors").read_bytes(), json.loads((folder / "config.json").read_text())
    tensors = safetensors.torch.load(weights)
    infinite = {**tensors, "fe.bias": tensors["fe.bias"] * float("inf")}
    narrow = {**tensors, "fe.bias": tensors["fe.bias"][:3]}
    described = "not the description of a model that `mmlfer export` wrote"
    for number, (change, told) in enumerate((
            ({"weights": weights[:-7]}, "model.safetensors: cut off or damaged"),
            ({"weights": b""}, "model.safetensors: cut off or damaged"),
            ({"weights": weights + bytes(2**21)}, "model.safetensors: 3 MB, expected"),
            ({"weights": safetensors.torch.save(infinite)}, ": fe.bias is not finite"),
            ({"weights": safetensors.torch.save(narrow)}, "size mismatch for fe.bias"),
            ({"format": "other"}, described), ({"statistics": {}}, described), ({"emotions": [1]}, "of another version"),
            ({"options": {**config["options"], "arch": "os.system"}}, "of another version"),
            ({"options": {**config["options"], "what": 1}}, "of another version"),
            ({"aus": [99]}, "of another version"))):
        bad = damaged(folder, tmp_path / f"bad{number}", **change)
        result = invoke("predict", "--ckpt", bad, faces_folder / "aligned/0001_aligned.jpg")
        assert result.exit_code == 1 and result.stderr.startswith(f"Error: {bad}") and told in result.stderr, (change.keys(), result.output)
        assert result.stderr.count("\n") == 1
    (tmp_path / "bad0" / "config.json").write_bytes(b"{" * 2_000_000)
    assert "config.json: 2 MB, expected 1 at most" in invoke("predict", "--ckpt", tmp_path / "bad0", ROOT / "README.md").stderr


def test_a_folder_without_a_model_is_told(tmp_path):
    result = invoke("predict", "--ckpt", tmp_path, ROOT / "README.md")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path}/config.json: not the description of a model")


def test_export_overwrites_nothing(folder, trained):
    result = invoke("export", "--ckpt", trained[0] / "best.pt", "--out", folder)
    assert (result.exit_code, result.stderr) == (1, f"Error: {folder}: not an empty folder; name a new one\n")


def test_an_untested_model_has_a_card_without_figures(sketch, tmp_path):
    assert invoke("export", "--ckpt", sketch, "--out", tmp_path / "model").exit_code == 0
    text = (tmp_path / "model/README.md").read_text()
    assert "\nNot tested.\n" in text and "model-index" not in yaml.safe_load(text.split("---")[1])


def test_without_the_hubs_client_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = invoke("predict", "--ckpt", "hf:user/model", ROOT / "README.md")
    assert (result.exit_code, result.stderr) == (1, "Error: hf:user/model: fetching it takes: pip install -e '.[hub]'\n")
