"""Random scores: which keys DMA would keep if content did not matter."""

import torch
from torch import Tensor, nn

_WORD = 2**32 - 1


class ChanceScores(nn.Module):
    """A number in [0, 1) per key, made of its head's stream and its place in its document and of nothing else.

    So it is the same in training and decoding and whatever else lies in the batch. The streams come from the model's
    seed (``draw``), another for every layer and head, and are saved with the weights.
    """

    stream_k: Tensor

    def __init__(self, n_kv_heads: int) -> None:
        super().__init__()
        self.register_buffer("stream_k", torch.arange(n_kv_heads))

    def draw(self, generator: torch.Generator) -> None:
        """New streams."""
        self.stream_k.copy_(torch.randint(_WORD, self.stream_k.shape, generator=generator))

    def forward(self, place_b1n: Tensor) -> Tensor:
        """int64 (B, 1, N), where keys stand in their documents -> float32 (B, K, N)."""
        word_bkn = _mixed(_mixed(place_b1n) ^ _mixed(self.stream_k)[:, None])
        return (word_bkn >> 8).to(torch.float32) / 2**24


def _mixed(word: Tensor) -> Tensor:
    """32 bits in an int64, of which every one depends on all of the argument's: xor-shifts and products, as in the
    finaliser of MurmurHash3 (Appleby 2011), with factors below 2^31, for which no product overflows.
    """
    word = (word ^ (word >> 16)) * 0x21F0AAAD & _WORD
    word = (word ^ (word >> 15)) * 0x735A2D97 & _WORD
    return word ^ (word >> 15)
