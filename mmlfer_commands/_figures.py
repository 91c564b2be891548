"""Figures by matplotlib, without a screen."""

import io
import warnings
from pathlib import Path

from mmlfer import InputError, write_whole


def pyplot():
    """Matplotlib without a screen."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("figures need matplotlib: pip install -e '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_figure(plt, figure, path):
    """Write a figure whole, in the format that its name ends in, with nothing cut off."""
    kind, known = Path(path).suffix[1:].lower() or "png", figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise InputError(f"{path}: no format of a figure ({', '.join(known)}); name it like "
                         "figure.png")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names in any script
        figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight")
    plt.close(figure)
    write_whole(path, buffer.getvalue())
