"""The gated delta rule by fla-core's Triton kernels (github.com/fla-org/flash-linear-attention), as one operator of
PyTorch's: autograd, and shapes for torch.compile. Nothing in it waits for the GPU, so a graph can hold it.
"""

import functools
import importlib
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from dma_lab.kernels.causal.problem import not_importable
from dma_lab.messages import constant_in_graphs

_MODULE = "fla.ops.gated_delta_rule.chunk"
_FORGET = -128.0
"""A logarithm of decay whose exponential is 0 in float32, and small enough for sums of some in a chunk."""


def unsupported(v: Tensor, D: int) -> str | None:
    """Why the kernels do not take values like ``v`` (B, N, H, E) and keys of width D, if they do not."""
    if v.dtype not in (torch.bfloat16, torch.float16):
        return f"they take bfloat16 and float16, not {str(v.dtype).removeprefix('torch.')}"
    if any(width % 16 or width > 256 for width in (D, v.shape[-1])):
        return f"they are used for head dims that are multiples of 16 up to 256, not {D} and {v.shape[-1]}"
    return _missing(torch.cuda.get_device_capability(v.device)[0])


@constant_in_graphs
def _missing(capability: int) -> str | None:
    return _looked_up(capability)


@functools.cache
def _looked_up(capability: int) -> str | None:
    if (reason := not_importable(_MODULE)) is not None:
        return f"fla-core is {reason}" if reason == "not installed" else f"fla-core: {reason}"
    if (fla := _numbers("fla")) < (0, 6):
        return f"fla-core {'.'.join(map(str, fla))} is installed, and they are known from 0.6 on"
    if capability == 9 and (3, 4) <= (triton := _numbers("triton")) < (3, 7, 1) and find_spec("tilelang") is None:
        return (
            f"on Hopper fla-core refuses Triton {'.'.join(map(str, triton))}, from 3.4 to 3.7.0 all, without the "
            "package tilelang"
        )
    return None


def _numbers(package: str) -> tuple[int, ...]:
    version = importlib.import_module(package).__version__
    return tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, start_bn: Tensor | None
) -> Tensor:
    """As ``rule.gated_delta_rule`` has it; ``start_bn`` is where each token's document begins.

    A document's first token forgets everything: given as offsets, documents would cost the host a look at them.
    """
    log_decay, beta = log_decay.float(), beta.float()
    if start_bn is not None:
        position_n = torch.arange(v.shape[1], device=v.device)
        opens_bn = (start_bn == position_n) & (position_n > 0)
        log_decay = log_decay.masked_fill(opens_bn[..., None], _FORGET)
    out: Tensor = _forward(*(each.contiguous() for each in (q.to(v.dtype), k.to(v.dtype), v, log_decay, beta)))[0]
    return out


@torch.library.custom_op("dma_lab::gated_delta_rule", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The answers; and for the backward pass the fade since a chunk began, and the solved systems of all chunks."""
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_fwd

    with torch.cuda.device_of(v):
        fade, out, solved, *_ = chunk_gated_delta_rule_fwd(
            q=q, k=k, v=v, g=log_decay, beta=beta, scale=q.shape[-1] ** -0.5, initial_state=None,
            output_final_state=False,
        )  # fmt: skip
    return out, fade, solved


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(v), torch.empty_like(log_decay), k.new_empty(*v.shape[:3], 64)


@torch.library.custom_op("dma_lab::gated_delta_rule_backward", mutates_args=())
def _backward_pass(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, fade: Tensor, beta: Tensor, solved: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule_bwd

    with torch.cuda.device_of(v):
        dq, dk, dv, d_beta, d_decay, *_ = chunk_gated_delta_rule_bwd(
            q=q, k=k, v=v, g=fade, beta=beta, A=solved, scale=q.shape[-1] ** -0.5, initial_state=None,
            do=d_out.contiguous(), dht=None,
        )  # fmt: skip
    return dq.to(q), dk.to(k), dv.to(v), d_decay.to(fade), d_beta.to(beta)


@_backward_pass.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, fade: Tensor, beta: Tensor, solved: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = torch.empty_like
    return like(q), like(k), like(v), like(fade), like(beta)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, beta = inputs
    _, fade, solved = output
    ctx.save_for_backward(q, k, v, fade, beta, solved)
    ctx.mark_non_differentiable(fade, solved)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor, _d_fade: Tensor, _d_solved: Tensor) -> tuple[Tensor, ...]:
    return _backward_pass(d_out, *ctx.saved_tensors)


_forward.register_autograd(_backward, setup_context=_save_for_backward)
