"""Files that commands read: those below a folder, the images among them, a text's lines; sorting;
reading ahead."""

import collections
import concurrent.futures
import contextlib
import os
import re
from pathlib import Path

from PIL import Image

from mmlfer import InputError, is_image, plural, refused, tell_once

SYSTEM = ("lost+found", "system volume information", "$recycle.bin", "#recycle", "@recycle",
          "@eadir", "__macosx")  # folders of systems and network drives
CLIPS = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def is_hidden(name):
    """Whether a file or folder is hidden, or is one that a system keeps for itself."""
    return name.startswith(".") or name.casefold() in SYSTEM


def read_list(path):
    """The lines of a text file, without spaces around them."""
    with refused(path, "cannot be read ({})", OSError, UnicodeError):
        text = path.read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.rstrip().split("\n")]


def cannot_list(error):
    raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


def files_below(folder):
    """Yield the files below a folder but hidden ones; it follows links, and each folder once."""
    seen = set()
    for place, folders, files in os.walk(folder, onerror=cannot_list, followlinks=True):
        inside = [name for name in folders if not is_hidden(name)]
        links = {name: os.path.islink(os.path.join(place, name)) for name in inside}
        folders[:] = sorted(inside, key=lambda name: (links[name], name))
        if os.path.realpath(place) in seen:
            folders.clear()
        else:
            yield from (Path(place, name) for name in files if not is_hidden(name))
        seen.add(os.path.realpath(place))


def find_files(folder, name):
    """The files of a name below a folder, sorted."""
    return sorted(path for path in files_below(folder) if path.name == name and path.is_file())


def is_clip(path):
    """Whether a file has the name of a video."""
    return path.suffix.strip().lower() in CLIPS


def images_among(paths, folder, taken=is_image):
    """The images among the files of a folder, sorted. A line counts the others."""
    others = [path for path in paths if not taken(path)]
    if others:
        kinds = sorted({path.suffix.strip().lower() or path.name for path in others})
        tell_once(f"{folder}: {plural(len(others), 'other file')} passed over "
                  f"({', '.join(kinds):.60}); save pictures among them as JPEG or PNG")
    return sorted(filter(taken, paths))


def images_below(folder, taken=is_image):
    """The images below a folder; a broken link is one, and named later, a pipe is none."""
    paths = [path for path in files_below(folder) if path.is_file() or not path.exists()]
    return images_among(paths, folder, taken)


def list_images(paths, taken=is_image):
    """The images among these paths and in these folders, in order; or what else is to be taken."""
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += images_below(path, taken)
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    if not found:
        raise InputError(f"{', '.join(map(str, paths))}: no images there")
    if moving := [path for path in found if is_animation(path)]:
        tell_once(f"{moving[0]}: of {plural(len(moving), 'animation')} the first frame is taken")
    return found


def is_animation(path):
    """Whether a file, by its name of a kind that may have them, has several frames."""
    if path.suffix.strip().lower() not in (".gif", ".webp", ".apng", ".avif", ".avifs"):
        return False
    with contextlib.suppress(Exception), Image.open(path) as image:  # Pillow raises every kind
        return getattr(image, "is_animated", False)
    return False


def by_numbers(text):
    """A key that sorts texts by the size of the numbers in them: rho 3.0, then rho 10.0."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)  # text and numbers in turn
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def ahead(items, n=1):
    """Yield the same items; while one is used, a thread makes the next n."""
    items, pool = iter(items), concurrent.futures.ThreadPoolExecutor(1)
    try:
        coming = collections.deque(pool.submit(next, items, None) for _ in range(n))
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
