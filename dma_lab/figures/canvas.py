"""The look of every figure, and its files: SVG and PNG, by matplotlib. A figure is a function that fills axes."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no window, no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image

from dma_lab.files import whole, write_whole

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "svg.hashsalt": "dma_lab",  # else the same figure has another text every time
    "svg.fonttype": "none",
}


@contextmanager
def canvas(
    path: Path, size: tuple[float, float], *, panels: int = 1, below: float | None = None, png: bool = True
) -> Iterator[list[Axes]]:
    """Axes side by side, or one above another, to be filled within the context, at whose end ``path``.svg and
    ``path``.png are written.

    The same content gives the same files.

    Args:
        path: without a suffix.
        size: inches, width and height.
        below: not side by side: a second one below the first over the same x, its height so much of the first's.
        png: also as PNG.
    """
    with plt.rc_context(_STYLE):
        grid: dict[str, Any] = {"ncols": panels}
        if below is not None:
            grid = {"nrows": 2, "sharex": True, "height_ratios": (1, below)}
        drawn, axes = plt.subplots(figsize=size, layout="constrained", squeeze=False, **grid)
        try:
            yield list(axes.flat)
            with StringIO() as text:
                drawn.savefig(text, format="svg", metadata={"Date": None})
                # To a hundredth of a point: matplotlib writes a millionth, in a third more bytes.
                svg = re.sub(
                    r' (d|x|y)="[^"]*"', lambda place: re.sub(r"(\.\d\d)\d+", r"\1", place[0]), text.getvalue()
                )
            write_whole(path.with_name(f"{path.name}.svg"), svg)
            if png:
                with BytesIO() as pixels, whole(path.with_name(f"{path.name}.png")) as stream:
                    drawn.savefig(pixels, format="png", dpi=150)
                    # Of 256 colours: a quarter of the size. Chosen by how far apart they are: chosen by how many pixels
                    # have them, as is Pillow's wont, thin lines of rare colours take a more frequent line's.
                    few = Image.open(pixels).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
                    few.save(stream, format="png", optimize=True)
        finally:
            plt.close(drawn)


def shades(colours: Sequence[str]) -> LinearSegmentedColormap:
    """A colour map through ``colours``, from the least to the most."""
    return LinearSegmentedColormap.from_list("heat", colours)
