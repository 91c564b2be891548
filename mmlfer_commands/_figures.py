"""Figures by matplotlib, without a screen."""

import contextlib
import io
import warnings
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base

from mmlfer import InputError, write_whole
from mmlfer_commands._runs import check_installed

MARK = "mmlfer figure"  # in the Exif data: such an image is no input, and may be written again
MARKED = ("avif", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp")


def pyplot():
    """Matplotlib without a screen."""
    check_installed("a figure", ("matplotlib",), "plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_figure(figure, path):
    """Write a figure whole, in the format that its name ends in, with nothing cut off."""
    kind, known = Path(path).suffix[1:].lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise InputError(f"{path}: no format of a figure ({', '.join(known)}); name it like "
                         "figure.png")
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[Base.Software] = MARK
    marked = {"pil_kwargs": {"exif": exif}} if kind in MARKED else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in any script
        figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight", **marked)
    pyplot().close(figure)
    write_whole(path, buffer.getvalue())


def is_figure(path):
    """Whether a file is an image that save_figure wrote."""
    with contextlib.suppress(Exception), Image.open(path) as image:  # Pillow's plugins raise any
        return image.getexif().get(Base.Software) == MARK
    return False
