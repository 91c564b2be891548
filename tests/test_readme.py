"""What the README promises."""

import functools
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from conftest import ROOT, invoke

import mmlfer
from mmlfer_commands import build, demo, synth, table

README = (ROOT / "README.md").read_text()
RESULTS = README.split("\n## Results\n")[1].split("\n## ")[0]
RAW = ROOT / "tests/results"
results = functools.cache(table.results)  # text of a folder of runs
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
    rows = [line for line in RESULTS.splitlines() if line.startswith("| ") and "---" not in line]
    printed = [line for text in map(results, (RAW / "clean", RAW)) for line in text.splitlines()]
    assert len(rows) > 6 and [row for row in rows if row not in printed] == []
    signals = [line for line in results(RAW / "clean").splitlines() if line.startswith("| ") and "signal" in line]
    assert len(signals) > 1 and [line for line in signals if line not in rows] == []  # none is kept quiet
    files = [path for path in RAW.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"config.yaml", "log.csv", "test.json"}
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert not any(re.search(r"\.jpg|/tmp|/home|/root", path.read_text()) for path in files)


def test_the_claims_stand_in_the_tables():
    """Every interval that a sentence of the results quotes is one that `table` prints."""
    printed = "\n".join(map(results, [RAW, *sorted(RAW.iterdir())]))
    pairs = set(re.findall(r"([+-]\d+\.\d\d) \[([+-]\d+\.\d\d), ([+-]\d+\.\d\d)\]", printed))
    prose = [line for line in RESULTS.splitlines() if not line.startswith("|")]
    quoted = re.findall(r"([+-]?\d+\.\d\d)\s+(?:points )?\[([+-]?\d+\.\d\d), ([+-]?\d+\.\d\d)\]", "\n".join(prose))
    assert len(quoted) >= 5 and set(quoted) <= pairs
    for claim, low, high in re.findall(r"\*\*(.*?)\*\*[^*]*?\[(\S+), (\S+)\]", "\n".join(prose), re.S):
        if "holds here" in claim:
            assert float(low) > 0, claim
        if "not shown here" in claim:
            assert float(low) <= 0 <= float(high), claim
        if "fails here" in claim:
            assert float(high) < 0, claim


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The README's stand-ins without their faces: the labels of `synth standin --n 2000`, and those with noise."""
    y_emo, aus = synth.draw_labels(2000, mmlfer.load_stats("wild"), 0)
    folder = tmp_path_factory.mktemp("drawn")
    names = [f"{i:04d}.jpg" for i in range(1, 2001)]
    build.write_labels(folder, names, y_emo, build.split_faces(y_emo, 0), aus)
    clean = mmlfer.load_labels(folder)
    synth.mislabel(folder, 0.3, 0)
    return {"clean": clean, "noise": mmlfer.load_labels(folder)}


@pytest.mark.parametrize("name", sorted(path.name for path in RAW.iterdir()))
def test_the_raw_results_are_of_the_stand_ins_that_the_readme_draws(drawn, name):
    runs = [json.loads(path.read_text()) for path in sorted((RAW / name).glob("*/test.json"))]
    assert {run["data_sha256"] for run in runs} == {drawn[name].sha256()}
    assert all(run["truth"] == drawn[name].of("test").y_emo.tolist() for run in runs)


def test_the_perfect_reader_of_the_results(drawn):
    test = drawn["clean"].of("test")
    perfect = demo.best_by_aus(test.y_au, test.y_emo, mmlfer.load_stats("wild"))
    commonest = np.bincount(test.y_emo).max() / len(test.y_emo)
    assert f"{100 * commonest:.2f} %" in RESULTS and f"{100 * perfect:.2f} %" in RESULTS


def test_the_raw_results_are_of_one_setting():
    """But for what makes the methods, the seeds and, of the noisy ones, the training AUs."""
    keys = ("size", "epochs", "batch_size", "lr_backbone", "lr_heads", "lr_meta", "schedule", "arch", "weights", "momentum", "weight_decay")
    configs = [yaml.safe_load(path.read_text()) for path in sorted(RAW.glob("*/*/config.yaml"))]
    assert len(configs) >= 9 and len({tuple(config[key] for key in keys) for config in configs}) == 1
