"""Worker processes for `synth`, `bench` and `pretrain`."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading


def end_with_parent():
    """In a worker process: end when the program ends, in whatever way that happens."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def blocked(signals):
    """Block signals for a while: processes that are started then inherit it, except on Windows."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_processes(workers, function, jobs, chunk=1, **options):
    """Yield function(job) of each job, in order, from worker processes, which ignore Ctrl-C."""
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=end_with_parent, **options)
    try:
        with blocked({signal.SIGINT}):
            done = pool.map(function, jobs, chunksize=chunk)
        yield from done
    finally:
        pool.shutdown()  # `map` has dropped the jobs that have not begun
