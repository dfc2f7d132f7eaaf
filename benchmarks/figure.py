"""Time against length on two logarithmic axes, as SVG: straight lines tell the power of N."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

Point = dict[str, Any]

_WIDTH, _LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT = 420, 56, 34, 340, 240
_KEYS_FROM, _KEY_HEIGHT = _TOP + _PLOT_HEIGHT + 56, 16  # the lines' names lie below, where they cover none
_COLOURS = ("#0b6e4f", "#d1495b", "#6b7280", "#2e5fa3", "#b8860b", "#7a3e9d")


class Line(NamedTuple):
    name: str
    points: list[tuple[float, float]]
    dashed: bool = False


class Panel(NamedTuple):
    title: str
    x_label: str
    lines: list[Line]


def draw_kernels(points: list[Point], path: Path) -> None:
    """Forward and total of ``bench.py kernels``, random scores: ours, the best dense attention, the floor, and other
    packages with as many key/value heads as the first of ours.
    """
    panels = []
    for part, title in (("forward", "forward"), ("total", "selection, forward and backward")):
        lines = []
        for H, K in _distinct((point["H"], point["K"]) for point in points):
            of_heads: dict[int, Point] = {}
            for point in points:
                if (point["H"], point["K"], point["scores"]) == (H, K, "random"):
                    of_heads.setdefault(point["N"], point)
            rows = [of_heads[N] for N in sorted(of_heads)]
            lines.append(Line(f"ours, {H}/{K} heads", [(row["N"], row["ours"][part]) for row in rows]))
            if len(lines) == 1:
                best = [(row["N"], min(times[part] for times in row["dense"].values())) for row in rows]
                dense = Line("dense causal, the best", best)
                floor = Line("floor", [(row["N"], row["floor"][part]) for row in rows], dashed=True)
                others = _packages(rows, part)
        panels.append(Panel(title, "tokens", [*lines, dense, floor, *others]))
    _write(panels, path)


def _packages(rows: list[Point], part: str) -> list[Line]:
    tracks: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for other in row["packages"]:
            tracks.setdefault(f"{other['package']}, mask {other['mask']}", []).append((row["N"], other[part]))
    return [Line(name, track) for name, track in tracks.items()]


def draw_decode(points: list[Point], path: Path) -> None:
    """One token of ``bench.py decode``: admission and attention over the bounded cache, and dense attention."""
    panels = []
    for batch in _distinct(point["batch"] for point in points):
        rows = sorted((point for point in points if point["batch"] == batch), key=lambda point: point["history"])
        ours = Line("ours", [(row["history"], row["both"]) for row in rows])
        dense = Line("dense", [(row["history"], row["dense"]) for row in rows if row["dense"] is not None])
        panels.append(Panel(f"one token, batch {batch}", "tokens of history", [ours, dense]))
    _write(panels, path)


def _write(panels: list[Panel], path: Path) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(_svg(panels), encoding="utf-8")
    os.replace(unfinished, path)


def _svg(panels: list[Panel]) -> str:
    height = _KEYS_FROM + _KEY_HEIGHT * max(len(panel.lines) for panel in panels)
    size = f'width="{_WIDTH * len(panels)}" height="{height}"'
    view = f'viewBox="0 0 {_WIDTH * len(panels)} {height}"'
    body = [part for number, panel in enumerate(panels) for part in _panel(panel, number * _WIDTH)]
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view} font-family="sans-serif" font-size="11">'
    return "\n".join([opening, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>"]) + "\n"


def _panel(panel: Panel, x0: float) -> list[str]:
    xs, ys = zip(*(point for line in panel.lines for point in line.points), strict=True)
    decades = range(math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys))) + 1)
    low, high = decades[0], max(decades[-1], decades[0] + 1)
    first, last = math.log2(min(xs)), max(math.log2(max(xs)), math.log2(min(xs)) + 1)
    left, bottom = x0 + _LEFT, _TOP + _PLOT_HEIGHT

    def across(x: float) -> float:
        return left + (math.log2(x) - first) / (last - first) * _PLOT_WIDTH

    def up(y: float) -> float:
        return bottom - (math.log10(y) - low) / (high - low) * _PLOT_HEIGHT

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

    parts = [text(left, _TOP - 14, f"{panel.title}, milliseconds", "start")]
    for decade in range(low, high + 1):
        y = up(10.0**decade)
        parts.append(f'<path d="M{left} {y:.1f}h{_PLOT_WIDTH}" stroke="#e5e7eb"/>')
        parts.append(text(left - 6, y + 4, f"{10.0**decade:g}", "end"))
    for x in sorted(set(xs)):
        parts.append(f'<path d="M{across(x):.1f} {bottom}v4" stroke="#111"/>')
        parts.append(text(across(x), bottom + 16, f"{x / 1024:g}k"))
    parts.append(text(left + _PLOT_WIDTH / 2, bottom + 34, panel.x_label))
    parts.append(f'<path d="M{left} {_TOP}V{bottom}h{_PLOT_WIDTH}" fill="none" stroke="#111"/>')
    for number, line in enumerate(panel.lines):
        colour = _COLOURS[number % len(_COLOURS)]
        dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
        places = [(across(x), up(y)) for x, y in line.points]
        track = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{track}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        if not line.dashed:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        key = _KEYS_FROM + _KEY_HEIGHT * number
        parts.append(f'<path d="M{left} {key}h22" stroke="{colour}" stroke-width="2"{dashes}/>')
        parts.append(text(left + 28, key + 4, line.name, "start"))
    return parts


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
