"""Decoded images, in memory or in a file that the processes of a machine share."""

import errno
import math
import os
import shutil
import tempfile

import click
import numpy as np

from mmlfer import decode_all, refused


def decode_shared(world, folder, paths, size):
    """`decode_all` for the processes of a World; with --scratch FOLDER once for each machine. A
    line says so if the images take more than half of a machine's memory."""
    shape = (len(paths), 3, size, size)
    if folder is None or not paths:
        taken = math.prod(shape) * world.local_size
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if taken > memory / 2:
                click.echo(f"Note: the images take {taken / 1e9:.1f} GB of {memory / 1e9:.1f} GB "
                           "of memory; --scratch DIR keeps them in a file", err=True)
        return decode_all(paths, size)
    images = shared_array(world, folder, shape)
    unread = None if world.local_rank else decode_all(paths, size, images)[1]
    return images, dict(world.machines(unread))[world.machine]


def shared_array(world, folder, shape):
    """A uint8 array in a temporary file in `folder`, one for the processes of a machine. Its name
    is removed as soon as all have mapped it: whatever ends them, the system frees the space."""
    first, size = world.local_rank == 0, math.prod(shape)
    world.machines(None)  # all are here, so that the name is needed for a moment only
    with refused(f"--scratch {folder}", "{}; name another folder"):
        name = tempfile.mkstemp(".scratch", "mmlfer-", folder)[1] if first else None
        with open(dict(world.machines(name))[world.machine], "r+b") as file:
            try:
                if first:
                    file.truncate(size)
                world.machines(None)
                array = np.memmap(file, np.uint8, "r+", shape=shape)
                world.machines(None)
            finally:
                if first:
                    os.unlink(name)
            if first:  # take the space now: a full disk would kill a process that writes to it
                free = shutil.disk_usage(folder).free
                with refused(f"--scratch {folder}", f"the images take {size / 1e9:.2f} GB, and "
                             f"{free / 1e9:.2f} GB are free ({{}}); name another folder"):
                    if size > free:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
    return array
