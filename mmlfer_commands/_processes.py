"""Worker processes for `synth`, `bench` and `pretrain`; torchrun's for `train` and `pretrain`."""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import multiprocessing
import os
import signal
import sys
import threading

import click
import numpy as np

from mmlfer import InputError, pick_device, predict_faces, read_checkpoint, torch


def end_with_parent(number=None):
    """In a worker process, of any number: end when the program ends, in whatever way."""
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


# ---------------------------------------------------------------- torchrun's processes


@dataclasses.dataclass(frozen=True)
class World:
    """This process's number among the processes that torchrun started; without it there is one."""

    rank: int = 0
    size: int = 1
    device: object = None
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    machine: int = 0

    @property
    def share(self):
        """The rows of a batch that this process takes."""
        return slice(self.rank, None, self.size)

    def say(self, text, **options):
        """Print a line, in the first process alone."""
        if self.rank == 0:
            click.echo(text, **options)

    def check_batch(self, size):
        """InputError unless all processes get equal shares of a batch, of two faces or more."""
        if size % self.size or size < 2 * self.size:
            fault = "not a multiple of" if size % self.size else "fewer than two for each of"
            raise InputError(f"--batch-size {size}: {fault} torchrun's {self.size} processes")

    def gather(self, value):
        """Every process's value, in order. It waits for all."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def machines(self, value):
        """(machine, value) of the first process of each."""
        firsts = self.gather((self.local_rank == 0, self.machine, value))
        return [pair for first, *pair in firsts if first]

    def read(self, path):
        """A checkpoint, which the first process reads for all."""
        states = [None if self.rank else read_checkpoint(path)]
        if self.size > 1:
            torch.distributed.broadcast_object_list(states)
        return states[0]

    def check_same(self, what, value):
        """InputError if the processes' values differ, as on machines with different files."""
        if len(set(self.gather(value))) > 1:
            raise InputError(f"{what}: not the same on every machine; copy it to all")

    def sum(self, numbers):
        """The sum of every process's numbers, a vector on the world's device. -> on the CPU"""
        if self.size > 1:
            torch.distributed.all_reduce(numbers)
        return numbers.cpu()

    def told_to_stop(self, caught):
        """Whether a signal came to any process; all of them ask at the same step."""
        return self.sum(torch.tensor([len(caught)], device=self.device)).item() > 0

    @property
    def mean(self):
        """Each of some tensors' mean over the processes, a function that can be differentiated."""
        return tuple if self.size == 1 else mean_over_processes

    def predict(self, net, images):
        """`predict_faces`, of which each process does every N-th batch."""
        turn = np.arange(len(images)) // 64 % self.size
        own = torch.utils.data.Subset(images, torch.from_numpy(np.flatnonzero(turn == self.rank)))
        parts = filter(None, self.gather(predict_faces(net, own) if len(own) else None))
        back = np.argsort(np.argsort(turn, kind="stable"))
        return tuple(np.concatenate(part)[back] for part in zip(*parts))


ALONE = World()


def mean_over_processes(tensors):
    """The mean of each tensor over the processes, by one reduction."""
    if any(tensor.requires_grad for tensor in tensors):
        return mean_class().apply(*tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    parts = flat.div_(torch.distributed.get_world_size()).split([t.numel() for t in tensors])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors))


@functools.cache
def mean_class():
    class Mean(torch.autograd.Function):  # defined here: importing must not load torch
        """The mean. All take it, so its derivative is the mean of what each one's loss asks for."""

        @staticmethod
        def forward(ctx, *tensors):
            return mean_over_processes([tensor.detach() for tensor in tensors])

        @staticmethod
        def backward(ctx, *grads):
            return mean_over_processes(grads)

    return Mean


def join_world(device):
    """The World of this process, in contact with the others."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": 0}
    rank, size, local, *rest = (int(os.environ.get(*name)) for name in names.items())
    device = pick_device(device)
    if size > 1:
        if device.type == "cuda":
            device = pick_device(f"cuda:{local}")
            torch.cuda.set_device(device)
        backend, day = "nccl" if device.type == "cuda" else "gloo", datetime.timedelta(days=1)
        torch.distributed.init_process_group(backend, timeout=day)  # one may decode or write long
    return World(rank, size, device, local, *rest)


@contextlib.contextmanager
def one_voice():
    """Of torchrun's processes only the first to fail says why: the others fail for that reason."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    store, *_ = next(torch.distributed.rendezvous("env://"))
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if store.add("failed", 1) > 1:
            sys.exit(1)
        if "closed by peer" in str(error) or "reset by peer" in str(error):
            raise InputError("another of torchrun's processes ended; --resume goes on") from None
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def first_speaks():
    """Nothing is shown of what torchrun's processes print, except of the first one."""
    with open(os.devnull, "w") as nowhere:
        out, err = (nowhere,) * 2 if int(os.environ.get("RANK", 0)) else (sys.stdout, sys.stderr)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
