"""What the README promises."""

import json
import os
import re
import subprocess
import sys
import time

from conftest import ROOT, invoke

import mmlfer
from mmlfer_commands.table import results

README = (ROOT / "README.md").read_text()
RAW = ROOT / "tests/figures/results"
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
                 "predictions.csv", "gradcam.png", "results.md"):
        assert (tmp_path / name).stat().st_size > 0
    assert "Warning" not in result.stderr


def test_the_lines_of_python_run_as_they_stand(sketch, faces_folder, tmp_path):
    """Those of onnxruntime, without torch, name what `predict` names; so do those with the module."""
    onnxruntime, module = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "tour/first").mkdir(parents=True)
    (tmp_path / "faces").symlink_to(faces_folder)
    for target, source in (("face.jpg", faces_folder / "aligned/0001_aligned.jpg"), ("tour/first/best.pt", sketch)):
        (tmp_path / target).symlink_to(source)
    assert invoke("export", "--ckpt", sketch, "--out", tmp_path / "model.onnx").exit_code == 0
    (told,) = json.loads(invoke("predict", "--ckpt", sketch, tmp_path / "face.jpg", "--json").stdout)
    first, aus = told["expressions"][0], [au["au"] for au in told["aus"]]
    for block, path, printed in (("import sys; sys.modules['torch'] = None\n" + onnxruntime, None, f"{first['name']} {first['p']:.3f}\n"),
                                 (module, ROOT, f"{first['name']} {aus}\n")):
        result = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True,
                                env={**os.environ, "PYTHONPATH": str(path or "")})
        assert (result.stdout, result.stderr) == (printed, "")


def test_help_answers_in_a_second_and_shows_defaults():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        text = subprocess.run([sys.executable, ROOT / "mmlfer.py", "train", "--help"], capture_output=True, text=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1 and "default: 0.001" in re.sub(r"\s+", " ", text.stdout)


def test_the_results_are_what_table_prints_from_the_raw_results():
    section = README.split("\n## Results\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    printed = [line for text in map(results, (RAW / "clean", RAW)) for line in text.splitlines()]
    assert len(rows) > 6 and [row for row in rows if row not in printed] == []
    files = [path for path in RAW.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"config.yaml", "log.csv", "test.json"}
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert not any(re.search(r"\.jpg|/tmp|/home|/root", path.read_text()) for path in files)
