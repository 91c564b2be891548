"""The table of faults, and the tool that plants them."""

import subprocess
import sys

import pytest
from conftest import ROOT
from faults import fit
from faults.fault import Fault

FITS = Fault("x", "mmlfer.py", "def loss_au(", "def loss_au(", "losses::test_eq01_matches_naive_loop")
ON_A_SMALL_TREE = """
import sys
import mutate
from faults.fault import Fault

def planted(new, equivalent=""):
    return Fault(new, "small.py", "VALUE = 1", new, "small::test_value", equivalent)

faults = [planted("VALUE = 1"), planted("VALUE = 2"), planted("import time; time.sleep(99)"),
          planted("VALUE = 1  # the same", "a remark"), planted("VALUE = 3", "said in error"),
          planted("VALUE = (")]
for trial in mutate.try_faults(sys.argv[1], faults, 3, 30):
    print(trial.fault.new, "->", trial.verdict)
mutate.CONTROLS = {faults[1]: "SURVIVED"}
mutate.run_without_a_fault = lambda tree, faults: 1
mutate.run_faults(sys.argv[1], [], 1)
"""


@pytest.mark.parametrize("change, told", [
    ({"old": "no such text"}, "x: its old text occurs 0 times in mmlfer.py"),
    ({"old": "def "}, "times in mmlfer.py"),
    ({"file": "no_such.py"}, "x: its old text occurs 0 times in no_such.py"),
    ({"tests": "losses::test_eq01_matches_naive"}, "x: there is no tests/test_losses.py::test_eq01_matches_naive"),
    ({"tests": "psi[mal], losing::test_x"}, "x: there is no tests/test_losing.py::test_x"),
    ({"tests": "no_short_name"}, "x: there is no tests/test_no_short_name.py::"),
])
def test_a_fault_that_does_not_fit_is_reported(change, told):
    assert fit.misfits([FITS]) == []
    [why] = fit.misfits([FITS._replace(**change)])
    assert told in why


def test_a_name_given_twice_is_reported():
    assert fit.misfits([FITS, FITS]) == ["x: named 2 times"]


WITHOUT_FILES = """
import sys
import mutate
mutate.snapshot = lambda folder: None
mutate.run_faults = lambda *args: sys.exit("began with faults that do not fit")
sys.argv = ["mutate.py", "loss-au-mean"]
mutate.main()
"""


def test_faults_must_fit_the_copy_that_they_are_put_into():
    done = run_python("-c", WITHOUT_FILES)
    assert done.returncode == 1
    assert "loss-au-mean: its old text occurs 0 times in mmlfer.py" in done.stderr


def run_python(*args):
    return subprocess.run([sys.executable, *map(str, args)], cwd=ROOT / "tests", capture_output=True,
                          text=True, timeout=300)


def test_what_survives_what_is_killed_and_what_hangs_are_told_apart(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "small.py").write_text("VALUE = 1\n")
    (tmp_path / "tests" / "test_small.py").write_text(
        "def test_value():\n    import small\n    assert small.VALUE == 1\n")
    done = run_python("-c", ON_A_SMALL_TREE, tmp_path)
    assert sorted(done.stdout.splitlines()[:6]) == sorted([
        "VALUE = 1 -> SURVIVED", "VALUE = 2 -> killed", "import time; time.sleep(99) -> timed out",
        "VALUE = 1  # the same -> equivalent", "VALUE = 3 -> NOT EQUIVALENT",
        "VALUE = ( -> ERROR"]), done.stderr
    assert done.returncode == 1 and "must be SURVIVED: this tool is broken" in done.stderr
    assert (tmp_path / "small.py").read_text() == "VALUE = 1\n"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="copies what git lists")
def test_the_tool_runs_its_controls_beside_the_faults_that_are_named():
    done = run_python("mutate.py", "loss-au-mean", "-j", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = dict(line.split()[:2] for line in done.stdout.splitlines()[1:-1])
    assert verdicts == {"control-unchanged": "SURVIVED", "control-broken": "killed", "loss-au-mean": "killed"}
    assert done.stdout.splitlines()[-1].startswith("1 faults: 1 killed; ")
