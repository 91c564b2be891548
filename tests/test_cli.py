"""The command line as a whole."""

import subprocess
import sys

from conftest import ROOT, invoke, run_program

import mmlfer


def test_help_is_complete_and_light():
    assert mmlfer.main.list_commands(None) == ("train", "eval", "synth", "demo", "build", "stats", "table", "plot", "gradcam", "predict",
                     "bench")  # fmt: skip
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
