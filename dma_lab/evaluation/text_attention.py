"""What a trained model attends to in a text: every head's weights, and how long each of its keys stays."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dma_lab.attention.dma import DynamicMaskAttention
from dma_lab.attention.mha import MultiHeadAttention
from dma_lab.attention.places import places
from dma_lab.attention.swa import SlidingWindowAttention
from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.messages import UserError

_OF_LIFETIMES = (MultiHeadAttention, SlidingWindowAttention, DynamicMaskAttention)


@dataclass(frozen=True)
class TextAttention:
    """Attention within one text of N tokens, by layer (L) and head (H query heads, K key/value heads)."""

    tokens: list[str]
    """The text's pieces, the end-of-text token that stands before every document first."""
    weights_lhtj: NDArray[np.float32]
    """(L, H, N, N): query t's share of attention to key j. Rows sum to 1; 0 where the key does not live."""
    expiry_lkj: NDArray[np.int32]
    """(L, K, N): key j is seen by the queries j <= t < expiry."""


@torch.no_grad()
def text_attention(run: TrainedRun, text: str) -> TextAttention:
    """Read ``text`` with the run's model, in float32.

    Raises:
        UserError: a layer's attention is not made of keys' lifetimes (mha, swa, dma and their variants are), the text
            is longer than the training context, or the run's tokenizer is gone.
    """
    model, tokenizer = run.model(), run.data.load_tokenizer()
    ids = [run.data.eot_id, *tokenizer.encode(text, add_special_tokens=False).ids]
    if len(ids) > run.context:
        raise UserError(
            f"The text has {len(ids)} tokens, its end-of-text token included, and {run.path.name} was trained on "
            f"{run.context}: give a shorter one."
        )
    found: list[tuple[Tensor, Tensor]] = []

    def note(attention: nn.Module, arguments: tuple[Tensor, None]) -> None:
        if not isinstance(attention, _OF_LIFETIMES):
            raise UserError(
                f"{run.path.name} attends by {run.summary.attention}: this reads mha, swa, dma and their variants, "
                "in which a key is seen by one run of queries."
            )
        found.append(layer_attention(attention, arguments[0]))

    for block in model.blocks:
        block.attention.register_forward_pre_hook(note)
    model(torch.tensor([ids]))
    weights, expiry = (torch.cat(layers).numpy() for layers in zip(*found, strict=True))
    return TextAttention(
        [_shown(tokenizer.decode([token], skip_special_tokens=False)) for token in ids], weights, expiry
    )


def layer_attention(
    attention: MultiHeadAttention | SlidingWindowAttention | DynamicMaskAttention, x: Tensor
) -> tuple[Tensor, Tensor]:
    """A layer's weights (B, H, N, N) and expiries int32 (B, K, N) over x (B, N, M), each row one document.

    All N² of them, by definition: for texts that one can look at.
    """
    q, k, v = attention.heads(x)
    B, K, N, D = k.shape
    bias = None if attention.recency is None else attention.recency(places(k))
    j_n = torch.arange(N, device=x.device)
    if isinstance(attention, DynamicMaskAttention):
        score = attention.scores(v)
        expiry = attention.lifetimes(score)
        bias = score if attention.chance is None else bias
    else:
        window, sinks = (attention.window, attention.sinks) if isinstance(attention, SlidingWindowAttention) else (N, 0)
        expiry_n = torch.where(j_n < sinks, N, (j_n + window).clamp(max=N))
        expiry = expiry_n.to(torch.int32).expand(B, K, N)
    q = q.unflatten(1, (K, -1))  # (B, K, heads that share a key, N, D)
    logits = q @ k[:, :, None].mT * D**-0.5
    if bias is not None:
        logits = logits + bias[:, :, None, None]
    t_n1 = j_n[:, None]
    live = (j_n <= t_n1) & (t_n1 < expiry[:, :, None, None])
    return logits.masked_fill(~live, -torch.inf).softmax(-1).flatten(1, 2), expiry


def _shown(piece: str) -> str:
    return piece.replace("\n", "↵").replace("\t", "→").replace(" ", "·")
