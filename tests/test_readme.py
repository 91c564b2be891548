"""What the README and the pages beside it promise."""

import csv
import functools
import glob
import json
import re
import shlex
import subprocess
import sys

import help_page
import numpy as np
import pytest
from conftest import ROOT, exported, invoke

import mmlfer
from mmlfer_commands import _labels, _rafce, _results, _stats, build, demo, synth, table
from mmlfer_commands._alignment import FACE_COLUMNS, POINTS, SMALL

RAW = ROOT / "tests/results"
FEW, MANY = RAW / "401", RAW / "10401"  # by their test faces
SETS = [FEW / "clean", *(MANY / name for name in ("clean", "augment", "bf16", "ceiling", "noise"))]  # each one data set
SHARED = [RAW / "shares" / name for name in ("soft", "adjust")]  # of other stand-ins, with votes
AFTERWARDS = (SHARED[1] / "afterwards.md").read_text(encoding="utf-8")  # as compare_adjusted.py printed it
PAGES = {path: (ROOT / path).read_text() for path in ("README.md", "tests/results/README.md", "weights/README.md",
                                                "mmlfer_commands/README.md")}
README, PAGE_OF_RESULTS, _, PAGE_OF_COMMANDS = PAGES.values()
RESULTS = README.split("\n## Results\n")[1].split("\n## ")[0] + PAGE_OF_RESULTS
results = functools.cache(table.results)  # text of a folder of runs
BLOCKS = re.findall(r"```sh\n(.*?)```", "\n".join(PAGES.values()), re.S)


TORCHRUN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}  # its own options


def lines():
    return [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


def spans():
    """The pages' words in `quotes`, outside of blocks."""
    prose = re.sub(r"```.*?```", "", "\n".join(PAGES.values()), flags=re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def options_of(name):
    command = mmlfer.main.get_command(None, name)
    params = [p for one in (command, *getattr(command, "commands", {}).values()) for p in one.params]
    return {"--help", *(o for p in params for o in (*p.opts, *p.secondary_opts))}


def test_the_readme_is_short_and_its_lines_too():
    """Except tables that the program prints and web addresses, which cannot be wrapped."""
    assert len(README.splitlines()) <= 250
    for name, page in PAGES.items():
        long = [line for line in page.splitlines() if len(line) > 120 and not re.match(r"\[\w+\]: http", line)]
        assert [line for line in long if name == "README.md" or not line.startswith("| ")] == [], name


def test_the_status_is_on_the_first_screen():
    first = " ".join(README.splitlines()[:30])
    assert "not yet run on RAF-CE" in first and "the results below are on drawn faces" in first
    assert "No trained model is shipped" in first and "Python 3.11 or later" in first
    assert "Validation chooses the epoch; the test set is read once" in first
    assert "\n".join(PAGES.values()).lower().count("no gpu") == 1


def test_the_two_commands_that_set_everything_up():
    assert "pip install -e '.[plot]' && python mmlfer.py demo" in lines()
    assert "pip install -e '.[test,plot]' && pytest" in lines()


def test_every_command_and_option_of_the_pages_exists():
    everywhere = set().union(*map(options_of, mmlfer.COMMANDS))
    program = r"(?:python mmlfer\.py|mmlfer|torchrun .* mmlfer\.py)"
    seen = set()
    for line in [*lines(), *spans()]:
        options = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", line.split("#")[0].replace('"', " ")))
        if match := re.search(rf"(?:^|&& ){program} (\w+)|^({'|'.join(mmlfer.COMMANDS)}) --", line):
            command = match[1] or match[2]
            assert command in mmlfer.COMMANDS and options - TORCHRUN <= options_of(command), line
            seen.add(command)
        elif line.startswith("curl "):
            assert options <= {"--data-binary"}, line
        elif "run.sh" in line:
            assert options <= {"--list"}, line
        elif "EXTRA=" in line:
            assert options <= options_of("train"), line
        else:
            assert options <= everywhere, line
    assert seen == set(mmlfer.COMMANDS)


def test_the_page_of_help_is_what_the_commands_say():
    """If it is not: python tests/help_page.py > mmlfer_commands/HELP.md"""
    assert (ROOT / "mmlfer_commands/HELP.md").read_text(encoding="utf-8") == help_page.page()


def test_the_list_of_commands_is_complete():
    named = re.findall(r"`(\w+)`", README.split("\n## Commands\n")[1].split("Each has")[0])
    assert sorted(named) == sorted(mmlfer.COMMANDS)


def slugs(page):
    """The anchors of a page's headings, as GitHub makes them."""
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)$", page, re.M)]


def test_every_file_that_the_pages_name_exists():
    for name, page in PAGES.items():
        for target in re.findall(r"\]\((?!http)([^)]+)\)", page):
            path, _, heading = target.partition("#")
            place = (ROOT / name).parent / path if path else ROOT / name
            assert place.exists() and (not heading or heading in slugs(place.read_text())), target
    for name in spans():
        if name.startswith("_") or name.startswith("tests/") and " " not in name:
            assert (ROOT / ("mmlfer_commands" if name.startswith("_") else "") / name).exists(), name
    shared = {path.name for path in (ROOT / "mmlfer_commands").glob("_*.py")} - {"__init__.py"}
    assert shared == {name for name in spans() if re.fullmatch(r"_\w+\.py", name)}


def test_where_the_open_choices_stand():
    """Each name in the table's last column is an option, a function or a command that exists."""
    rows = README.split("\n| open | chosen | where |\n")[1].split("\n\n")[0].splitlines()[1:]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row.rsplit(" | ", 1)[1])]
    everywhere = set().union(*map(options_of, mmlfer.COMMANDS))
    assert len(rows) > 10 and len(names) >= len(rows)
    for name in names:
        known = name in everywhere or name in mmlfer.COMMANDS or name == "test.json"
        assert known or hasattr(mmlfer, name) or hasattr(build, name), name


def test_the_columns_of_predict_are_listed(sketch, faces_folder, tmp_path):
    listed = PAGE_OF_COMMANDS.split("The columns of `predict --csv`")[1].split("\n## ")[0]
    path = tmp_path / "predictions.csv"
    assert invoke("predict", "--ckpt", sketch, faces_folder / "aligned/0001_aligned.jpg", "--csv", path, "--top", 2).exit_code == 0
    with path.open() as file:
        columns = next(csv.reader(file))
    words = re.findall(r"`([^`]+)`", listed)
    every = columns[columns.index("aus") + 1 :]  # named by the first of the expressions and of the AUs
    assert [every[0], *every[14:16]] == ["p_happily_surprised", "AU01_p", "AU01_c"] and {every[0], *every[14:16]} <= set(words)
    assert set(columns) - set(every) <= set(words) and "presence, not intensity" in " ".join(listed.split())
    axes = {f"{point}_{axis}" for point in POINTS for axis in "xy"}
    assert set(FACE_COLUMNS) - axes <= set(words) and {*POINTS[1:], "right_eye_x", "right_eye_y"} <= set(words)
    assert f"less than {SMALL} pixels apart" in " ".join(listed.split())


def test_the_tour_runs_as_it_stands(tmp_path, monkeypatch):
    tour = next(block for block in BLOCKS if block.startswith("python mmlfer.py synth faces --n 120"))
    monkeypatch.chdir(tmp_path)
    for line in tour.replace("\\\n", " ").splitlines():
        program, name, *words = shlex.split(line, comments=True)
        assert (program, name) == ("python", "mmlfer.py"), line
        result = invoke(*(path for word in words for path in sorted(glob.glob(word)) or [word]))
        assert result.exit_code == 0 and "Warning" not in result.stderr, (line, result.output)
    for name in ("faces/aligned/0001_aligned.jpg", "stats.png", "tour/first/test.json", "tour/first/curves.png",
                 "predictions.csv", "gradcam.png", "results.md"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_lines_of_python_run_as_they_stand(sketch, faces_folder, tmp_path, monkeypatch, capsys):
    """The lines with onnxruntime, without torch, print what `predict` prints, and so do those with mmlfer."""
    onnxruntime, module = re.findall(r"```python\n(.*?)```", PAGE_OF_COMMANDS, re.S)
    (tmp_path / "tour/first").mkdir(parents=True)
    (tmp_path / "faces").symlink_to(faces_folder)
    for target, source in (("face.jpg", faces_folder / "aligned/0001_aligned.jpg"), ("tour/first/best.pt", sketch)):
        (tmp_path / target).symlink_to(source)
    assert invoke("export", "--ckpt", sketch, "--out", tmp_path / "model.onnx").exit_code == 0
    (told,) = json.loads(invoke("predict", "--ckpt", sketch, tmp_path / "face.jpg", "--json").stdout)
    first, aus = told["expressions"][0], [au["au"] for au in told["aus"]]
    result = subprocess.run([sys.executable, "-c", "import sys; sys.modules['torch'] = None\n" + onnxruntime], cwd=tmp_path,
                            capture_output=True, text=True)
    assert (result.stdout, result.stderr) == (f"{first['name']} {first['p']:.3f}\n", "")
    monkeypatch.chdir(tmp_path)
    exec(module, {})
    assert capsys.readouterr() == (f"{first['name']} {aus}\n", "")


def test_the_results_are_what_table_prints_from_the_raw_results():
    page = PAGE_OF_RESULTS.split("\n## The cost of a step\n")[0]
    rows = [line for line in page.splitlines() if re.match(r"\| \w.*\d\.\d\d", line)]
    printed = [line for text in (AFTERWARDS, *map(results, (MANY, *SETS, *SHARED))) for line in text.splitlines()]
    assert len(rows) > 70 and [row for row in rows if row not in printed] == []
    for folder in (FEW / "clean", MANY / "clean", MANY / "noise", *SHARED):
        table_3, pairs = results(folder).split("## Table 3")[1].split("## Paired comparisons")
        assert [line for line in table_3.splitlines() if line.startswith("| ") and line not in page.splitlines()] == []
        signals = [line for line in pairs.splitlines() if line.startswith("| ") and "signal" in line]
        assert [line for line in signals if line not in rows] == []  # none is kept quiet
    files = [path for path in RAW.rglob("*") if path.is_file() and path.suffix != ".md"]
    assert {path.name for path in files} == {"runs.csv", "logs.csv", "predictions.npz"} and len(files) == 3 * len(SETS + SHARED) <= 60
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert not any(re.search(rb"\.jpg|/tmp|/home|/root", path.read_bytes()) for path in files)


@pytest.mark.parametrize("folder", [*SETS, *SHARED, MANY], ids=lambda folder: str(folder.relative_to(RAW)))
def test_the_pages_of_all_pairs_are_what_table_prints(folder):
    """table FOLDER --out FOLDER/tables.md writes them."""
    assert (folder / "tables.md").read_text(encoding="utf-8") == results(folder)


def cells_of(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_table_of_the_readme_has_the_stand_ins_beside_the_paper():
    """Every row of Table 3 of five seeds; the paper's numbers stand in columns of their own."""
    told = [cells_of(line) for line in README.splitlines() if re.match(r"\| \w.* ± ", line)]
    lines = results(MANY / "clean").split("## Table 3")[1].split("## Paired")[0].splitlines()
    cells = [cells_of(line) for line in lines if " ± " in line]
    assert {seeds for _, seeds, *_ in cells} == {"5"}
    printed = [[name.replace(", weight-max 1.0", "").removesuffix(".0"), *rest] for name, _, *rest in cells]
    assert sorted(row[:3] for row in told) == sorted(printed)
    assert {name: (float(acc), float(diag)) for name, *_, acc, diag in told if acc} == _results.PRINTED


def test_the_claims_stand_in_the_tables():
    """`table` prints every interval that a sentence in the READMEs quotes."""
    printed = "\n".join([AFTERWARDS, *map(results, [MANY, *SETS, *SHARED])])
    pairs = set(re.findall(r"([+-]\d+\.\d\d) \[([+-]\d+\.\d\d), ([+-]\d+\.\d\d)\]", printed))
    prose = "\n".join(line for page in PAGES.values() for line in page.splitlines() if not line.startswith("|"))
    quoted = re.findall(r"([+-]?\d+\.\d\d)\s+(?:points\s+)?\[([+-]?\d+\.\d\d),\s+([+-]?\d+\.\d\d)\]", prose)
    assert len(quoted) == prose.count("[+") + prose.count("[-") >= 15 and set(quoted) <= pairs
    claims = re.findall(r"\*\*(M\w+\s+(?:over|below).*?|Wild over.*?)\*\*[^*]*?\[(\S+),\s+(\S+)\]", prose, re.S)
    assert len(claims) == 6
    for claim, low, high in claims:
        if "holds here" in claim:
            assert (float(high) < 0 if "below" in claim else float(low) > 0), claim
        elif "fails here" in claim:
            assert (float(low) > 0 if "below" in claim else float(high) < 0), claim
        else:
            assert "not shown here" in claim and float(low) <= 0 <= float(high), claim


exported = functools.cache(exported)


def log_of(folder, run):
    return [{key: float(value) for key, value in row.items() if key != "run"} for row in exported(MANY / folder)[0][run][1]]


def weights_at_the_end(folder, name):
    """Mean omega^AU and omega^AM of the last epoch, over the seeds, as the pages have them."""
    ends = [log_of(folder, run)[-1] for run in exported(MANY / folder)[0] if re.fullmatch(rf"{name}-\d", run)]
    assert len(ends) == {"clean": 5, "ceiling": 1}.get(folder, 3)
    return [f"{np.mean([row[key] for row in ends]):.2f}" for key in ("w_au", "w_am")]


def test_what_the_noise_does_to_the_weights():
    noisy, right = weights_at_the_end("noise", "mml-wild"), weights_at_the_end("bf16", "mml-wild")
    high, high_right = weights_at_the_end("noise", "mml-wild-w4"), weights_at_the_end("clean", "mml-wild-w4")
    text = " ".join(PAGE_OF_RESULTS.split())
    assert f"omega^AU ends at {noisy[0]} (on right labels at {right[0]}), omega^AM at {noisy[1]} ({right[1]})" in text
    assert f"with a ceiling of 4 at {high[0]} ({high_right[0]}) and {high[1]} ({high_right[1]})" in text


def test_what_a_ceiling_does_to_the_weights():
    (low, low_am), (high, high_am) = (weights_at_the_end("clean", name) for name in ("mml-wild", "mml-wild-w4"))
    two, ten = (weights_at_the_end("ceiling", f"mml-wild-w{ceiling}")[0] for ceiling in (2, 10))
    text = " ".join(PAGE_OF_RESULTS.split())
    assert f"omega^AU ends at {high} (with a ceiling of 1 at {low}), omega^AM at {high_am} ({low_am})" in text
    assert f"three quarters of either ceiling (to {two} of 2 and {ten} of 10, with the first seed)" in text
    assert 0.7 < float(low) < 0.8 and 0.7 < float(high) / 4 < 0.8
    assert f"omega^AU ends at {low} of 1 and at {high} of 4" in " ".join(README.split())


def test_which_ceiling_validation_prefers():
    runs = [run.split("/") for run in ("clean/mml-wild-0", "ceiling/mml-wild-w2-0", "clean/mml-wild-w4-0", "ceiling/mml-wild-w10-0")]
    best = [max(row["val_acc"] for row in log_of(*run)) for run in runs]
    told = [float(exported(MANY / folder)[0][run][0]["best.accuracy"]) for folder, run in runs]
    val, test = (", ".join(f"{100 * one:.2f}" for one in ones) for ones in (best, told))
    text = " ".join(PAGE_OF_RESULTS.split())
    assert f"with ceilings of 1, 2, 4 and 10 are {val} % ({test} % of the test faces" in text and max(best) == best[2]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The README's stand-ins without their faces: the labels of `synth --n 2000`, those with 10,000 test faces more, and
    these with wrong AU labels."""
    folders = [tmp_path_factory.mktemp("drawn") for _ in range(2)]
    for folder, test in zip(folders, (0, 10_000)):
        _rafce.write_labels(folder, *synth.draw_rows(2000, test, _stats.load_stats("wild"), 0))
    few, many = map(_rafce.load_labels, folders)
    synth.mislabel(folders[1], 0.3, 0)
    shares = {folder: with_votes(tmp_path_factory.mktemp("votes")) for folder in SHARED}
    return {FEW / "clean": few, **dict.fromkeys(SETS[1:], many), MANY / "noise": _rafce.load_labels(folders[1]), **shares}


def with_votes(folder):
    """The labels of `synth --n 2000 --test 10000 --form csv --soft`, without the faces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth, "draw_faces", lambda *args: None)
        synth.synthesize_csv(folder / "f", 2000, "wild", 48, 0, 10_000, soft=True)
    return _labels.load_faces(folder / "f")


@pytest.mark.parametrize("folder", [*SETS, *SHARED], ids=lambda folder: str(folder.relative_to(RAW)))
def test_the_raw_results_are_of_the_stand_ins_that_the_readme_draws(drawn, folder):
    runs, truth = exported(folder)
    assert {row["data_sha256"] for row, *_ in runs.values()} == {drawn[folder].sha256()}
    assert truth == drawn[folder].of("test").y_emo.tolist()
    for row, _, pred in runs.values():
        assert float(row["best.accuracy"]) == pytest.approx(np.equal(truth, pred).mean()) and int(row["best.n"]) == len(truth)


def test_the_perfect_reader_of_the_results(drawn):
    test = drawn[FEW / "clean"].of("test")
    perfect = demo.best_by_aus(test.y_au, test.y_emo, _stats.load_stats("wild"))
    commonest = np.bincount(test.y_emo).max() / len(test.y_emo)
    assert f"{100 * commonest:.2f} %" in RESULTS and f"{100 * perfect:.2f} %" in RESULTS


def test_the_raw_results_are_of_one_setting():
    """Except what tells the methods apart, the seeds and, in the noisy ones, the AUs of the training rows."""
    keys = ("size", "epochs", "batch_size", "lr_backbone", "lr_heads", "lr_meta", "schedule", "arch", "weights", "momentum", "weight_decay")
    for folder in (FEW, MANY):
        rows = [row for path in folder.rglob("runs.csv") for row, *_ in exported(path.parent)[0].values()]
        assert len(rows) >= 9 and len({tuple(row[f"options.{key}"] for key in keys) for row in rows}) == 1
