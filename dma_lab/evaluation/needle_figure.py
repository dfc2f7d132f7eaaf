"""Needles by length and depth: two heatmaps side by side."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from dma_lab.figures.canvas import canvas, shades
from dma_lab.figures.palette import DIVERGING, HEAT


def draw_needles(path: Path, run: str, context: int, found: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Write ``path``.png and ``path``.svg from the (cell, scores) pairs of one kind of needle.

    Left the share of values found; right what the needle adds to its value's log-probability, white where it adds
    nothing. Lengths beyond the training ``context`` are marked.
    """
    lengths = sorted({cell["length"] for cell, _ in found})
    depths = sorted({cell["depth"] for cell, _ in found})
    panels = (("substring", "values found", HEAT), ("gain", "log-probability gained, nats per token", DIVERGING))
    size = (2 * (2.2 + 0.75 * len(lengths)), 1.8 + 0.4 * len(depths))
    with canvas(path, size, panels=2) as axes:
        for axis, (score, title, colours) in zip(axes, panels, strict=True):
            grid = np.full((len(depths), len(lengths)), np.nan)
            for cell, scores in found:
                grid[depths.index(cell["depth"]), lengths.index(cell["length"])] = scores[score]
            reach = max(1.0, float(np.nanmax(abs(grid))))
            least = 0.0 if score == "substring" else -reach
            image = axis.imshow(grid, cmap=shades(colours), vmin=least, vmax=reach, aspect="auto")
            for (row, column), value in np.ndenumerate(grid):
                shade = "white" if abs(value) > 0.6 * reach else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=8)
            beyond = [f"{length:,}{'*' if length > context else ''}" for length in lengths]
            axis.set_xticks(range(len(lengths)), beyond)
            axis.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
            axis.set(title=title, xlabel=f"tokens (* beyond the {context:,} trained on)")
            axis.grid(False)
            plt.colorbar(image, ax=axis)
        axes[0].set_ylabel("depth of the needle")
        cell = found[0][0]
        what = f"{run}: {cell['kind']}, {cell['values']}, {cell['samples']} samples per cell"
        axes[0].figure.suptitle(what, fontsize=9)
