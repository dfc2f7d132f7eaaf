"""What is recalled against what the decoding cache holds: memory is what sparse attention saves, and where it shows."""

from collections.abc import Sequence
from typing import Any

from dma_lab.report.collect import Run
from dma_lab.report.context_figures import at_one_point, point_text
from dma_lab.report.document import Figure, Series
from dma_lab.report.layers import cache_bytes

_X_LABEL = "decoding cache of a sequence, all layers, bf16 (bytes)"


def recall_against_cache(finished: Sequence[Run]) -> Figure | None:
    """Accuracy of recall; None where fewer than two backends were trained on it."""
    scored = [run for run in finished if run.summary.val_accuracy is not None]
    shown = at_one_point(scored) if scored else []
    points = [(run, run.summary.context, run.accuracy) for run in shown]
    caption = "share of queries answered right, against what decoding a whole example holds at its end"
    return _figure("recall-cache", "Recall against cache", caption, "accuracy", points)


def needles_against_cache(number: int, cells: Sequence[Any], settings: str) -> Figure | None:
    """Share of needles answered exactly, the mean over the depths that all have, at every length.

       None of fewer than two backends.
    ``cells`` are of one point and differ in length and depth alone.
    """
    depths: dict[int, dict[Any, dict[float, Any]]] = {}
    for cell in cells:
        depths.setdefault(cell.settings["length"], {}).setdefault(cell.run.path, {})[cell.settings["depth"]] = cell
    points = []
    for length, by_run in depths.items():
        shared = set.intersection(*(set(own) for own in by_run.values()))  # a mean over other depths is another mean
        for own in by_run.values() if shared else ():
            exact = [own[depth].scores["exact"] for depth in sorted(shared)]
            points.append((next(iter(own.values())).run, length, sum(exact) / len(exact)))
    caption = f"a point for every length of text, the mean over depths. Settings: {settings}"
    return _figure(f"needle-{number}-cache", "Needles against cache", caption, "share answered exactly", points)


def _figure(
    slug: str, title: str, caption: str, y_label: str, points: Sequence[tuple[Run, int, float]]
) -> Figure | None:
    series = []
    for backend in dict.fromkeys(run.backend for run, _, _ in points):
        held = [(cache_bytes(run, length), y, run, length) for run, length, y in points if run.backend == backend]
        own = sorted((size, y, length, run.label) for size, y, run, length in held if size is not None)
        if own:
            hover = [f"{label}: {size:,} bytes after {length:,} tokens, {y:.3f}" for size, y, length, label in own]
            series.append(Series(backend, "points", [size for size, *_ in own], [y for _, y, *_ in own], hover=hover))
    if len(series) < 2:
        return None
    caption = f"{point_text(points[0][0])}: {caption}."
    return Figure(slug, title, caption, _X_LABEL, y_label, series, x_log=True, unit="one training per point")
