"""Whether a fault still fits the code, and where its tests are."""

import re
from collections import Counter
from pathlib import Path

from faults import NEAREST

ROOT = Path(__file__).resolve().parent.parent.parent


def paths_of(tests):
    """'losses::test_eq01' -> 'tests/test_losses.py::test_eq01', and the short names of NEAREST."""
    for test in tests.split(", "):
        name, bracket, parameters = test.partition("[")
        file, _, function = NEAREST.get(name, name).partition("::")
        yield f"tests/test_{file}.py::{function}{bracket}{parameters}"


def content(name, root=ROOT):
    """The text of a file in a checkout; "" if there is no such file."""
    path = root / name
    return path.read_text() if path.is_file() else ""


def misfit(fault, root=ROOT):
    """Why a fault cannot be put in, or its tests cannot be run: a sentence, or None."""
    source = content(fault.file, root)
    if source.count(fault.old) != 1:
        return f"its old text occurs {source.count(fault.old)} times in {fault.file}"
    for path in paths_of(fault.tests):
        file, function = re.match(r"(.+)::(\w*)", path).groups()
        if f"\ndef {function}(" not in content(file, root):
            return f"there is no {file}::{function}"


def misfits(faults, root=ROOT):
    """All that is wrong with these faults in a checkout, a sentence each."""
    counts = Counter(fault.name for fault in faults)
    twice = [f"{name}: named {count} times" for name, count in counts.items() if count > 1]
    return twice + [f"{fault.name}: {why}" for fault in faults if (why := misfit(fault, root))]
