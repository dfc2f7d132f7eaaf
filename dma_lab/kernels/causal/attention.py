"""``causal_attention`` and the table of what can compute it, fastest first."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dma_lab.kernels.causal import flash2, flash4, interval, sdpa
from dma_lab.kernels.causal.flash_operator import flash_attention
from dma_lab.kernels.causal.problem import Problem
from dma_lab.kernels.choice import note_kernel
from dma_lab.kernels.documents import Documents
from dma_lab.messages import constant_in_graphs, print_once


class Implementation(NamedTuple):
    """One way to compute causal attention."""

    name: str
    supports: Callable[[Problem], str | None]
    """Why it cannot do a problem, or None where it can."""
    attend: Callable[[Tensor, Tensor, Tensor, int | None, Tensor | Documents | None, float | None], Tensor]
    """q, k, v, window, document_ids and scale, as ``causal_attention`` takes them."""


# Fastest first (docs/backends.md); the last does everything, anywhere.
IMPLEMENTATIONS = (
    Implementation("flash-attn 4", flash4.supports, functools.partial(flash_attention, version=4)),
    Implementation("cuDNN", sdpa.cudnn_supports, sdpa.cudnn_attend),
    Implementation("flash-attn 2", flash2.supports, functools.partial(flash_attention, version=2)),
    Implementation("PyTorch's SDPA", sdpa.supports, sdpa.attend),
    Implementation("interval attention", interval.supports, interval.attend),
)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    document_ids: Tensor | Documents | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    sinks: int = 0,
) -> Tensor:
    """Softmax attention of every query over the keys of its document at or before it, the last ``window`` of them and
    the first ``sinks``.

    Differentiable in q, k, v and bias. Query head ``h`` reads key/value head ``h // (H / K)``. What computes it is the
    first of ``IMPLEMENTATIONS`` that supports it; on CUDA a line on stderr says once which, and why not those before.

    Args:
        q: (B, H, N, D), floating point.
        k: (B, K, N, D), of q's dtype; K divides H.
        v: (B, K, N, E), of q's dtype.
        window: keys that a query sees, its own included; all by default.
        document_ids: (B, N) integers, non-decreasing along N, or ``Documents`` made of them.
        scale: multiplies q . k; D ** -0.5 unless given.
        bias: float (B, K, N), added to the logits of its key. Interval attention alone takes one.
        sinks: keys at a document's beginning that its queries see whatever the window. Interval attention alone has
            them.

    Returns:
        (B, H, N, E). Backward passes of the flash-attn packages and of PyTorch's SDPA may add up in no fixed order,
        unless PyTorch's deterministic algorithms are on.

    Raises:
        ValueError: naming the argument, when a shape or value does not fit.
    """
    _check(q, k, v, window)
    if bias is not None or sinks:
        return interval.attend(q, k, v, window, document_ids, scale, bias, sinks)
    # Branches, because under torch.compile a comparison with a length may have no value until it is branched on.
    single = whole = True
    if q.shape[2] > 1:
        single = False
    if window is not None and window < q.shape[2]:
        whole = False
    shape = q.shape[1], k.shape[1], q.shape[3], v.shape[3]
    deterministic = torch.are_deterministic_algorithms_enabled()
    packed = document_ids is not None
    index = _choose(q.device.type, q.device.index, q.dtype, *shape, single, window, whole, packed, deterministic)
    return IMPLEMENTATIONS[index].attend(q, k, v, window, document_ids, scale)


def which(problem: Problem) -> tuple[int, dict[str, str]]:
    """Place in ``IMPLEMENTATIONS`` of what runs for ``problem``, and why those before it do not, by name."""
    reasons: dict[str, str] = {}
    for index, implementation in enumerate(IMPLEMENTATIONS):
        reason = implementation.supports(problem)
        if reason is None:
            return index, reasons
        reasons[implementation.name] = reason
    raise AssertionError("the last implementation supports everything")


@constant_in_graphs
def _choose(device: str, device_index: int | None, dtype: torch.dtype, *asked: object) -> int:
    """``which``, for a compiler a constant of the shapes."""
    index = _choice(device, device_index, dtype, *asked)
    if IMPLEMENTATIONS[index].name != "interval attention":  # which notes its own kernels
        note_kernel(IMPLEMENTATIONS[index].name)
    return index


@functools.cache
def _choice(device: str, device_index: int | None, dtype: torch.dtype, *asked: object) -> int:
    on_cuda = device == "cuda"
    capability = torch.cuda.get_device_capability(device_index) if on_cuda else (0, 0)
    problem = Problem(device, capability, dtype, *asked)  # type: ignore[arg-type]
    index, reasons = which(problem)
    if on_cuda:
        passed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        why = f" (not on {passed})" if passed else ""
        print_once(f"causal attention of {problem} runs on {IMPLEMENTATIONS[index].name}{why}.")
    return index


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(
            f"q, k and v must have four dimensions, not {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}."
        )
    B, H, N, D = q.shape
    K = k.shape[1]
    if k.shape != (B, K, N, D) or K == 0 or H % K:
        raise ValueError(f"k must have shape ({B}, K, {N}, {D}), K a divisor of {H}, not {tuple(k.shape)}.")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must have shape ({B}, {K}, {N}, E) to go with k, not {tuple(v.shape)}.")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a query must see at least 1 key.")
