"""Attention to a text: a row per query, a column per key, grey where the key does not live."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm

from dma_lab.evaluation.text_attention import TextAttention
from dma_lab.figures.canvas import canvas, shades
from dma_lab.figures.palette import HEAT, MISSING

_NAMED = 120
"""Tokens, of which each has its name beside it."""


def draw_text_attention(path: Path, read: TextAttention, layer: int, head: int) -> None:
    """Write ``path``.png and ``path``.svg of one query head, both counted from 0.

    Down a column one sees a key's life: from its own row to that before its expiry.
    """
    weights_tj = read.weights_lhtj[layer, head]
    group = read.weights_lhtj.shape[1] // read.expiry_lkj.shape[1]
    expiry_j = read.expiry_lkj[layer, head // group]
    j = np.arange(len(read.tokens))
    lives = (j <= j[:, None]) & (j[:, None] < expiry_j)
    side = 3 + 0.11 * len(read.tokens)
    with canvas(path, (side + 1, side)) as (axes,):
        drawn = np.ma.masked_where(~lives, weights_tj)
        # The square root tells small shares apart: of a hundred keys each has about a hundredth.
        image = axes.imshow(drawn, cmap=shades(HEAT), norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        axes.set_facecolor(MISSING)
        axes.grid(False)
        if len(read.tokens) <= _NAMED:
            axes.set_xticks(j, read.tokens, rotation=90, fontsize=6, family="monospace")
            axes.set_yticks(j, read.tokens, fontsize=6, family="monospace")
        axes.set(title=f"layer {layer}, head {head}", xlabel="key", ylabel="query")
        plt.colorbar(image, ax=axes, label="share of a query's attention")
