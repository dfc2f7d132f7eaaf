"""A sliding window, and every ``stride``-th token of a document in sight of all after it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dma_lab.attention import AttentionOptions, AttentionShape, PositionLifetimes
from dma_lab.settings import Count


@dataclass(frozen=True)
class AnchoredOptions(AttentionOptions):
    window: Count | None = None  # half of the context unless given; the setting `window` is that of all backends
    stride: Count = 16


class AnchoredAttention(PositionLifetimes):
    Options = AnchoredOptions
    options: AnchoredOptions

    def __init__(self, shape: AttentionShape, options: AnchoredOptions) -> None:
        window = options.window or max(1, shape.max_seq_len // 2)
        super().__init__(shape, replace(options, window=window))  # what a longer context then keeps

    def lifetime(self, place: Tensor) -> Tensor:
        return torch.where(place % self.options.stride == 0, self.max_seq_len, self.options.window)
