"""Figures as plotly.js takes them: traces and a layout, plain JSON."""

import re
from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Any

from dma_lab.figures.palette import DIVERGING, HEAT, MISSING, is_backends_own
from dma_lab.report.document import Figure, Heatmap, Panel, Series

_AXIS = {"gridcolor": "#ebebe8", "zeroline": False, "linecolor": "#b8b8b4", "ticks": "outside", "automargin": True}


def plotly_figure(figure: Figure | Heatmap, colours: dict[str, str]) -> dict[str, Any]:
    """``data`` and ``layout`` for ``Plotly.newPlot``. One legend entry per group switches all that is its own."""
    layout: dict[str, Any] = {
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {**_AXIS, "title": {"text": figure.x_label}},
        "yaxis": {**_AXIS, "title": {"text": figure.y_label}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
    }
    if isinstance(figure, Heatmap):
        layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
        layout["xaxis"] |= {"tickvals": list(figure.x_ticks), "ticktext": list(figure.x_ticks.values())}
        layout["plot_bgcolor"] = MISSING
        layout["height"] = 110 + 22 * max(6, len(figure.rows))
        return {"data": [_heatmap(figure)], "layout": layout}
    layout["height"] = 440
    layout["yaxis"]["range"] = figure.y_range
    if figure.x_log:
        layout["xaxis"] |= {"type": "log", **_log_ticks(figure)}
    if figure.below:
        _make_room(layout, figure.below)
    shown: set[str] = set()
    data: list[dict[str, Any]] = []
    for series in figure.all_series:
        trace = _trace(series, colours[series.group])
        # The entry stands for the points, which every backend has: a line or a band alone has none.
        trace["showlegend"] = series.kind == "points" and series.mark == "circle" and series.group not in shown
        if trace["showlegend"]:
            shown.add(series.group)
        data.append(trace)
    for trace in data[len(figure.series) :]:
        trace["yaxis"] = "y2"
    return {"data": data, "layout": layout}


def _make_room(layout: dict[str, Any], panel: Panel) -> None:
    """For a panel below the axes, over the same x."""
    layout["height"] = 700
    layout["yaxis"]["domain"] = [0.4, 1]
    layout["xaxis"]["anchor"] = "y2"
    own: dict[str, Any] = {**_AXIS, "title": {"text": panel.y_label}, "domain": [0, 0.35], "range": panel.y_range}
    if panel.ratio:
        ticks = panel.ticks
        own |= {"type": "log", "range": [log10(end) for end in panel.y_range]}
        own |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    layout["yaxis2"] = own
    level = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y2", "y0": panel.level, "y1": panel.level}
    layout["shapes"] = [level | {"line": {"color": "#3d3d3d", "width": 1.2}, "layer": "below"}]


def _log_ticks(figure: Figure) -> dict[str, Any]:
    """At decades, or at 1, 2 and 5 of few of them; in plain digits, for raised ones are too small on a phone."""
    positive = [value for series in figure.all_series for value in series.x if value > 0]
    if not positive:
        return {}
    low, high = log10(min(positive)), log10(max(positive))
    steps = (1,) if high - low > 2.3 else (1, 2, 5)
    every = 1 + int((high - low) // 8)
    values = [step * 10.0**decade for decade in range(floor(low), ceil(high) + 1, every) for step in steps]
    if sum(10**low <= value <= 10**high for value in values) < 2:
        return {"exponentformat": "e"}  # so little is spanned that round values between must do
    texts = [f"{value:g}" if value < 1e3 else f"{value:,.0f}" if value < 1e5 else f"{value:.0e}" for value in values]
    return {"tickvals": values, "ticktext": [re.sub(r"e\+?(-?)0?", r"e\1", text) for text in texts]}


_MARKS = {"diamond": "diamond-open", "triangle": "triangle-up-open", "cross": "x-thin"}


def _trace(series: Series, colour: str) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": series.group,
        "legendgroup": series.group,
        "x": _short(series.x),
        "y": _short(series.y),
        "hovertemplate": "%{text}<br>%{x:.4s}, %{y:.4f}<extra></extra>",
        # One text for all points is written once: labels of long curves would be half of the page.
        "text": series.hover[0] if len(set(series.hover)) == 1 else list(series.hover),
    }
    if series.kind == "band":
        # One closed outline: there along the lower edge, back along the upper.
        trace |= {
            "x": _short([*series.x, *reversed(series.x)]),
            "y": _short([*series.y, *reversed(series.high)]),
            "fill": "toself",
            "fillcolor": colour + "22",
            "line": {"width": 0},
            "mode": "lines",
            "hoverinfo": "skip",
        }
        del trace["hovertemplate"]
    elif series.kind == "intervals":
        middle = [(low + high) / 2 for low, high in zip(series.y, series.high, strict=True)]
        half = [(high - low) / 2 for low, high in zip(series.y, series.high, strict=True)]
        bars = {"type": "data", "array": _short(half), "color": colour, "thickness": 1.2, "width": 0}
        trace |= {"y": _short(middle), "error_y": bars, "mode": "markers", "marker": {"opacity": 0}}
        trace |= {"hoverinfo": "skip"}
        del trace["hovertemplate"]
    elif series.kind == "line":
        dash = "solid" if is_backends_own(colour) else "dash"
        trace |= {"mode": "lines", "line": {"color": colour, "width": 1.2 if series.faint else 2, "dash": dash}}
        trace["opacity"] = 0.7 if series.faint else 1.0
        if not series.hover:
            trace |= {"hoverinfo": "skip"}
            del trace["hovertemplate"]
    else:
        mark = {"color": colour, "size": 8, "line": {"color": "#fff", "width": 1}}
        if not is_backends_own(colour):
            # Hollow, so that variants and controls are told from the backends in grey, too.
            mark |= {"symbol": "circle-open", "size": 7, "line": {"color": colour, "width": 1.5}}
        if series.mark != "circle":
            mark |= {"symbol": _MARKS[series.mark], "size": 13, "line": {"color": colour, "width": 2}}
        trace |= {"mode": "markers", "marker": mark}
    return trace


def _short(values: Sequence[float]) -> list[float]:
    """To six digits, more than any screen shows."""
    return [float(f"{value:.6g}") for value in values]


def _heatmap(figure: Heatmap) -> dict[str, Any]:
    low, high = (0.0, 1.0) if figure.reach is None else (-figure.reach, figure.reach)
    colours = HEAT if figure.reach is None else DIVERGING
    value = "%{z:.1%}" if figure.reach is None else "%{z:.3f}"
    named: dict[str, Any] = {
        "text": [list(figure.columns)] * len(figure.rows),
        "hovertemplate": f"%{{y}}, %{{text}}: {value} ({figure.scale})<extra></extra>",
    }
    lifetimes = {"hovertemplate": "%{y}: %{z:.1%} of keys live about %{x:.2f} W<extra></extra>"}
    return {
        "type": "heatmap",
        "x": list(figure.x),
        "y": list(figure.rows),
        "z": [list(row) for row in figure.values],
        "zmin": low,
        "zmax": high,
        "colorscale": [[index / (len(colours) - 1), colour] for index, colour in enumerate(colours)],
        "colorbar": {
            "title": {"text": figure.scale, "side": "right"},
            "thickness": 10,
            "tickformat": ".0%" if figure.reach is None else "",
        },
        **(named if figure.columns else lifetimes),
    }
