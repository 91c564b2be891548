"""Places that commands write to: locks, new folders, names of outputs, lines and pictures."""

import contextlib
import csv
import glob
import io
import itertools
import os
import platform
import re
import shutil
from pathlib import Path

import click
from tqdm import tqdm

from mmlfer import LABEL_FILES, InputError, is_image, refused, write_whole
from mmlfer_commands._figures import is_figure

LOCK = ".lock"  # in a folder that one process at a time writes to
PART = ".part"  # in a new folder: what is not complete yet
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so


@contextlib.contextmanager
def locked(out, lock):
    """Lock a run's folder or file for this process; the system unlocks it when the process ends."""
    import filelock

    hold = filelock.FileLock(lock, timeout=0, preserve_lock_file=True, on_acquired=sign)
    with refused(lock, "cannot be written ({}); free some space or name another output"):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            hold.acquire()
        except filelock.Timeout:
            raise InputError(f"{out}: in use by {holder(lock)}; wait or name another") from None
    try:
        yield
    finally:
        hold.release()


def sign(file):
    """Write who holds a lock into its file, an open file's number."""
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {platform.node()}".encode())


def holder(lock):
    """Who holds a lock, by its file, which some systems do not let others read meanwhile."""
    try:
        return lock.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


@contextlib.contextmanager
def writing(path):
    """Add the path of an output to an error that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or not error.errno or isinstance(error, BrokenPipeError):
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror}); free some space or name "
                         "another output") from None


def remove_parts(*paths):
    """Remove what killed writes of these paths left; only with their lock."""
    for path in paths:
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            part.unlink(missing_ok=True)


class Lines:
    """A new file to which each text is written at once: it always ends with a whole one."""

    def __init__(self, files, path):
        self.path = path
        with refused(path, "cannot be written ({})"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = files.enter_context(path.open("xb", 0))  # which an ExitStack closes

    def write(self, text):
        """Write a text; InputError, with the file as it was before, if it cannot be written."""
        place, rest = self.file.tell(), text.encode()
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            self.file.truncate(place)
            if not place:
                self.path.unlink()
            raise InputError(f"{self.path}: cannot be written{' further' * (place > 0)} ("
                             f"{error.strerror}); {'the lines before are there; ' * (place > 0)}"
                             "free some space and start again") from None


@contextlib.contextmanager
def new_folder(out):
    """A folder to fill, inside the new folder `out`; its content moves up to `out` when it is
    complete, so that a call that was stopped can be repeated. One process at a time fills it."""
    part = Path(out) / PART
    with filling(part.parent):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            for path in list(part.iterdir()):
                path.rename(part.parent / path.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def check_new(folder):
    """Refuse to write to a folder that holds more than what a stopped new_folder left there."""
    if folder.exists() and not (folder.is_dir() and set(os.listdir(folder)) <= {PART, LOCK}):
        raise InputError(f"{folder}: not an empty folder; name a new one")


@contextlib.contextmanager
def filling(folder):
    """Write to a new folder, one process at a time; the lock's file is removed at the end."""
    check_new(folder)
    with locked(folder, folder / LOCK), writing(folder):
        try:
            check_new(folder)  # another process may have filled it meanwhile
            yield
        finally:
            with contextlib.suppress(PermissionError):  # where an open file cannot be removed
                (folder / LOCK).unlink(missing_ok=True)


def check_output(path, *inputs):
    """InputError if an output would replace an input: one of these files or folders, a label file,
    or an image, other than a figure, beside the given images or below the given folders."""
    output = Path(path).resolve()
    if not output.exists():
        return
    picture = is_image(output) and not is_figure(output)
    for source in map(Path, inputs):
        folder = source if source.is_dir() else source.parent
        images = source.is_dir() or is_image(source)
        beside = picture and folder.resolve() in output.parents
        same = source.exists() and output.samefile(source)
        if same or (images and beside) or output.name in (*LABEL_FILES, "labels.csv"):
            raise InputError(f"{path}: is an input or lies among the inputs; name another output")


def check_pictures_folder(folder, *inputs):
    """Refuse to write images to the folder of an input, or to one inside an input folder."""
    place = folder.resolve()
    for source in map(Path, inputs):
        own = (source if source.is_dir() else source.parent).resolve()
        if place == own or (source.is_dir() and own in place.parents):
            raise InputError(f"{folder}: is an input or lies among the inputs; name another output")


def check_two_outputs(**options):
    """Refuse two options (name=path or None) that name one file; one device or pipe is allowed."""
    places = [os.path.realpath(path) for path in options.values() if path]
    one_file = len({*places}) < len(places)
    if one_file and (os.path.isfile(places[0]) or not os.path.exists(places[0])):
        raise click.UsageError(f"--{' and --'.join(options)} name one file.")


def output_names(paths):
    """A unique name for the output of each path: its stem in UTF-8, cut to what a name can hold."""
    # the locale may have 8 bits
    stems = [os.fsencode(path.stem).decode(errors="replace").encode()[:200] for path in paths]
    names = numbered([stem.decode(errors="ignore") for stem in stems])
    return [os.fsdecode(name.encode()) for name in names]


def numbered(names):
    """The names, with a number, as in a-2, if several have one; capitals do not count."""
    unique = {}
    for first in names:
        tried = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
        name = next(name for name in tried if name.lower() not in unique)
        unique[name.lower()] = name
    return list(unique.values())


def in_utf8(text):
    """A text that may be a file's name, with ? for what is not in UTF-8, whatever the locale."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        return text.encode(errors="replace").decode()


def name_of(path):
    """The name of a file or folder as one line of text in UTF-8, for tables and figures."""
    return in_utf8(" ".join(Path(str(path)).name.split()))


def shown(path):
    """A path as text that can be printed and written, whatever its bytes. A name such as `=1.jpg`,
    which a spreadsheet would take for a formula, gets ./ in front."""
    text = in_utf8(str(path))
    return f"./{text}" if text.startswith(FORMULA) else text


def say(line, err=True):
    """Print a line above the progress bar; control characters, as in a file's name, are ?."""
    with tqdm.external_write_mode():
        click.echo(CONTROL.sub("?", line), err=err)


def markdown(header, rows):
    """A Markdown table. A | within a cell, as in a file's name, is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def encoded(picture, kind):
    """An image of Pillow as the bytes of a PNG or JPEG file, made smaller than a JPEG can be."""
    buffer = io.BytesIO()
    picture.thumbnail((65500, 65500))
    picture.save(buffer, kind, quality=90)
    return buffer.getvalue()


def csv_table(file, columns):
    """A csv.DictWriter to a file, its header written."""
    table = csv.DictWriter(file, columns, lineterminator="\n")
    table.writeheader()
    return table


def csv_text(rows, columns):
    """Rows, as dicts, as the text of a CSV file."""
    text = io.StringIO()
    csv_table(text, columns).writerows(rows)
    return text.getvalue()


def write_rows(rows, columns, path):
    """Rows, as dicts, as a CSV file."""
    write_whole(path, csv_text(rows, columns).encode())
