"""The wheel and the sdist, installed where there is no checkout."""

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, SMALL

import mmlfer


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel built from the sdist of the tracked files, without its dependencies, in an empty folder."""
    source, out, target = (tmp_path_factory.mktemp(name) for name in ("source", "dist", "target"))
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, source], check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    assert len(list(out.glob("*.tar.gz"))) == 1
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel], check=True,
                   capture_output=True)
    return wheel, target


def run(target, *args, cwd):
    environment = {**os.environ, "PYTHONPATH": str(target)}
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_the_program_and_the_statistics_and_no_tests(installed):
    names = set(zipfile.ZipFile(installed[0]).namelist())
    ours = {f"mmlfer_commands/{name}.py" for name in mmlfer.COMMANDS}
    assert ours | {"mmlfer.py", "mmlfer_commands/page.html", "mmlfer_stats/wild.yaml", "mmlfer_stats/lab.yaml"} <= names
    assert not [n for n in names if n.startswith(("tests", "weights", "stats/"))]


def test_every_command_answers_from_there(installed, tmp_path):
    _, target = installed
    code = "import mmlfer; [mmlfer.main([name, '--help'], prog_name='mmlfer', standalone_mode=False) for name in mmlfer.COMMANDS]; print(mmlfer.__file__)"
    result = run(target, "-c", code, cwd=tmp_path)
    assert all(f"mmlfer {name}" in result.stdout for name in mmlfer.COMMANDS), result.stderr
    assert result.stdout.endswith(f"\n{target}/mmlfer.py\n")


def test_statistics_and_training_work_from_there(installed, faces_folder, tmp_path):
    _, target = installed
    program = target / "bin/mmlfer"
    result = run(target, program, "stats", "--data", faces_folder, "--against", "wild", cwd=tmp_path)
    assert result.returncode == 0 and "there: 13 observed AUs" in result.stdout, result.stderr
    result = run(target, program, "train", "--data", faces_folder, "--method", "am", "--stats", "lab", "--epochs", 1, "--out", "r",
                 *SMALL, cwd=tmp_path)
    assert result.returncode == 0 and (tmp_path / "r/test.json").exists(), result.stderr
