"""Put plausible faults into a copy of the source, one at a time, and see whether the tests notice.

    python tests/mutate.py [NAME ...] [-j N] [--list] [--check]

A NAME selects the faults of tests/faults/ whose names begin with it; without one, all run. For
each fault, the tests that must fail are run in a copy of the checkout's files, in a child process
that has loaded torch already. Two controls run every time: one changes nothing and must survive,
one breaks the program and must be killed. The exit code is 1 if a control goes wrong, or if a fault
survives that is not explained as equivalent. --check runs nothing: it tells which faults no longer fit
the code, because a line was reworded. For Linux and macOS.
"""

import argparse
import ast
import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
from faults import CONTROLS, FAULTS, UNCHANGED
from faults.fit import ROOT, misfits, paths_of

CRASHED = 70  # the code of a child that ends without one of pytest's
LIMIT = 120  # seconds, at least, after which tests count as hanging
WORDS = {0: "SURVIVED", 1: "killed", -signal.SIGSEGV: "killed", None: "timed out"}  # pytest notices a crash, and a
# fault that never ends is noticed
EXPECTED = {"killed", "timed out", "equivalent"}


def snapshot(folder):
    """Copy the checkout's files as they are now, except those that git ignores: data, runs, weights."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def run_tests(fault, folder):
    """pytest's exit code for a fault's tests, in the folder that has the fault. For a child process:
    it changes this one's folder, output and import path."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ.update(PYTHONPATH=str(folder), TMPDIR=str(folder))
    tempfile.tempdir = str(folder)
    with open(folder / "output", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if fault.file.endswith(".py"):
        ast.parse(Path(fault.file).read_text())  # a syntax error would say nothing about the tests
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    return int(pytest.main([*options, *paths_of(fault.tests)]))


class Trial:
    """A fault in a copy of the tree, and the child process that runs its tests there."""

    def __init__(self, tree, fault):
        self.fault, self.start = fault, time.perf_counter()
        self.parent = tempfile.TemporaryDirectory(prefix="mutate-", ignore_cleanup_errors=True)
        self.folder = Path(self.parent.name) / "tree"
        shutil.copytree(tree, self.folder)
        path = self.folder / fault.file
        path.write_text(path.read_text().replace(fault.old, fault.new))
        self.child = os.fork()
        if self.child == 0:
            self.run_child()
        os.setpgid(self.child, self.child)  # so that what the tests start can be ended with them

    def run_child(self):
        code = CRASHED
        try:
            code = run_tests(self.fault, self.folder)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # sys.exit would go on in the parent's frames

    def seconds(self):
        return time.perf_counter() - self.start

    def ended(self, limit):
        """Whether the tests have ended or taken too long; if so, sets the code and the output."""
        child, status = os.waitpid(self.child, os.WNOHANG)
        if not child and self.seconds() < limit:
            return False
        self.code = os.waitstatus_to_exitcode(status) if child else None
        self.output = (self.folder / "output").read_text(errors="replace")
        self.clear()
        return True

    def clear(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.child, 0)
        self.parent.cleanup()

    def verdict(self):
        word = WORDS.get(self.code, "ERROR")
        if self.fault.equivalent:
            return "equivalent" if word == "SURVIVED" else "NOT EQUIVALENT"
        return word


def run_trials(tree, faults, jobs, limit):
    """Yield the Trial of each fault when it has ended; `jobs` of them run at a time."""
    waiting, running = list(faults), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Trial(tree, waiting.pop(0)))
            time.sleep(0.05)
            for trial in [trial for trial in running if trial.ended(limit)]:
                running.remove(trial)
                yield trial
    finally:
        for trial in running:
            trial.clear()


def run_without_a_fault(tree, faults):
    """The seconds that all tests of these faults take if nothing is changed."""
    tests = sorted({test for fault in [*CONTROLS, *faults] for test in fault.tests.split(", ")})
    every = UNCHANGED._replace(tests=", ".join(tests))
    trial = next(run_trials(tree, [every], 1, float("inf")))
    if trial.verdict() != "SURVIVED":
        sys.exit(f"{trial.output}\nthese tests fail without any fault")
    print(f"the tests pass without a fault, {trial.seconds():.0f} s", flush=True)
    return trial.seconds()


def run_faults(tree, faults, jobs):
    """Print and count the verdicts; exit if a control goes wrong."""
    limit, found = max(LIMIT, run_without_a_fault(tree, faults)), Counter()
    for trial in run_trials(tree, [*CONTROLS, *faults], jobs, limit):
        fault, verdict = trial.fault, trial.verdict()
        print(f"{fault.name:38} {verdict:10} {trial.seconds():6.1f} s  {fault.equivalent}", flush=True)
        if verdict == "ERROR":
            print(trial.output)
        if fault not in CONTROLS:
            found[verdict] += 1
        elif verdict != CONTROLS[fault]:
            sys.exit(f"{trial.output}\n{fault.name} must be {CONTROLS[fault]}: this tool is broken")
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="faults at a time")
    parser.add_argument("--list", action="store_true", help="print the faults, run nothing")
    parser.add_argument("--check", action="store_true", help="print the faults that do not fit the code")
    options, start = parser.parse_args(), time.perf_counter()
    wanted = tuple(options.names) or ("",)
    faults = [fault for fault in FAULTS if fault.name.startswith(wanted)]
    if options.list:
        return print("\n".join(f"{fault.name:38} {fault.file:27} {fault.tests}" for fault in faults))
    if options.check:
        sys.exit("\n".join(misfits([*CONTROLS, *faults])) or None)
    if not faults:
        sys.exit("no fault has such a name")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for module in ("hypothesis", "torch", "torchvision"):  # its children need not load them
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutate-") as tree:
        snapshot(Path(tree))  # the checkout may change from here on
        if wrong := misfits([*CONTROLS, *faults], Path(tree)):
            sys.exit("\n".join(wrong))
        found = run_faults(tree, faults, options.jobs)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.items())
    print(f"{len(faults)} faults: {counts}; {time.perf_counter() - start:.0f} s")
    sys.exit(bool(found.keys() - EXPECTED))


if __name__ == "__main__":
    main()
