"""Other packages' attention on the inputs that ours is measured with, where the packages are installed.

Constant scores are a sliding window, which flash-attn and fla-core have kernels for. flash-dmattn is the package of
DMA's authors: CUDA kernels that take a mask as booleans and leave out the tiles of it that are empty. It is given two:
the mask that lifetimes stand for, N x N, whose making is not counted, and the one that its own ``create_mask`` makes of
a score per key: the ``window`` best keys of the whole sequence for every query, a choice that knows later tokens.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dma_lab.benchmarks.timing import forward_and_total, milliseconds
from dma_lab.kernels import interval_attention
from dma_lab.kernels.causal.attention import IMPLEMENTATIONS
from dma_lab.kernels.causal.problem import Problem
from dma_lab.messages import warn_once

Attend = Callable[..., Tensor]

_MASK_UP_TO = 32_768  # tokens; beyond, seconds would go into what takes 20 times as long
_MASK_SHARE = 4  # a mask may take this part of the card's memory; of a byte an entry, 16 heads' is 16 GiB there


def packages_beside(
    kind: str, q: Tensor, k: Tensor, v: Tensor, scores: Tensor, expiry: Tensor, window: int, d_out: Tensor
) -> list[dict[str, Any]]:
    """What each installed package takes for q, d_out (1, H, N, D), k, v (1, K, N, D), scores and expiry (1, K, N).

    A row holds ``package``, ``mask`` (which it attends under), ``forward`` and ``total`` in milliseconds, and, where
    the mask is ours, how far it ``differs`` from ours. The total is forward, backward and the package's own choice of
    keys, if it has made one.
    """
    rows: list[dict[str, Any]] = []
    N, bias = q.shape[2], scores.to(q.dtype)

    def add(package: str, mask: str, attend: Attend, *others: Tensor) -> dict[str, Any]:
        inputs = (q, k, v, *others)
        rows.append({"package": package, "mask": mask, **forward_and_total(attend, inputs, d_out)})
        return rows[-1]

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return interval_attention(q, k, v, expiry, bias=None if bias is None else bias.float(), max_live=window)

    if kind == "constant":
        windowed = packages_that_attend(Problem.of(q, k, v, window=window))
        if _installed("fla"):
            windowed["fla-core"] = fla_attention
        for package, function in windowed.items():
            attend = partial(function, window=window)
            add(package, "a window", attend)["differs"] = differences(attend, ours, (q, k, v), d_out)
    if _installed("flash_dmattn") and N <= _MASK_UP_TO:
        from flash_dmattn import CUDA_AVAILABLE
        from flash_dmattn.utils.mask import create_mask

        if not CUDA_AVAILABLE:
            warn_once("flash-dmattn is installed without its CUDA kernels, so it is not measured.")
            return rows
        if expiry.numel() * N > torch.cuda.get_device_properties(q.device).total_memory / _MASK_SHARE:
            warn_once(f"flash-dmattn is not measured at {N:,} tokens: its mask would fill over a quarter of the GPU.")
            return rows
        attend = partial(authors_attention, mask=lifetimes_mask(expiry))
        row = add("flash-dmattn", "of lifetimes", attend, bias)
        row["differs"] = differences(attend, ours, (q, k, v, bias), d_out)
        lowest = torch.finfo(bias.dtype).min
        choose = partial(create_mask, bias[:, :, None], None, 1, N, N, min(window, N), lowest)
        row = add("flash-dmattn", "its own", partial(authors_attention, mask=choose()), bias)
        row["total"] += milliseconds(choose)
    return rows


def packages_that_attend(problem: Problem) -> dict[str, Attend]:
    """The flash-attn packages that are installed and support ``problem``, by name: functions of q, k, v and window."""

    def function(attend: Attend) -> Attend:
        return lambda q, k, v, window=None: attend(q, k, v, window, None, None)

    flash = (each for each in IMPLEMENTATIONS if each.name.startswith("flash-attn"))
    return {each.name: function(each.attend) for each in flash if each.supports(problem) is None}


def differences(attend: Attend, ours: Attend, inputs: Sequence[Tensor], d_out: Tensor) -> dict[str, float | None]:
    """How far ``attend(*inputs)`` is from ``ours(*inputs)``: norms of differences of output and gradients over ours, by
    name; None where one is not finite. ``inputs`` are q, k, v and, if there is one, the bias.
    """
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]

    def with_gradients(function: Attend) -> tuple[Tensor, ...]:
        out = function(*inputs)
        return out, *torch.autograd.grad(out, inputs, d_out)

    found: dict[str, float | None] = {}
    both = with_gradients(attend), with_gradients(ours)
    for name, theirs, mine in zip(("out", "dq", "dk", "dv", "dbias"), *both, strict=False):
        difference = ((theirs.float() - mine.float()).norm() / mine.float().norm()).item()
        found[name] = difference if math.isfinite(difference) else None
    return found


def fla_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """fla-core's attention over the last ``window`` keys: (B, H, N, D) for q of that shape and k, v (B, K, N, D)."""
    from fla.ops.attn import parallel_attn

    q_bnhd, k_bnkd, v_bnkd = (tensor.transpose(1, 2) for tensor in (q, k, v))
    out: Tensor = parallel_attn(q_bnhd, k_bnkd, v_bnkd, window_size=window)
    return out.transpose(1, 2)


def authors_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """flash-dmattn's causal attention under ``mask`` (B, K, N or 1, N) with ``bias`` (B, K, N) of q's dtype."""
    from flash_dmattn import flash_dmattn_func

    q_bnhd, k_bnkd, v_bnkd = (tensor.transpose(1, 2) for tensor in (q, k, v))
    out: Tensor = flash_dmattn_func(q_bnhd, k_bnkd, v_bnkd, attn_mask=mask, attn_bias=bias[:, :, None], is_causal=True)
    return out.transpose(1, 2)


def lifetimes_mask(expiry: Tensor) -> Tensor:
    """(B, K, N, N) booleans for expiry (B, K, N): whether key j lives at query t. A head at a time, for its memory."""
    B, K, N = expiry.shape
    t = torch.arange(N, device=expiry.device)
    mask = torch.empty(B, K, N, N, dtype=torch.bool, device=expiry.device)
    for alive, expiry_n in zip(mask.flatten(0, 1), expiry.flatten(0, 1), strict=True):
        torch.logical_and(t <= t[:, None], t[:, None] < expiry_n, out=alive)
    return mask


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
