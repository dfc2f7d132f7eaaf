"""Figures as SVG and PNG, by matplotlib."""

import re
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no window, no display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from PIL import Image

from dma_lab.report.document import Figure, Heatmap
from dma_lab.report.palette import DIVERGING, HEAT, MISSING

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "svg.hashsalt": "dma_lab",  # else the same figure has another text every time
    "svg.fonttype": "none",
}


def draw(figure: Figure | Heatmap, folder: Path, colours: dict[str, str]) -> None:
    """Write ``folder``/SLUG.svg and SLUG.png; the same figure gives the same files. ``colours`` is by group."""
    with plt.rc_context(_STYLE):
        rows = len(figure.rows) if isinstance(figure, Heatmap) else 0
        canvas, axes = plt.subplots(figsize=(7.2, max(4.2, 1.4 + 0.22 * rows)), layout="constrained")
        _heatmap(axes, figure) if isinstance(figure, Heatmap) else _curves(axes, figure, colours)
        axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)
        with StringIO() as text:
            canvas.savefig(text, format="svg", metadata={"Date": None})
            # To a hundredth of a point: matplotlib writes a millionth, in a third more bytes.
            svg = re.sub(r' (d|x|y)="[^"]*"', lambda place: re.sub(r"(\.\d\d)\d+", r"\1", place[0]), text.getvalue())
        (folder / f"{figure.slug}.svg").write_text(svg, encoding="utf-8")
        with BytesIO() as drawn:
            canvas.savefig(drawn, format="png", dpi=150)
            # Of 128 colours: a third of the size, and hardly an eye tells it apart.
            Image.open(drawn).convert("RGB").quantize(128).save(folder / f"{figure.slug}.png", optimize=True)
        plt.close(canvas)


def _curves(axes: Axes, figure: Figure, colours: dict[str, str]) -> None:
    axes.set_xscale("log" if figure.x_log else "linear")
    axes.set_ylim(figure.y_range)
    for series in figure.series:
        colour = colours[series.group]
        if series.kind == "band":
            axes.fill_between(series.x, series.y, series.high, color=colour, alpha=0.12, linewidth=0)
        elif series.kind == "line":
            axes.plot(series.x, series.y, color=colour, linewidth=1 if series.faint else 1.6, alpha=0.8)
        else:
            axes.plot(series.x, series.y, "o", color=colour, markersize=4.5)
    groups = list(dict.fromkeys(series.group for series in figure.series))
    handles = [axes.plot([], [], "o-", color=colours[group], label=group)[0] for group in groups]
    axes.legend(handles=handles, frameon=False)


def _heatmap(axes: Axes, figure: Heatmap) -> None:
    shades = LinearSegmentedColormap.from_list("heat", HEAT if figure.reach is None else DIVERGING)
    low, high = (0.0, 1.0) if figure.reach is None else (-figure.reach, figure.reach)
    rows = np.arange(len(figure.rows) + 1) - 0.5
    mesh = axes.pcolormesh(figure.x, rows, np.array(figure.values, float), cmap=shades, vmin=low, vmax=high)
    axes.set_yticks(range(len(figure.rows)), figure.rows)
    axes.invert_yaxis()
    axes.set_facecolor(MISSING)
    axes.grid(False)
    axes.set_xticks(list(figure.x_ticks), figure.x_ticks.values())
    plt.colorbar(mesh, ax=axes, label=figure.scale)
