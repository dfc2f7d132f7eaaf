"""How long each key lives when a query attends to the best-scored keys it can see.

Query ``t`` sees keys ``0..t`` of its document and attends to the ``window`` best-scored among them (DMA, arXiv
2508.02124, section 3.2). The number of visible keys ranked above key ``j`` never falls as ``t`` grows, so key ``j``
enters at query ``j`` and, once ``window`` better keys have come, leaves for ever: the N x N mask is one integer
per key.
"""

import torch
from torch import Tensor

from dma_lab.kernels.choice import choose_triton
from dma_lab.kernels.documents import Documents, check_document_ids, document_bounds


def prefix_topk_expiry(
    scores: Tensor,
    window: int,
    *,
    recent: int = 0,
    document_ids: Tensor | Documents | None = None,
    impl: str = "auto",
) -> Tensor:
    """Expiry of every key when each query keeps the ``window`` best-scored keys that it can see.

    Among equal scores the more recent key wins, so constant scores give a sliding window; NaN is above every number,
    so that it is kept, and shows. Exact and causal: the answer for queries ``<= t`` depends on scores ``<= t`` alone.

    Args:
        scores: (B, K, N), floating point.
        window: keys kept per query, at least 1.
        recent: the last ``recent`` keys (the query's own included) stay live whatever their score.
        document_ids: (B, N) integers, non-decreasing along N, or ``Documents`` made of them; a key is never seen from
            another document.
        impl: ``triton`` (kernels for CUDA; elsewhere under Triton's interpreter only), ``torch`` (plain PyTorch), or
            ``auto``: triton on CUDA, torch elsewhere. They agree exactly.

    Returns:
        int32 (B, K, N): key ``j`` is live for the queries ``j <= t < expiry_j``. A key that is never live has
        ``expiry_j = j``; one that lives to the end has N, or the end of its document.

    Raises:
        ValueError: naming the argument, when a shape, dtype or value does not fit.
    """
    _check(scores, window, recent, document_ids)
    B, K, N = scores.shape
    if choose_triton(impl, scores.device):
        return _expiry_by_triton(scores.detach(), window, recent, document_ids)
    start_bn, end_bn = document_bounds(document_ids, B, N, scores.device)
    start_rn = start_bn.repeat_interleave(K, dim=0)
    end_rn = end_bn.repeat_interleave(K, dim=0)

    rank_rn = recency_rank(scores.detach().reshape(B * K, N).contiguous())
    theta_rn = _window_threshold(rank_rn, start_rn, window)

    # Thresholds never fall within a document. Lifting each document above the one before it makes the whole row
    # sorted, so one binary search a key finds the first query whose threshold outranks it.
    lift_rn = start_rn * (N + 1)
    first_outranked = torch.searchsorted(theta_rn + 1 + lift_rn, rank_rn + 1 + lift_rn, right=True)
    position_n = torch.arange(N, device=scores.device)
    expiry_rn = torch.maximum(torch.minimum(first_outranked, end_rn), position_n)
    if recent:
        expiry_rn = torch.maximum(expiry_rn, torch.minimum(position_n + recent, end_rn))
    return expiry_rn.to(torch.int32).view(B, K, N)


def _expiry_by_triton(scores: Tensor, window: int, recent: int, document_ids: Tensor | Documents | None) -> Tensor:
    from dma_lab.kernels.selection.counting import expiry_from_scores

    B, K, N = scores.shape
    scores_rn, start_rn, end_rn = scores.reshape(B * K, N), None, None
    if document_ids is not None:
        start_rn, end_rn = (
            bound_bn.repeat_interleave(K, dim=0).to(torch.int32)
            for bound_bn in document_bounds(document_ids, B, N, scores.device)
        )
    return expiry_from_scores(scores_rn, window, recent, start_rn, end_rn).view(B, K, N)


def recency_rank(scores_rn: Tensor) -> Tensor:
    """Rank of every score in its row, 0 the lowest; of equal scores the later one ranks higher. int64 (R, N)."""
    order = scores_rn.argsort(dim=-1, stable=True)
    position_rn = torch.arange(scores_rn.shape[-1], device=scores_rn.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, position_rn)


def _window_threshold(rank_rn: Tensor, start_rn: Tensor, window: int) -> Tensor:
    """The ``window``-th largest rank among keys ``start_t..t``, for every t; -1 where there are fewer keys.

    A wavelet matrix (Claude, Navarro, Ordonez 2015) over the ranks, all N range queries descending it together: at each
    bit, high to low, a query keeps the half that holds its answer and follows it through a stable partition.
    O(N log N) per row, no sequential scan.
    """
    R, N = rank_rn.shape
    position_n = torch.arange(N, device=rank_rn.device)
    left, right = start_rn, (position_n + 1).expand(R, N)
    has_fewer = right - left < window
    to_skip = torch.full_like(rank_rn, window - 1)
    theta_rn = torch.zeros_like(rank_rn)
    for level in reversed(range(max(1, (N - 1).bit_length()))):
        bit = (rank_rn >> level) & 1
        ones_before = torch.nn.functional.pad(bit.cumsum(-1), (1, 0))
        zeros_in_row = N - ones_before[:, -1:]
        ones_left, ones_right = ones_before.gather(1, left), ones_before.gather(1, right)
        ones_in_range = ones_right - ones_left
        go_high = to_skip < ones_in_range
        left = torch.where(go_high, zeros_in_row + ones_left, left - ones_left)
        right = torch.where(go_high, zeros_in_row + ones_right, right - ones_right)
        to_skip = torch.where(go_high, to_skip, to_skip - ones_in_range)
        theta_rn += go_high.long() << level
        ones_before = ones_before[:, :-1]
        destination = torch.where(bit == 1, zeros_in_row + ones_before, position_n - ones_before)
        rank_rn = torch.empty_like(rank_rn).scatter_(1, destination, rank_rn)
    return theta_rn.masked_fill(has_fewer, -1)


def _check(scores: Tensor, window: int, recent: int, document_ids: Tensor | Documents | None) -> None:
    if scores.ndim != 3 or not scores.is_floating_point() or scores.numel() == 0:
        raise ValueError(f"scores must be a non-empty floating tensor (B, K, N), not {_describe(scores)}.")
    if scores.shape[2] >= 2**31:
        raise ValueError(f"scores has N={scores.shape[2]}: positions must stay below 2^31.")
    if window < 1:
        raise ValueError(f"window={window}: a query must keep at least 1 key.")
    if recent < 0:
        raise ValueError(f"recent={recent}: the number of always-kept recent keys must be 0 or more.")
    if document_ids is not None:
        check_document_ids(document_ids, scores.shape[0], scores.shape[2])


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
