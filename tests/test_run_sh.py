"""run.sh: its commands, with a program that only records what it should train, and once with the real one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import mmlfer
from mmlfer_commands import synth

STAND_IN = """#!{python}
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[2:]
if words[0] == "search" or sys.argv[1] == "-c":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
given = dict(zip(words[1::2], words[2::2])) if words[0] != "train" else dict(
    zip(*[iter(w for w in words[1:] if w != "--resume")] * 2))
out = Path(given.get("--out", "."))
def note(what):
    with open("calls", "a") as file:
        print(json.dumps([what, time.time(), os.environ.get("OMP_NUM_THREADS"), words[0], given, words]), file=file)
def stopped(*_):
    time.sleep(0.5)  # it takes time to save
    note("stopped")
    sys.exit(143)
signal.signal(signal.SIGTERM, stopped)
note("start")
if words[0] == "train" and not (out / "test.json").exists():
    print("epoch 1")
    time.sleep(float(os.environ.get("SLEEP", 0)))
    if str(out).endswith(os.environ.get("FAILS", "nothing")):
        sys.exit("Error: some reason")
    out.mkdir(parents=True, exist_ok=True)
    rho, rho_am = (float(given.get(name, 0.1)) for name in ("--rho", "--rho-am"))
    (out / "config.yaml").write_text(f"rho: {{rho}}\\nrho_am: {{rho_am}}\\n")
    (out / "log.csv").write_text(f"epoch,a,b,c,d,e,val_acc\\n1,0,0,0,0,0,{{0.6 - abs(rho - 0.3) / 10 - abs(rho_am - 0.1) / 10}}\\n")
    run = json.loads({test!r})
    run.update(method=given["--method"], options=dict(rho=rho, rho_am=rho_am, data=given["--data"], weights="none"))
    (out / "test.json").write_text(json.dumps(run))
note("end")
"""


@pytest.fixture
def place(tmp_path):
    """A folder with label files, and a `python` that only records its arguments."""
    (tmp_path / "rafce").mkdir()
    (tmp_path / "rafce/RAFCE_emolabel.txt").touch()
    names = "".join(f"{i:04}.jpg {i % 3}\r\n" for i in range(1, 20))
    (tmp_path / "rafce/RAFCE_partition.txt").write_bytes(names.encode())
    for i in range(1, 20):
        (tmp_path / f"rafce/{i:04}.jpg").touch()
        (tmp_path / f"rafce/{i:04}_aligned.jpg").touch()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/python"
    tested = [f"{i:04}.jpg" for i in range(1, 20, 3)]
    best = {**mmlfer.expression_metrics(mmlfer.confusion_matrix([0] * 7, [0] * 7, 14), mmlfer.EMOTIONS), "pred": [0] * 7}
    test = {"form": "wild", "stats": "wild", "table_sha256": "", "seed": 0, "rafce": False, "emotions": mmlfer.EMOTIONS,
            "aus": mmlfer.AUS, "names": tested, "truth": [0] * 7, "best": best,
            "data_sha256": "", "images_sha256": "", "backbone": ""}
    program.write_text(STAND_IN.format(python=sys.executable, test=json.dumps(test)))
    program.chmod(0o755)
    return tmp_path


def environment(place, **settings):
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return {**own, "PATH": f"{place}/bin:{own['PATH']}", **settings}


def run_sh(place, *args, **settings):
    return subprocess.run(["bash", ROOT / "run.sh", *args], cwd=place, env=environment(place, **settings),
                          capture_output=True, text=True, timeout=300)


def calls(place, what="start"):
    """(command, options, threads, time) of the program's calls."""
    lines = map(json.loads, (place / "calls").read_text().splitlines())
    return [(command, given, threads, when) for kind, when, threads, command, given, _ in lines if kind == what]


def trained(place):
    """{folder below OUT: options} of the runs."""
    return {given["--out"].removeprefix("./runs/"): given for name, given, *_ in calls(place) if name == "train"}


FEW = {"ROWS": "stl mtl", "SEEDS": "0 1", "RHOS": "0.1 0.3"}


def test_all_experiments_of_the_paper(place):
    result = run_sh(place, SEEDS="3 5", EPOCHS="7", SIZE="48", EXTRA="--weights none --schedule onecycle")
    assert result.returncode == 0, result.stderr
    runs = trained(place)
    rows = ["stl", "mtl", "mal", "mal2", "am-lab", "am-wild", "mml-lab", "mml-wild"]
    search = {f"search/mtl/{r}" for r in ("0.03", "0.1", "0.3", "1")}
    search |= {f"search/am-{s}/{r}-{a}" for s in ("lab", "wild") for r in ("0.03", "0.1", "0.3", "1") for a in ("0.1", "0.3", "1")}
    assert set(runs) == search | {f"final/{row}-{seed}" for row in rows for seed in (3, 5)}
    for out, given in runs.items():
        assert (given["--epochs"], given["--size"], given["--weights"], given["--schedule"]) == ("7", "48", "none", "onecycle")
        assert given["--data"] == "./rafce" and given["--device"] == "auto"
        row = out.split("/")[1].rsplit("-", 1)[0] if out.startswith("final") else out.split("/")[1]
        assert given["--method"] == row.split("-")[0] and given.get("--stats", "") == "".join(row.split("-")[1:])
        assert given["--seed"] == (out[-1] if out.startswith("final") else "3")
        if out.startswith("final/am"):
            assert (given["--rho"], given["--rho-am"]) == ("0.3", "0.1")
        elif not out.startswith("search"):
            assert given.get("--rho") == ("0.3" if row == "mtl" else None) and "--rho-am" not in given
    assert runs["search/am-lab/0.03-1"]["--rho"] == "0.03" and runs["search/am-lab/0.03-1"]["--rho-am"] == "1"
    *_, words = zip(*map(json.loads, (place / "calls").read_text().splitlines()))
    last = [one for one in words if one[0] in ("table", "plot", "gradcam")][::2]  # where it starts, not where it ends
    final = "./runs/final"
    assert last[:-1] == [["table", final, "--out", "./runs/results.md"], ["plot", final], ["plot", f"{final}/mtl-3"],
                         ["plot", f"{final}/mml-wild-3"]]
    assert last[-1][:7] == ["gradcam", "--ckpt", f"{final}/mtl-3/best.pt", "--ckpt", f"{final}/mml-wild-3/best.pt", "--out",
                            "./runs/gradcam.png"]


def test_the_settings_of_the_paper_are_the_defaults(place):
    assert run_sh(place, ROWS="stl").returncode == 0
    runs = trained(place)
    assert set(runs) == {"final/stl-0", "final/stl-1", "final/stl-2"}
    assert {(given["--epochs"], given["--size"], given["--data"]) for given in runs.values()} == {("60", "112", "./rafce")}


def grad_cam(place, **settings):
    """The words of the last call: gradcam's."""
    program = place / "bin/python"
    program.write_text(program.read_text().replace('note("start")', 'note("start"); Path("last").write_text("\\n".join(words))'))
    result = run_sh(place, **FEW, **settings)
    assert result.returncode == 0, result.stderr
    return (place / "last").read_text().split("\n")


def test_grad_cam_is_of_four_aligned_test_faces(place):
    assert grad_cam(place) == ["gradcam", "--ckpt", "./runs/final/mtl-0/best.pt", "--out", "./runs/gradcam.png",
                     *(f"./rafce/{i:04}_aligned.jpg" for i in (1, 4, 7, 10))]


def test_grad_cam_despite_loops_of_links_and_lost_faces(place):
    (place / "rafce/RAF-AU").symlink_to(place / "rafce")
    (place / "rafce/0001_aligned.jpg").unlink()
    (place / "rafce/0004.jpg").unlink(), (place / "rafce/0004_aligned.jpg").unlink()
    assert grad_cam(place)[-4:] == [f"./rafce/{name}.jpg" for name in ("0001", "0007_aligned", "0010_aligned", "0013_aligned")]


def test_a_folder_with_labels_csv_has_rows_with_its_own_statistics(place):
    """Grad-CAM is of the test faces that test.json names, whatever else lies beside them."""
    (place / "my faces/a").mkdir(parents=True)
    for name in ("labels.csv", "RAFCE_emolabel.txt", "a/1, 2.jpg", "a/3.jpg"):
        (place / "my faces" / name).touch()
    program = place / "bin/python"
    program.write_text(program.read_text().replace('"0001.jpg"', '"a/1, 2.jpg"'))
    result = run_sh(place, "my faces", SEEDS="0", RHOS="0.1", RHOS_AM="0.3")
    assert result.returncode == 0, result.stderr
    runs = trained(place)
    assert set(runs) == {"search/mtl/0.1", "search/am-train/0.1-0.3",
                         *(f"final/{row}-0" for row in ("stl", "mtl", "mal", "mal2", "am-train", "mml-train"))}
    assert {out: given["--stats"] for out, given in runs.items() if "--stats" in given} == dict.fromkeys(
        ("search/am-train/0.1-0.3", "final/am-train-0", "final/mml-train-0"), "train")
    *_, words = zip(*map(json.loads, (place / "calls").read_text().splitlines()))
    assert words[-1] == ["gradcam", "--ckpt", "./runs/final/mtl-0/best.pt", "--ckpt", "./runs/final/mml-train-0/best.pt", "--out",
                         "./runs/gradcam.png", "my faces/a/1, 2.jpg"]


def test_folds_are_trained_one_by_one_and_searched_with_the_first(place):
    """Grad-CAM is of the test faces of fold 1."""
    assert grad_cam(place, FOLDS="3") == ["gradcam", "--ckpt", "./runs/final/mtl-0-f1/best.pt", "--out", "./runs/gradcam.png",
                                          *(f"./rafce/{i:04}_aligned.jpg" for i in (1, 4, 7, 10))]
    runs = trained(place)
    assert set(runs) == {"search/mtl/0.1", "search/mtl/0.3", *(f"final/{row}-{seed}-f{fold}" for row in ("stl", "mtl")
                                                             for seed in (0, 1) for fold in (1, 2, 3))}
    for out, given in runs.items():
        assert (given["--folds"], given["--fold"]) == ("3", out[-1] if "-f" in out else "1")
        assert given["--seed"] == (out.split("-")[1] if "-f" in out else "0")
        assert given.get("--rho") == ("0.3" if out.startswith("final/mtl") else out.split("/")[-1] if "search" in out else None)


@pytest.mark.parametrize("folds", ["2", "persons", "0", "10x", "-3"])
def test_folds_are_a_number(place, folds):
    result = run_sh(place, **FEW, FOLDS=folds)
    assert result.returncode == 1 and result.stderr == f"run.sh: FOLDS={folds}: expected a number of folds, 3 or more\n"
    assert not (place / "calls").exists()


@pytest.fixture(scope="session")
def german(tmp_path_factory):
    """Settings of a locale that writes 0,5; it is made here, because few machines have it."""
    folder = tmp_path_factory.mktemp("locale")
    if not shutil.which("localedef") or subprocess.run(
            ["localedef", "-i", "de_DE", "-f", "UTF-8", folder / "de_DE.UTF-8"], capture_output=True).returncode > 1:
        pytest.skip("localedef cannot make de_DE.UTF-8 here")
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.UTF-8"}


def test_the_best_rho_is_found_where_numbers_have_a_comma(place, german):
    half = subprocess.run(["bash", "-c", "printf %.1f 0,5"], env={**os.environ, **german}, capture_output=True, text=True)
    assert half.stdout == "0,5"  # the locale is there
    result = run_sh(place, ROWS="mtl am-lab", SEEDS="0", RHOS="0.03 0.1 0.3 1", RHOS_AM="0.1 1", **german)
    assert result.returncode == 0, result.stderr
    runs = trained(place)
    assert runs["final/mtl-0"]["--rho"] == "0.3"
    assert (runs["final/am-lab-0"]["--rho"], runs["final/am-lab-0"]["--rho-am"]) == ("0.3", "0.1")
    assert "mtl: --rho 0.3\nam-lab: --rho 0.3 --rho-am 0.1\n" in result.stdout


@pytest.mark.parametrize(("jobs", "most"), [("1", 1), ("3", 3)])
def test_so_many_jobs_run_at_once(place, jobs, most):
    result = run_sh(place, **FEW, JOBS=jobs, SLEEP="0.3")
    assert result.returncode == 0, result.stderr
    events = sorted([(when, 1) for name, *_, when in calls(place) if name == "train"] +
                    [(when, -1) for name, *_, when in calls(place, "end") if name == "train"])
    running = [sum(step for _, step in events[: i + 1]) for i in range(len(events))]
    assert max(running) == most
    prefix = "./runs/final/stl-1: " if most > 1 else ""
    assert f"{prefix}epoch 1\n" in result.stdout
    cores = len(os.sched_getaffinity(0))
    assert {threads for *_, threads, _ in calls(place)} == {None if jobs == "1" else str(max(1, cores // 3))}


@pytest.mark.parametrize(("jobs", "threads"), [("2", "4"), ("3", "2"), ("8", "1"), ("9", "1")])
def test_runs_at_once_share_the_cores(place, jobs, threads):
    """On a machine of 8 cores."""
    (place / "bin/nproc").write_text("#!/bin/sh\necho 8\n")
    (place / "bin/nproc").chmod(0o755)
    assert run_sh(place, ROWS="stl", SEEDS="0", JOBS=jobs).returncode == 0
    assert {threads for *_, threads, _ in calls(place)} == {threads}


def test_a_given_number_of_threads_is_kept(place):
    assert run_sh(place, **FEW, JOBS="2", OMP_NUM_THREADS="5").returncode == 0
    assert {threads for *_, threads, _ in calls(place)} == {"5"}


def test_stages_wait_for_each_other(place):
    assert run_sh(place, **FEW, JOBS="4", SLEEP="0.2").returncode == 0
    ends = [when for name, given, _, when in calls(place, "end") if "search" in given.get("--out", "")]
    starts = [when for name, given, _, when in calls(place) if "final/mtl" in given.get("--out", "")]
    assert len(ends) == len(starts) == 2 and max(ends) < min(starts)


def test_devices_are_taken_in_turn(place):
    assert run_sh(place, **FEW, DEVICES="cuda:0 cuda:1 cuda:2").returncode == 0
    used = [given["--device"] for name, given, *_ in calls(place) if name == "train"]
    assert used == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1", "cuda:2"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_failed_run_is_named_and_fails_its_stage(place, jobs):
    result = run_sh(place, **FEW, JOBS=jobs, FAILS="search/mtl/0.1")
    assert result.returncode == 1 and "Error: some reason" in result.stdout + result.stderr
    command = [line for line in result.stderr.splitlines() if line.startswith("run.sh: failed: ")]
    assert len(command) == 1 and "--out ./runs/search/mtl/0.1 " in command[0]
    assert result.stderr.endswith("run.sh: some runs of this stage failed, see above; mend that and start again to go on\n")
    assert set(trained(place)) == {"search/mtl/0.1", "search/mtl/0.3", "final/stl-0", "final/stl-1"}  # the whole stage, no other
    again = run_sh(place, **FEW, JOBS=jobs)
    assert again.returncode == 0 and "final/mtl-1" in trained(place)


def test_list_prints_the_next_stage_that_is_not_done(place):
    def listed():
        result = run_sh(place, "--list", "./rafce", "./runs", **FEW)
        assert result.returncode == 0
        return result.stdout.splitlines(), result.stderr

    lines, errors = listed()
    assert len(lines) == 4 and errors == "" and not (place / "runs").exists()
    out = [line.split("--out ./runs/")[1].split()[0] for line in lines]
    assert out == ["search/mtl/0.1", "search/mtl/0.3", "final/stl-0", "final/stl-1"]
    for line in (lines[2], lines[0]):
        subprocess.run(line, shell=True, cwd=place, env=environment(place), check=True)
    assert listed()[0] == [lines[1], lines[3]]
    subprocess.run("\n".join(listed()[0]), shell=True, cwd=place, env=environment(place), check=True)
    second, _ = listed()
    assert len(second) == 2 and all("final/mtl" in line and " --rho 0.3" in line for line in second)
    subprocess.run("\n".join(second), shell=True, cwd=place, env=environment(place), check=True)
    assert listed() == ([], "Warning: runs/search/mtl: rho 0.3 is the best and the largest of those tried; try larger ones too\n"
                        "run.sh: all runs are done; start it without --list for the tables and figures\n")


def test_places_may_have_spaces_quotes_and_ends_of_lines(place):
    (place / "rafce").rename(place / "it's [RAF\nCE]")
    result = run_sh(place, "it's [RAF\nCE]", "out $1\n*", **FEW, JOBS="2")
    assert result.returncode == 0, result.stderr
    assert {given["--data"] for name, given, *_ in calls(place) if name == "train"} == {"it's [RAF\nCE]"}
    assert (place / "out $1\n*/final/mtl-1/test.json").exists()
    name, words, *_ = calls(place)[-1]
    assert name == "gradcam" and [*words.items()][2] == tuple(f"it's [RAF\nCE]/{i:04}_aligned.jpg" for i in (1, 4))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_stops_the_runs_and_starts_no_other(place, number):
    """The script ends after its runs, because a container ends with the script."""
    process = subprocess.Popen(["bash", ROOT / "run.sh"], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=environment(place, **FEW, JOBS="2", SLEEP="60"),
                               preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))  # it may be ignored here
    deadline = time.monotonic() + 60
    while not (place / "calls").exists() or len(calls(place)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == 130
    assert len(calls(place, "stopped")) == 2
    time.sleep(0.3)
    assert len(calls(place)) == 2


def test_run_sh_without_data_says_how_to_get_it(tmp_path):
    result = subprocess.run(["bash", ROOT / "run.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr == (
        "run.sh: neither RAF-CE nor a labels.csv in ./rafce. Ask for RAF-CE at\n"
        "http://www.whdeng.cn/RAF/model4.html, or make stand-in faces: python mmlfer.py synth ./rafce\n")
    assert not list(tmp_path.iterdir())


def test_run_sh_trains_searches_compares_and_draws_on_stand_ins(tmp_path):
    """Two rows, because each run is a process; test_all_experiments_of_the_paper has the words of every row."""
    synth.synthesize(tmp_path / "rafce", 60, "lab", None, 32, 0)
    settings = {"SEEDS": "0", "EPOCHS": "1", "SIZE": "32", "RHOS": "0.1", "RHOS_AM": "0.1", "DEVICES": "cpu", "JOBS": "2",
                "ROWS": "am-wild mml-wild", "EXTRA": "--batch-size 8 --arch resnet18 --weights none --hypergrad jvp"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(**more):
        return subprocess.run(["bash", ROOT / "run.sh"], cwd=tmp_path, env={**os.environ, **settings, **more, "PATH": path},
                              capture_output=True, text=True)

    first = run()
    assert first.returncode == 0, first.stderr
    out = tmp_path / "runs"
    assert sorted(p.name for p in (out / "final").iterdir() if p.is_dir()) == ["am-wild-0", "mml-wild-0"]
    results = (out / "results.md").read_text("utf-8")
    for row in ("| am wild | 1 |", "| mml wild | 1 |", "| mml wild - am wild |"):
        assert row in results
    assert all((out / name).exists() for name in ("gradcam.png", "final/curves.png", "final/mml-wild-0/curves.png"))
    config = yaml.safe_load((out / "final/am-wild-0/config.yaml").read_text())
    assert (config["rho"], config["rho_am"], config["stats"]) == (0.1, 0.1, "wild")
    times = {p: p.stat().st_mtime for p in out.rglob("*.pt")}
    stopped = out / "final/am-wild-0/test.json"  # as if it had been stopped before its end
    stopped.unlink()
    again = run(ROWS="am-wild")
    assert again.returncode == 0 and again.stdout.count("complete, nothing to do") == 1  # its search
    assert stopped.exists() and {p: p.stat().st_mtime for p in out.rglob("*.pt")} == times
