"""The report's figures as SVG and PNG."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from dma_lab.figures.canvas import canvas, shades
from dma_lab.figures.palette import DIVERGING, HEAT, MISSING
from dma_lab.report.document import Figure, Heatmap


def draw(figure: Figure | Heatmap, folder: Path, colours: dict[str, str]) -> None:
    """Write ``folder``/SLUG.svg and SLUG.png. ``colours`` is by group."""
    rows = len(figure.rows) if isinstance(figure, Heatmap) else 0
    with canvas(folder / figure.slug, (7.2, max(4.2, 1.4 + 0.22 * rows))) as (axes,):
        _heatmap(axes, figure) if isinstance(figure, Heatmap) else _curves(axes, figure, colours)
        axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)


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
    colours = shades(HEAT if figure.reach is None else DIVERGING)
    low, high = (0.0, 1.0) if figure.reach is None else (-figure.reach, figure.reach)
    rows = np.arange(len(figure.rows) + 1) - 0.5
    mesh = axes.pcolormesh(figure.x, rows, np.array(figure.values, float), cmap=colours, vmin=low, vmax=high)
    axes.set_yticks(range(len(figure.rows)), figure.rows)
    axes.invert_yaxis()
    axes.set_facecolor(MISSING)
    axes.grid(False)
    axes.set_xticks(list(figure.x_ticks), figure.x_ticks.values())
    plt.colorbar(mesh, ax=axes, label=figure.scale)
