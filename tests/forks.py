"""A Python that has loaded torch and torchvision, and forks itself for each program to be run.

Loading them takes 4 s of processor time, a fork almost none. `python()` is the path of a program
that takes the same words as Python: a script, -c or -m, and arguments. The fork has the standard
files, folder, environment, process group and signals of the program that a test starts. Nothing of
mmlfer is loaded beforehand. Three things differ from Python: no write waits for the disk, ResNet-18
is that of thin.py, and all forks hash strings alike. The start itself (imports, --help, an early
Ctrl-C) is tested with sys.executable.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import itertools
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

LOADED = ("torch", "torchvision", "thin", "numpy", "PIL.Image", "click", "yaml", "tqdm")


@functools.cache
def python():
    """The program's path; the first call starts the server, which ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    program, address = folder / "python", folder / "socket"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" ask "{address}" "$@"\n')
    program.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen([sys.executable, __file__, "serve", address], env=own, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)
    server.stdout.readline()  # now it listens
    atexit.register(shutil.rmtree, folder, True)
    atexit.register(server.communicate)  # the end of its standard input ends it
    return str(program)


# ---------------------------------------------------------------- the program that a test starts


def is_open(number):
    with contextlib.suppress(OSError):
        return bool(os.fstat(number))


def ask(address, *arguments):
    """Let the server run these arguments in a new process, and end in the way that it ends."""
    numbers = [number for number in range(3) if is_open(number)]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [b"x"], [*numbers, connection.fileno()])
    request = {"arguments": arguments, "numbers": numbers, "folder": os.getcwd(), "group": os.getpgrp(),
               "environment": dict(os.environ)}
    connection.sendall(json.dumps(request).encode() + b"\n")
    answers = connection.makefile()
    process = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(process, number))
    code = int(answers.readline())
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


# ---------------------------------------------------------------- the server


def serve(address):
    """Fork for each request, and return it in the new process; end when standard input ends."""
    for name in LOADED:
        importlib.import_module(name)
    os.fsync = lambda number: None
    gc.freeze()  # a collection in a fork must not touch, and so copy, what was loaded before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("listening", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # forks must not keep the pipe open
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return watch(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(0)


def watch(connection):
    """In a process of its own: fork the program (only this fork returns), send its exit code to the
    process that asked for it, and kill it if that process is gone."""
    _, files, *_ = socket.recv_fds(connection, 1, 4)
    request = json.loads(connection.makefile().readline())
    process = os.fork()
    if process == 0:
        connection.close()
        return request, files
    for file in files:
        os.close(file)
    connection.sendall(b"%d\n" % process)
    ended = threading.Event()

    def kill():
        with contextlib.suppress(OSError):
            connection.recv(1)
        if not ended.is_set():
            os.kill(process, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    ended.set()
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % code)
    os._exit(0)


def stream(number, mode, **options):
    """A standard stream, such as sys.stdin, as Python opens it."""
    if is_open(number):
        return open(number, mode, closefd=False, **options)


def become(request, files):
    """Take over the request's files, folder, environment and so on. -> arguments without Python's flags"""
    numbers, arguments, environment = (request[name] for name in ("numbers", "arguments", "environment"))
    os.closerange(0, 3)
    for file, number in zip(files, numbers):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    try:
        os.setpgid(0, request["group"])
    except PermissionError:  # the group belongs to another session
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    sys.modules["numpy"].random.seed()  # forks must not all share one state
    flags = list(itertools.takewhile(lambda word: word[:1] == "-" and word not in ("-c", "-m"), arguments))
    encoding, unbuffered = environment.get("PYTHONIOENCODING"), "-u" in flags
    sys.stdin = stream(0, "r", encoding=encoding)
    sys.stdout = stream(1, "w", encoding=encoding, buffering=1 if unbuffered or os.isatty(1) else -1)
    sys.stderr = stream(2, "w", encoding=encoding, buffering=1, errors="backslashreplace")
    sys.path[:1] = environment.get("PYTHONPATH", "").split(os.pathsep) if environment.get("PYTHONPATH") else []
    return arguments[len(flags) :]


def run(first, *rest):
    """Do what `python FIRST REST` does, in the module __main__."""
    code = 0
    try:
        execute(first, *rest)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and code != end.code:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # end as Python does, but do not tear down the loaded modules
    atexit._run_exitfuncs()
    for file in filter(None, (sys.stdout, sys.stderr)):
        try:
            file.flush()
        except OSError:
            code = 120
    os._exit(code)


def execute(first, *rest):
    if first == "-m":
        sys.argv, sys.path[:0] = list(rest), [os.getcwd()]
        return runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first == "-c":
        sys.argv, sys.path[:0], source = ["-c", *rest[1:]], [""], rest[0]
    else:
        sys.argv, sys.path[:0], source = [first, *rest], [os.path.dirname(os.path.abspath(first))], Path(first).read_text()
        main.__file__ = first
    exec(compile(source, first, "exec"), vars(main))


if __name__ == "__main__":
    role, address, *words = sys.argv[1:]
    if role == "ask":
        ask(address, *words)
    run(*become(*serve(address)))
