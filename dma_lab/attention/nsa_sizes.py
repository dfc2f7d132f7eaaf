"""NSA's options: sizes left open follow the paper's ratios to the context, and impossible ones are refused."""

from dataclasses import dataclass, field
from typing import NamedTuple

from dma_lab.attention.base import LATER, AttentionOptions
from dma_lab.attention.reach import whole_context
from dma_lab.attention.recency import Recency
from dma_lab.attention.rope import RopeBase
from dma_lab.messages import UserError, warn_once
from dma_lab.settings import Count


@dataclass(frozen=True)
class NativeSparseOptions(AttentionOptions):
    """Sizes default to the paper's (512, 32, 16, 64) from a context of 2048 on, and to their ratio to it below."""

    window: Count | None = None
    """Keys of the sliding branch, the query's own included; min(512, max_seq_len / 4) unless given."""
    block: Count | None = None
    """Tokens per compressed block; 32, less below a context of 2048, unless given."""
    stride: Count | None = None
    """Tokens from one compressed block to the next; half a block unless given."""
    selected_block: Count | None = None
    """Tokens per selection block; two compressed blocks unless given."""
    selected_blocks: Count = 16
    """Selection blocks a query reads: its document's first, its own, the one before, and the best."""
    qk_norm: bool = True
    """RMSNorm over each head's query and each branch's keys, compressed ones as they come from φ."""
    rope_base: RopeBase = 10_000.0
    recency: Recency | None = field(default=None, metadata=LATER)
    """``slope``: a learned slope per key/value head on logits of all three branches (``recency.py``)."""


class Sizes(NamedTuple):
    """The sizes of ``NativeSparseOptions``, none left open."""

    window: int
    block: int
    stride: int
    selected_block: int
    selected_blocks: int


def choose_sizes(options: NativeSparseOptions, max_seq_len: int) -> Sizes:
    """The sizes for contexts of up to ``max_seq_len`` tokens.

    Raises:
        UserError: blocks do not divide by the stride, are longer than the context, or are too few.
    """
    N = max_seq_len
    window = min(512, max(1, N // 4)) if options.window is None else options.window
    block = 2 * min(16, max(1, N // 128)) if options.block is None else options.block
    stride = max(1, block // 2) if options.stride is None else options.stride
    selected_block = 2 * block if options.selected_block is None else options.selected_block
    sizes = Sizes(window, block, stride, selected_block, options.selected_blocks)
    _check(sizes, max_seq_len)
    return sizes


def _check(sizes: Sizes, max_seq_len: int) -> None:
    window, block, stride, selected_block, selected_blocks = sizes
    if selected_block < block:
        raise UserError(
            f"attention.selected_block={selected_block} is shorter than attention.block={block}: choose one at "
            "least as long, so that every selection block holds a compressed one."
        )
    if max_seq_len < selected_block:
        raise UserError(
            f"max_seq_len={max_seq_len} is shorter than attention.selected_block={selected_block}: choose a "
            "longer context or smaller blocks."
        )
    for setting, value in (("block", block), ("selected_block", selected_block)):
        if value % stride:
            raise UserError(
                f"attention.{setting}={value} is not a multiple of attention.stride={stride}; choose one that is."
            )
    if selected_blocks < 3:
        raise UserError(
            f"attention.selected_blocks={selected_blocks}: choose at least 3, as the first block, the query's "
            "own and the one before are always selected."
        )
    if reached := whole_context(max_seq_len, {"window": window}):
        warn_once(f"{reached}: NSA's sliding branch then sees every key.")
    reach = selected_blocks * selected_block
    if reach >= max_seq_len:
        warn_once(
            f"attention.selected_blocks={selected_blocks} of {selected_block} tokens reach the whole context "
            f"of {max_seq_len} tokens: NSA's selected branch then sees every key."
        )
