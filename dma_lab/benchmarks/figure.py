"""Time against length on two logarithmic axes, as SVG: straight lines tell the power of N."""

from collections.abc import Iterable
from itertools import cycle
from math import ceil, floor, log10
from pathlib import Path
from typing import Any, NamedTuple

from dma_lab.figures.palette import SERIES

Point = dict[str, Any]


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
    from dma_lab.figures.canvas import canvas  # Matplotlib, a second that --help need not wait for

    with canvas(path.with_suffix(""), (5.6 * len(panels), 4.8), panels=len(panels), png=False) as axes:
        for number, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
            for line, colour in zip(panel.lines, cycle(SERIES), strict=False):
                x, y = zip(*line.points, strict=True)
                style, marker = ("--", "") if line.dashed else ("-", "o")
                axis.loglog(
                    x, y, style, marker=marker, markersize=4, color=colour, linewidth=1.6,
                    label=line.name, gid=f"line {number} {line.name}",
                )  # fmt: skip
            lengths = sorted({x for line in panel.lines for x, _ in line.points})
            axis.set_xticks(lengths, [f"{length / 1024:g}k" for length in lengths], minor=False)
            axis.set_xticks([], minor=True)
            times = [time for line in panel.lines for _, time in line.points]
            low, high = floor(log10(min(times))), ceil(log10(max(times)))
            axis.set_ylim(10.0**low, 10.0 ** max(high, low + 1))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
            axis.set(title=f"{panel.title}, milliseconds", xlabel=panel.x_label)
            axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.14))  # below, where it covers no line


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
