"""What one fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    name: str
    file: str
    old: str  # occurs exactly once in the file
    new: str
    tests: str  # "losses::test_x, psi[mal]": of tests/test_losses.py, and a short name of NEAREST
    equivalent: str = ""  # why it changes nothing, and must survive
