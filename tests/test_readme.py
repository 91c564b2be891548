"""What the README promises."""

import os
import re
import subprocess
import sys
import time

import yaml
from conftest import ROOT

import mmlfer
from mmlfer_commands import synth

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)


def lines():
    return [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


def test_the_two_commands_that_set_everything_up():
    assert "pip install -e '.[plot]' && python mmlfer.py demo" in lines()
    assert "pip install -e '.[test,plot]' && pytest" in lines()


def test_every_command_and_option_in_the_readme_exists():
    seen = set()
    for line in lines():
        match = re.search(r"(?:python mmlfer\.py|^mmlfer) (\w+)(.*)", line.split("#")[0])
        if match:
            command = mmlfer.main.get_command(None, match[1])
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            assert set(re.findall(r"--[a-z-]+", match[2])) <= known, line
            seen.add(match[1])
    assert seen == set(mmlfer.COMMANDS)


def test_the_tour_runs_as_it_stands(tmp_path):
    tour = next(block for block in BLOCKS if block.startswith("python mmlfer.py synth faces"))
    script = tour.replace("python mmlfer.py", f"{sys.executable} {ROOT}/mmlfer.py")
    result = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in ("faces/aligned/0001_aligned.jpg", "stats.png", "tour/first/test.json", "tour/first/curves.png",
                 "predictions.csv", "gradcam.png", "results.md"):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 0
    assert "Warning" not in result.stderr


def test_help_answers_in_a_second_and_shows_defaults():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        text = subprocess.run([sys.executable, ROOT / "mmlfer.py", "train", "--help"], capture_output=True, text=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1 and "default: 0.001" in re.sub(r"\s+", " ", text.stdout)


def test_run_sh_reproduces_all_ablations_on_stand_ins(tmp_path):
    synth.synthesize(tmp_path / "rafce", 100, "lab", None, 32, 0)
    settings = {"SEEDS": "0", "EPOCHS": "1", "SIZE": "32", "RHOS": "0.1", "RHOS_AM": "0.1", "DEVICE": "cpu",
                "EXTRA": "--batch-size 8 --weights none --hypergrad jvp"}  # fmt: skip
    environment = {**os.environ, **settings}
    environment["PATH"] = f"{sys.prefix}/bin:{environment['PATH']}"
    command = ["bash", str(ROOT / "run.sh")]
    first = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "runs"
    assert sorted(p.name for p in (out / "final").iterdir()) == [
        "am-lab-0", "am-wild-0", "mal-0", "mal2-0", "mml-lab-0", "mml-wild-0", "mtl-0", "stl-0"]  # fmt: skip
    results = (out / "results.md").read_text()
    for row in ("| stl | 1 |", "| am lab | 1 |", "| mml wild | 1 |", "| mml wild - am wild |"):
        assert row in results
    assert (out / "gradcam.png").exists() and (out / "final/mml-wild-0/curves.png").exists()
    config = yaml.safe_load((out / "final/am-lab-0/config.yaml").read_text())
    assert (config["rho"], config["rho_am"], config["stats"]) == (0.1, 0.1, "lab")
    times = {p: p.stat().st_mtime for p in out.rglob("*.pt")}
    stopped = out / "final/stl-0/test.json"  # as if it had been stopped before its end
    stopped.unlink()
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("complete, nothing to do") == 10
    assert stopped.exists() and {p: p.stat().st_mtime for p in out.rglob("*.pt")} == times
