"""Causal attention as interval attention: a key lives until its window or its document ends. Exact, anywhere."""

import torch
from torch import Tensor

from dma_lab.kernels.causal.problem import Problem
from dma_lab.kernels.documents import Documents, document_bounds
from dma_lab.kernels.interval.attention import interval_attention


def supports(problem: Problem) -> str | None:
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    document_ids: Tensor | Documents | None,
    scale: float | None,
    bias: Tensor | None = None,
) -> Tensor:
    B, K, N, _ = k.shape
    _, end_bn = document_bounds(document_ids, B, N, k.device)
    if window is not None:
        end_bn = torch.minimum(torch.arange(N, device=k.device) + window, end_bn)
    expiry_bkn = end_bn.to(torch.int32)[:, None].expand(-1, K, -1)
    max_live = N if window is None else min(window, N)
    return interval_attention(q, k, v, expiry_bkn, bias=bias, scale=scale, max_live=max_live)
