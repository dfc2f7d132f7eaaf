"""Positions of keys in their documents: all that scores may depend on besides content."""

from torch import Tensor, arange

from dma_lab.kernels import Documents, document_bounds


def places(like: Tensor, document_ids: Tensor | Documents | None = None, start: int = 0) -> Tensor:
    """int64 (B, 1, N) for keys or values ``like`` (B, K, N, D), the first of all at ``start`` of its document."""
    B, _, N, _ = like.shape
    first_bn, _ = document_bounds(document_ids, B, N, like.device)
    return (arange(start, start + N, device=like.device) - first_bn)[:, None]
