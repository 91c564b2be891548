"""Worker processes for `synth`, `bench` and `pretrain`."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading


def end_with_parent():
    """In a worker process: end when the program ends, in whatever way that happens."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def in_processes(workers, function, jobs, chunk=1, **options):
    """Yield function(job) of each job, in order, from worker processes, which ignore Ctrl-C."""
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=end_with_parent, **options)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the processes inherit this
        done = pool.map(function, jobs, chunksize=chunk)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield from done
    finally:
        pool.shutdown()  # `map` has dropped the jobs that have not begun
