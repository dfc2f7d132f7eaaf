"""The report's figures as SVG and PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator

from dma_lab.figures.canvas import canvas, shades
from dma_lab.figures.palette import DIVERGING, HEAT, MISSING, is_backends_own
from dma_lab.report.document import Figure, Heatmap, Panel, Series

_ROWS_WITHIN = 3
"""Of the legend, that a figure of the usual height has room for."""
_MARKS = {"circle": "o", "diamond": "D", "triangle": "^", "cross": "x"}


def draw(figure: Figure | Heatmap, folder: Path, colours: dict[str, str]) -> None:
    """Write ``folder``/SLUG.svg and SLUG.png. ``colours`` is by group."""
    path = folder / figure.slug
    if isinstance(figure, Heatmap):
        with canvas(path, (7.2, max(4.2, 1.4 + 0.22 * len(figure.rows)))) as (axes,):
            _heatmap(axes, figure)
            axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)
        return
    below = figure.below
    height = (6.8 if below else 4.8) + 0.21 * max(0, _legend_rows(figure) - _ROWS_WITHIN)
    with canvas(path, (7.2, height), below=0.6 if below else None) as drawn:
        axes = drawn[0]
        if figure.x_log:
            axes.set_xscale("log")
            for ticks in (one.xaxis for one in drawn):  # of few decades 2 and 5 of each have labels, too
                ticks.set_minor_locator(LogLocator(subs=(2, 5)))
                ticks.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2.3, 2.3)))
        axes.set_ylim(figure.y_range)
        axes.set(ylabel=figure.y_label)
        _curves(axes, figure.series, colours)
        if below:
            _below(drawn[1], below, colours)
        drawn[-1].set(xlabel=figure.x_label)
        _legend(axes, figure, colours)


def _legend(axes: Axes, figure: Figure, colours: dict[str, str]) -> None:
    own = {series.group: colours[series.group] for series in figure.all_series}
    handles = [axes.plot([], [], _line(tint) + "o", **_mark(tint), label=group)[0] for group, tint in own.items()]
    named = axes.figure.legend(
        handles=handles, frameon=False, loc="outside upper left", ncols=_legend_columns(figure), title=figure.title,
        alignment="left",
    )  # fmt: skip
    named.get_title().set_fontsize(12)


def _legend_columns(figure: Figure) -> int:
    groups = {series.group for series in figure.all_series}
    return max(1, min(len(groups), 78 // (6 + max(map(len, groups), default=1))))


def _legend_rows(figure: Figure) -> int:
    return -(-len({series.group for series in figure.all_series}) // _legend_columns(figure))


def _below(axes: Axes, panel: Panel, colours: dict[str, str]) -> None:
    if panel.ratio:
        axes.set_yscale("log")
        axes.set_yticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        axes.yaxis.set_minor_locator(NullLocator())  # the other axis is shared
    axes.set_ylim(panel.y_range)
    axes.axhline(panel.level, color="#3d3d3d", linewidth=1.2)
    axes.set(ylabel=panel.y_label)
    _curves(axes, panel.series, colours)


def _line(colour: str) -> str:
    return "-" if is_backends_own(colour) else "--"


def _mark(colour: str, size: float = 4.5) -> dict[str, Any]:
    """Variants and controls are hollow, so that they are told from the backends in grey, too."""
    own = {"color": colour, "markersize": size}
    return own if is_backends_own(colour) else own | {"markerfacecolor": "white"}


def _curves(axes: Axes, curves: Sequence[Series], colours: dict[str, str]) -> None:
    for series in curves:
        colour = colours[series.group]
        if series.kind == "band":
            axes.fill_between(series.x, series.y, series.high, color=colour, alpha=0.12, linewidth=0)
        elif series.kind == "intervals":
            axes.vlines(series.x, series.y, series.high, color=colour, linewidth=1, alpha=0.8)
        elif series.kind == "line":
            width = 1 if series.faint else 1.6
            axes.plot(series.x, series.y, _line(colour), color=colour, linewidth=width, alpha=0.8)
        else:
            axes.plot(series.x, series.y, _MARKS[series.mark], **_mark(colour, 4.5 if series.mark == "circle" else 8))


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
