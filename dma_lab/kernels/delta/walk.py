"""From chunk to chunk of the gated delta rule: the one part of it that is sequential.

x are chunks and n their tokens, g the heads of values that a head of keys serves.
"""

from typing import Any

import torch
from torch import Tensor


def walk_chunks(value: Tensor, takes: Tensor, keys: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    """The state before every chunk, and what every token puts in.

    Args:
        value: (B, K, g, x, n, E), what a token would put into an empty state.
        takes: (B, K, g, x, n, D), by which it reads what is to be taken off that.
        keys: (B, K, g, x, n, D), under which it is put, faded to the chunk's end.
        passed: (B, K, g, x, 1, 1), the share of a state that a chunk passes on.

    Returns:
        (B, K, g, x, D, E), the first ones zero, and (B, K, g, x, n, E).
    """
    state = value.new_zeros(*value.shape[:3], takes.shape[-1], value.shape[-1])
    states, puts = [], []
    for x in range(value.shape[3]):
        states.append(state)
        puts.append(value[:, :, :, x] - takes[:, :, :, x] @ state)
        state = passed[:, :, :, x] * state + keys[:, :, :, x].mT @ puts[-1]
    return torch.stack(states, dim=3), torch.stack(puts, dim=3)


@torch.library.custom_op("dma_lab::walk_chunks", mutates_args=())
def walk_chunks_apart(value: Tensor, takes: Tensor, keys: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    """``walk_chunks`` as one operator: a compiler would unroll the loop, and compile for minutes."""
    return walk_chunks(value, takes, keys, passed)


@walk_chunks_apart.register_fake
def _(value: Tensor, takes: Tensor, keys: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    return value.new_empty(*value.shape[:4], takes.shape[-1], value.shape[-1]), value.new_empty(value.shape)


@torch.library.custom_op("dma_lab::walk_chunks_backward", mutates_args=())
def _walk_back(
    d_states: Tensor, d_puts: Tensor, states: Tensor, puts: Tensor, takes: Tensor, keys: Tensor, passed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, takes, keys and passed."""
    d_state = torch.zeros_like(states[:, :, :, 0])
    d_after, d_value = [], []
    for x in reversed(range(states.shape[3])):
        d_after.append(d_state)  # of the state that the chunk leaves
        d_value.append(d_puts[:, :, :, x] + keys[:, :, :, x] @ d_state)
        d_state = d_states[:, :, :, x] + passed[:, :, :, x] * d_state - takes[:, :, :, x].mT @ d_value[-1]
    after, values = (torch.stack(each[::-1], dim=3) for each in (d_after, d_value))
    return values, -values @ states.mT, puts @ after.mT, (after * states).sum((-2, -1), keepdim=True)


@_walk_back.register_fake
def _(
    d_states: Tensor, d_puts: Tensor, states: Tensor, puts: Tensor, takes: Tensor, keys: Tensor, passed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        puts.new_empty(puts.shape), takes.new_empty(takes.shape), keys.new_empty(keys.shape),
        passed.new_empty(passed.shape),
    )  # fmt: skip


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    _, takes, keys, passed = inputs
    ctx.save_for_backward(*output, takes, keys, passed)


def _backward(ctx: Any, d_states: Tensor, d_puts: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = _walk_back(d_states, d_puts, *ctx.saved_tensors)
    return gradients


walk_chunks_apart.register_autograd(_backward, setup_context=_save_for_backward)
