"""transformers' Doge on our kernels: ``register()``, and then ``attn_implementation="dma_lab"``, forward and backward.

Importing this needs transformers. Of its Doge it computes all but attention: projections, norms, RoPE, scores, cache.
An attention function is all that transformers lets others register, and what it gives to one is the N x N mask that it
has made of scores. So one method of its class is wrapped: where this implementation is chosen, ``prepare_dynamic_mask``
hands on the scores as they are.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.doge.modeling_doge import DogeAttention

from dma_lab.kernels import interval_attention, interval_attention_decode, prefix_topk_expiry
from dma_lab.kernels.decode.cache import EMPTY
from dma_lab.messages import UserError

NAME = "dma_lab"


def register() -> None:
    """Make ``attn_implementation="dma_lab"`` known to transformers; once or more often.

    Doge models take it, in ``from_pretrained`` or ``set_attn_implementation``: any dtype, texts padded on either side
    or packed by position ids, ``generate`` with its default cache. What it does not do is refused with ``UserError``:
    other models, dropout, sliding windows, masks of four dimensions, static caches, gaps in a text, prompts in parts.
    """
    AttentionInterface.register(NAME, doge_attention)
    AttentionMaskInterface.register(NAME, document_rows)
    original = DogeAttention.prepare_dynamic_mask
    if not hasattr(original, "__wrapped__"):
        DogeAttention.prepare_dynamic_mask = _handing_on_scores(original)  # type: ignore[method-assign]


def document_rows(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    *,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor:
    """In place of a mask: bool (B, kv_length), whether a key begins another document than the key before it.

    Padding is a document of its own, beside which a row's text must be in one piece.
    """
    if kv_offset or q_offset + q_length != kv_length:
        raise UserError(
            f'attn_implementation="{NAME}" got {kv_length} keys for {q_length} queries after {int(q_offset)}: use '
            "DynamicCache, which holds all keys so far and no others."
        )
    opens = torch.zeros(batch_size, kv_length, dtype=torch.bool, device=device)
    if q_length == kv_length > 1:
        row_b1, t = torch.arange(batch_size, device=device)[:, None], torch.arange(1, kv_length, device=device)[None]
        opens[:, 1:] = ~mask_function(row_b1, 0, t, t - 1)
    if attention_mask is not None:
        text = attention_mask.to(torch.bool)
        begins = text.clone()
        begins[:, 1:] &= ~text[:, :-1]
        if (begins.sum(-1) > 1).any():
            raise UserError(
                f'attention_mask has padding within a text, which attn_implementation="{NAME}" does not take: pad on '
                "one side."
            )
        opens[:, 1:] |= text[:, 1:] != text[:, :-1]
    return opens


def _handing_on_scores(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def prepare_dynamic_mask(
        self: Any,
        hidden_states: Tensor,
        dt_states: Tensor,
        keep_window_size: int = 2048,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """With our implementation (B, K, 2, N): scores, and 1 where a document begins."""
        if self.config._attn_implementation != NAME:
            return original(self, hidden_states, dt_states, keep_window_size, attention_mask)
        if attention_mask is None or attention_mask.ndim != 2:
            raise UserError(f'attn_implementation="{NAME}" takes an attention_mask of shape (batch, tokens) or none.')
        return torch.stack((dt_states, attention_mask[:, None].expand_as(dt_states).to(dt_states.dtype)), dim=2)

    return prepare_dynamic_mask


def doge_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (B, H, N, D), key and value (B, K, S, D), ``attention_mask`` as ``prepare_dynamic_mask`` hands it on, by
    query heads -> (B, N, H, D), and no weights. N is S, or 1 while decoding.
    """
    if not isinstance(module, DogeAttention) or attention_mask is None:
        raise UserError(f'attn_implementation="{NAME}" is for Doge models, not {type(module).__name__}: use sdpa.')
    if dropout:
        raise UserError(f'attn_implementation="{NAME}" has no dropout: set attention_dropout=0 (it is {dropout}).')
    if module.config.sliding_window is not None:
        raise UserError(f'attn_implementation="{NAME}" has no sliding_window (it is {module.config.sliding_window}).')
    N, S, window = query.shape[2], key.shape[2], module.keep_window_size
    if N not in (1, S):
        raise UserError(f'attn_implementation="{NAME}" takes a prompt at once, not {N} tokens after {S - N}: use sdpa.')
    rows = attention_mask[:, :: module.num_key_value_groups]
    score_bks, ids_bs = rows[:, :, 0], rows[:, 0, 1].long().cumsum(-1)
    expiry_bks = prefix_topk_expiry(score_bks, window, document_ids=ids_bs)
    if N == S:
        out = interval_attention(query, key, value, expiry_bks, bias=score_bks, scale=scaling, max_live=window)
    else:
        position_s = torch.arange(S, dtype=torch.int32, device=key.device)
        held_bks = torch.where(expiry_bks == S, position_s, EMPTY)
        out = interval_attention_decode(query, key, value, held_bks, bias=score_bks, scale=scaling)
    return out.transpose(1, 2).contiguous(), None
