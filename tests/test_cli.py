"""The command line as a whole, and run.sh."""

import subprocess
import sys

from conftest import ROOT, invoke, run_program

import mmlfer


def test_run_sh_without_data_says_how_to_get_it(tmp_path):
    result = subprocess.run(["bash", ROOT / "run.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "no RAF-CE in ./rafce. Ask for it at" in result.stderr
    assert "synth ./rafce" in result.stderr and not list(tmp_path.iterdir())


def test_help_is_complete_and_light():
    assert mmlfer.main.list_commands(None) == ("train", "eval", "synth", "demo", "build", "stats", "table", "plot", "gradcam", "predict",
                     "crop", "export", "bench")  # fmt: skip
    for name in mmlfer.COMMANDS:
        command = mmlfer.main.get_command(None, name)
        text = run_program(name, "--help").stdout if name == "train" else invoke(name, "--help").output
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help and parameter.opts[0] in text, (name, parameter.name)
    code = "import sys, mmlfer; print([m for m in ('torchvision', 'matplotlib') if m in sys.modules]); " \
           "print('torch.nn' in sys.modules)"  # fmt: skip

    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split("\n")[:2] == ["[]", "False"]
