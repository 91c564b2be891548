"""Put plausible faults into a copy of the source, one at a time, and see whether the tests notice.

    python tests/mutate.py [NAME ...] [-j N] [--check]

A NAME selects the faults of tests/faults/ whose names begin with it; without one, all run. For
each fault, the tests that must fail are run in a copy of the checkout's files, in a child process
that has loaded torch already. Two controls run every time: one changes nothing and must survive,
one breaks the program and must be killed. The exit code is 1 if a control goes wrong, or if a fault
survives that is not explained as equivalent. --check runs nothing: it tells which faults no longer
fit the code, because a line was reworded. For Linux and macOS.
"""

import argparse
import ast
import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import pytest
from faults import CONTROLS, FAULTS, UNCHANGED
from faults.fault import Fault
from faults.fit import ROOT, misfits, paths_of

LIMIT = 120  # seconds, at least, after which tests count as hanging
WORDS = {0: "SURVIVED", 1: "killed", -signal.SIGSEGV: "killed",  # pytest notices a crash
         None: "timed out"}  # a fault that never ends is noticed
FORK = multiprocessing.get_context("fork")
EXPECTED = {"killed", "timed out", "equivalent"}


class Trial(NamedTuple):
    fault: Fault
    verdict: str
    seconds: float
    output: str


def snapshot(folder):
    """Copy the checkout's files as they are now, except those that git ignores: data, runs, weights."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def run_tests(fault, folder):
    """End this process with pytest's exit code for a fault's tests, in the folder that has the fault."""
    os.setpgid(0, 0)  # so that what the tests start can be ended with them
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ.update(PYTHONPATH=str(folder), TMPDIR=str(folder))
    tempfile.tempdir = str(folder)
    with open(folder / "output", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    sys.exit(int(pytest.main([*options, *paths_of(fault.tests)])))


def try_fault(tree, fault, limit=None):
    """Run a fault's tests in a copy of the tree that has it. -> Trial"""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutate-", ignore_cleanup_errors=True) as parent:
        folder = shutil.copytree(tree, Path(parent) / "tree")
        path = folder / fault.file
        source = path.read_text().replace(fault.old, fault.new)
        path.write_text(source)
        if fault.file.endswith(".py"):
            try:
                ast.parse(source)
            except SyntaxError as error:  # it would say nothing about the tests
                return Trial(fault, "ERROR", 0, str(error))
        child = FORK.Process(target=run_tests, args=(fault, folder))
        child.start()
        child.join(limit)
        word = WORDS.get(child.exitcode, "ERROR")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.join()
        if fault.equivalent:
            word = "equivalent" if word == "SURVIVED" else "NOT EQUIVALENT"
        output = (folder / "output").read_text(errors="replace")
        return Trial(fault, word, time.perf_counter() - start, output)


def try_faults(tree, faults, jobs, limit):
    """Yield the Trial of each fault when it has ended; `jobs` of them run at a time."""
    with ProcessPoolExecutor(jobs, FORK) as pool:
        waiting = [pool.submit(try_fault, tree, fault, limit) for fault in faults]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def run_without_a_fault(tree, faults):
    """The seconds that all tests of these faults take if nothing is changed."""
    tests = sorted({test for fault in [*CONTROLS, *faults] for test in fault.tests.split(", ")})
    trial = try_fault(tree, UNCHANGED._replace(tests=", ".join(tests)))
    if trial.verdict != "SURVIVED":
        sys.exit(f"{trial.output}\nthese tests fail without any fault")
    print(f"the tests pass without a fault, {trial.seconds:.0f} s", flush=True)
    return trial.seconds


def run_faults(tree, faults, jobs):
    """Print and count the verdicts; exit if a control goes wrong."""
    limit, found = max(LIMIT, run_without_a_fault(tree, faults)), Counter()
    for fault, verdict, seconds, output in try_faults(tree, [*CONTROLS, *faults], jobs, limit):
        print(f"{fault.name:38} {verdict:10} {seconds:6.1f} s  {fault.equivalent}", flush=True)
        if verdict == "ERROR":
            print(output)
        if fault not in CONTROLS:
            found[verdict] += 1
        elif verdict != CONTROLS[fault]:
            sys.exit(f"{output}\n{fault.name} must be {CONTROLS[fault]}: this tool is broken")
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="faults at a time")
    parser.add_argument("--check", action="store_true", help="print the faults that do not fit the code")
    options, start = parser.parse_args(), time.perf_counter()
    faults = [fault for fault in FAULTS if fault.name.startswith(tuple(options.names) or ("",))]
    if not faults:
        sys.exit("no fault has such a name")
    with tempfile.TemporaryDirectory(prefix="mutate-") as tree:
        snapshot(Path(tree))  # the checkout may change from here on
        wrong = misfits([*CONTROLS, *faults], Path(tree))
        if wrong or options.check:
            sys.exit("\n".join(wrong) or None)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        for module in ("hypothesis", "torch", "torchvision"):  # its children need not load them
            importlib.import_module(module)
        found = run_faults(tree, faults, options.jobs)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.items())
    print(f"{len(faults)} faults: {counts}; {time.perf_counter() - start:.0f} s")
    sys.exit(bool(found.keys() - EXPECTED))


if __name__ == "__main__":
    main()
