"""What one fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    name: str
    file: str
    old: str  # occurs exactly once in the file
    new: str
    tests: str  # "losses::test_x, psi[mal]": test_x in tests/test_losses.py, and a name in NEAREST
    equivalent: str = ""  # why it changes no result and must survive; "" for all others
