"""The program `mmlfer`, also `python -m mmlfer_commands`: quiet if Ctrl-C ends it as it loads."""

import signal


def main():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all is loaded, Ctrl-C ends it silently
    import mmlfer

    signal.signal(signal.SIGINT, signal.default_int_handler)
    mmlfer.main()


if __name__ == "__main__":
    main()
