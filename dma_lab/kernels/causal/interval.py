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
    sinks: int = 0,
) -> Tensor:
    B, K, N, _ = k.shape
    start_bn, end_bn = document_bounds(document_ids, B, N, k.device)
    if window is not None:
        j_n = torch.arange(N, device=k.device)
        window_bn = torch.minimum(j_n + window, end_bn)
        end_bn = torch.where(j_n - start_bn < sinks, end_bn, window_bn) if sinks else window_bn
    expiry_bkn = end_bn.to(torch.int32)[:, None].expand(-1, K, -1)
    max_live = N if window is None else min(window + sinks, N)
    return interval_attention(q, k, v, expiry_bkn, bias=bias, scale=scale, max_live=max_live)
