"""The commands of mmlfer but `train` and `eval`, each in the file of its name."""

import signal
import sys


def main():
    """Start the program; until it stands, Ctrl-C ends it without a word."""
    if sys.stdout:
        sys.stdout.reconfigure(errors="replace")  # where the locale has no ±
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mmlfer import main as program

    signal.signal(signal.SIGINT, signal.default_int_handler)
    program()
