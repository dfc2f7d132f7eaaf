"""Attention in which every key is seen by one run of consecutive queries."""

import torch
from torch import Tensor

from dma_lab.kernels.choice import choose_triton, note_kernel
from dma_lab.kernels.interval.reference import blockwise_interval_attention, dense_interval_attention

# Above this length the (N, N) mask of the dense reference costs more than the block-wise gathers.
_DENSE_MAX_SEQ_LEN = 2048
_LARGEST_HEAD_DIM = 256  # of the Triton kernels


def interval_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    expiry: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    max_live: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """Softmax attention of query ``t`` over the keys ``{j : j <= t < expiry_j}``.

    ``out_t = sum_j softmax_j(scale * q_t . k_j + bias_j) v_j``, differentiable in q, k, v and bias. Query head ``h``
    reads key/value head ``h // (H / K)``.

    Args:
        q: (B, H, N, D), floating point.
        k: (B, K, N, D), of q's dtype; K divides H.
        v: (B, K, N, D_v), of q's dtype.
        expiry: int32 (B, K, N), ``j <= expiry_j <= N`` (``prefix_topk_expiry`` makes one).
        bias: float (B, K, N), added to the logits of its key.
        scale: multiplies q . k; D ** -0.5 unless given.
        max_live: an upper bound on the keys that any query sees: window + recent after ``prefix_topk_expiry``. The
            kernels size their key lists by it; without it they count, which waits for the device. Too small a bound
            gives NaN, never a wrong number.
        impl: ``triton`` (kernels for CUDA; elsewhere under Triton's interpreter only), ``torch`` (plain PyTorch: dense
            for short sequences, block-wise above, where memory grows with N times the number of keys alive at once and
            never with N squared), or ``auto``: triton on CUDA, torch elsewhere. Both are deterministic.

    Returns:
        (B, H, N, D_v) in v's dtype. A query for which no key is live gets zeros.

    Raises:
        ValueError: naming the argument, when a shape, dtype or device does not fit.
    """
    _check(q, k, v, expiry, bias, max_live)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if choose_triton(impl, q.device, _unsupported(q, v)):
        from dma_lab.kernels.interval.operator import interval_attention_triton

        return interval_attention_triton(q, k, v, expiry, bias, scale, max_live)[0]
    note_kernel("interval attention (PyTorch)")
    if q.shape[2] <= _DENSE_MAX_SEQ_LEN:
        return dense_interval_attention(q, k, v, expiry, bias, scale)
    return blockwise_interval_attention(q, k, v, expiry, bias, scale)


def _unsupported(q: Tensor, v: Tensor) -> str | None:
    """Why the kernels do not support these inputs, if they do not."""
    if q.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"q is {q.dtype}; they take bfloat16, float16 and float32"
    if max(q.shape[-1], v.shape[-1]) > _LARGEST_HEAD_DIM:
        return f"q and v have head dims {q.shape[-1]} and {v.shape[-1]}; they take up to {_LARGEST_HEAD_DIM}"
    if q.shape[0] * q.shape[1] > 65_535:
        return f"q has {q.shape[0]} x {q.shape[1]} batch entries and heads; they take up to 65535"
    return None


def _check(q: Tensor, k: Tensor, v: Tensor, expiry: Tensor, bias: Tensor | None, max_live: int | None) -> None:
    if q.ndim != 4 or not q.is_floating_point():
        raise ValueError(f"q must be a floating tensor (B, H, N, D), not {q.dtype} of shape {tuple(q.shape)}.")
    B, H, N, D = q.shape
    if q.numel() == 0 or N >= 2**31:
        raise ValueError(f"q has shape {tuple(q.shape)}: it must not be empty, and N must be below 2^31.")
    if k.ndim != 4 or (k.shape[0], k.shape[2], k.shape[3]) != (B, N, D):
        raise ValueError(f"k must have shape ({B}, K, {N}, {D}) to go with q, not {tuple(k.shape)}.")
    K = k.shape[1]
    if K == 0 or H % K:
        raise ValueError(f"k has {K} heads, which do not divide q's {H}.")
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must have shape ({B}, {K}, {N}, D_v) to go with k, not {tuple(v.shape)}.")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name} is {tensor.dtype} and q is {q.dtype}: give both the same dtype.")
    if expiry.shape != (B, K, N) or expiry.dtype != torch.int32:
        raise ValueError(f"expiry must be int32 ({B}, {K}, {N}), not {expiry.dtype} {tuple(expiry.shape)}.")
    if bias is not None and (bias.shape != (B, K, N) or not bias.is_floating_point()):
        raise ValueError(f"bias must be floating ({B}, {K}, {N}), not {bias.dtype} {tuple(bias.shape)}.")
    others: dict[str, Tensor | None] = {"k": k, "v": v, "expiry": expiry, "bias": bias}
    for name, other in others.items():
        if other is not None and other.device != q.device:
            raise ValueError(f"{name} is on {other.device} and q on {q.device}: move them to one device.")
    if max_live is not None and max_live < 1:
        raise ValueError(f"max_live={max_live}: a bound on the keys that a query sees must be at least 1.")
