"""Interval attention in plain PyTorch: the definition itself, and a block-wise form whose memory stays linear in N."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def dense_interval_attention(
    q_bhnd: Tensor, k_bknd: Tensor, v_bknd: Tensor, expiry_bkn: Tensor, bias_bkn: Tensor | None, scale: float
) -> Tensor:
    """The definition, with the whole (N, N) mask: arguments and result as in ``interval_attention``."""
    position_n = torch.arange(q_bhnd.shape[2], device=q_bhnd.device)
    return _attend(q_bhnd, k_bknd, v_bknd, bias_bkn, position_n, position_n, expiry_bkn, scale)


def blockwise_interval_attention(
    q_bhnd: Tensor,
    k_bknd: Tensor,
    v_bknd: Tensor,
    expiry_bkn: Tensor,
    bias_bkn: Tensor | None,
    scale: float,
    block: int = 512,
) -> Tensor:
    """The same, a block of queries at a time over the keys that live for any of them.

    For the queries [t0, t1) only keys with ``j < t1`` and ``expiry_j > t0`` matter: those alive at t0 and the block's
    own. They are gathered, in order, padded to the head that has most. Each block is recomputed in the backward pass,
    so that no more than one block's scores exist at a time.
    """
    N = q_bhnd.shape[2]
    out_blocks = []
    for t0 in range(0, N, block):
        t1 = min(t0 + block, N)
        index_bks = _keys_alive_in(expiry_bkn, t0, t1)
        query_n = torch.arange(t0, t1, device=q_bhnd.device)
        arguments = (q_bhnd[:, :, t0:t1], k_bknd, v_bknd, bias_bkn, query_n, index_bks, expiry_bkn, scale)
        if torch.is_grad_enabled():
            out_blocks.append(checkpoint(_gather_and_attend, *arguments, use_reentrant=False))
        else:
            out_blocks.append(_gather_and_attend(*arguments))
    return torch.cat(out_blocks, dim=2)


def _keys_alive_in(expiry_bkn: Tensor, t0: int, t1: int) -> Tensor:
    """Indices of the keys that live for some query in [t0, t1), ascending; padded with others, int64 (B, K, S)."""
    position_n = torch.arange(t1, device=expiry_bkn.device)
    alive_bkn = expiry_bkn[..., :t1] > torch.clamp(position_n, min=t0)
    most = max(1, int(alive_bkn.sum(-1).max()))
    return alive_bkn.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[..., :most]


def _gather_and_attend(
    q_bhnd: Tensor,
    k_bknd: Tensor,
    v_bknd: Tensor,
    bias_bkn: Tensor | None,
    query_n: Tensor,
    index_bks: Tensor,
    expiry_bkn: Tensor,
    scale: float,
) -> Tensor:
    k_bksd = k_bknd.gather(2, index_bks[..., None].expand(-1, -1, -1, k_bknd.shape[-1]))
    v_bksd = v_bknd.gather(2, index_bks[..., None].expand(-1, -1, -1, v_bknd.shape[-1]))
    bias_bks = None if bias_bkn is None else bias_bkn.gather(2, index_bks)
    return _attend(q_bhnd, k_bksd, v_bksd, bias_bks, query_n, index_bks, expiry_bkn.gather(2, index_bks), scale)


def _attend(
    q_bhnd: Tensor,
    k_bksd: Tensor,
    v_bksd: Tensor,
    bias_bks: Tensor | None,
    query_n: Tensor,
    key_position: Tensor,
    expiry_bks: Tensor,
    scale: float,
) -> Tensor:
    """Attention of the queries at positions ``query_n`` over the keys at ``key_position`` that live for them.

    Half precision is computed in float32: this is what the kernels are measured against.
    """
    B, H, N, D = q_bhnd.shape
    K, S = k_bksd.shape[1:3]
    dtype = torch.promote_types(q_bhnd.dtype, torch.float32)
    q, k, v = q_bhnd.to(dtype), k_bksd.to(dtype), v_bksd.to(dtype)
    logits = ((q * scale).reshape(B, K, (H // K) * N, D) @ k.mT).view(B, K, H // K, N, S)
    if bias_bks is not None:
        logits = logits + bias_bks.to(dtype)[:, :, None, None, :]
    live = (key_position[..., None, :] <= query_n[:, None]) & (query_n[:, None] < expiry_bks[..., None, :])
    live = live[:, :, None]
    # A query with no live key keeps finite logits, so that its zeros carry no NaN into the backward pass.
    logits = logits.masked_fill(~live & live.any(-1, keepdim=True), -torch.inf)
    weights = logits.softmax(dim=-1).masked_fill(~live, 0.0).reshape(B, K, (H // K) * N, S)
    return (weights @ v).view(B, H, N, -1).to(v_bksd.dtype)
