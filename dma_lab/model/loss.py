"""Output head and cross-entropy in one, a chunk of tokens at a time: the logits of a whole micro-batch never exist.

In float32 they are the largest tensor of a training step, and softmax, its backward pass and the casts between go over
them again and again. Of a chunk the logits, its loss and at once the gradients are made, and then they are dropped.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100
"""A target that is not scored."""
_CHUNK_BYTES = 2**30
"""Of a chunk's logits in float32. A small vocabulary's are one chunk; of 32,768 tokens it takes 8,192 rows."""


class LinearCrossEntropy(nn.Module):
    """The mean cross-entropy of ``x @ weight.T`` in nats, with the gradients of both made in the forward pass.

    Products are in autocast's dtype, softmax and sums in float32 (or wider, if ``x`` is), in a fixed order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of_rows: _OfRows = loss_of_rows

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As ``nn.Module.compile``, of what is done with a chunk."""
        self._of_rows = torch.compile(loss_of_rows, *args, **kwargs)

    def forward(self, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Features (..., M), weight (V, M), int64 targets (...) of which -100 are not scored -> scalar.

        Of targets that are all ignored the mean is not a number, as PyTorch's is.
        """
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        loss: Tensor = _LinearCrossEntropy.apply(x.flatten(0, -2), weight, targets.flatten(), dtype, self._of_rows)
        return loss


@torch.no_grad()
def target_nats(x: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """Features (..., M), int64 targets (...) -> their cross-entropies in nats (...), float32 or wider; 0 of -100."""
    rows = x.flatten(0, -2)
    of_chunks = [
        F.cross_entropy(at_least_float32(head(rows[chunk])), targets.flatten()[chunk], reduction="none")
        for chunk in chunks(len(rows), len(head.weight))
    ]
    return torch.cat(of_chunks).view(targets.shape)


def chunks(rows: int, vocab_size: int) -> Iterator[slice]:
    """Which rows are taken together: all, or 1/2, 1/4, ... of them, as few chunks as keep to ``_CHUNK_BYTES``."""
    number = 1
    while -(-rows // number) > max(1, _CHUNK_BYTES // (4 * vocab_size)):
        number *= 2
    size = max(1, -(-rows // number))
    return (slice(first, min(first + size, rows)) for first in range(0, max(rows, 1), size))


def largest_chunk(rows: int, vocab_size: int) -> int:
    """Rows of the first of ``chunks``."""
    return next(chunks(rows, vocab_size)).stop


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def loss_of_rows(x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the cross-entropies of ``x @ weight.T`` times ``scale``, and its gradients of ``x`` and ``weight``."""
    log_probabilities = torch.log_softmax(at_least_float32(x @ weight.T), -1)
    shares = ((targets != IGNORED) * scale)[:, None]
    target = targets.clamp(min=0)[:, None]
    of_target = log_probabilities.gather(1, target)
    loss = -(shares * of_target).sum()
    # In place, since uncompiled every operation goes over all logits by itself.
    grad = log_probabilities.exp_().mul_(shares).to(x.dtype)
    grad.scatter_(1, target, (shares * of_target.exp() - shares).to(x.dtype))
    return loss, grad @ weight, grad.T @ x


_OfRows = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, of_rows: _OfRows) -> Tensor:
        scale = 1 / (targets != IGNORED).sum().to(torch.promote_types(x.dtype, torch.float32))
        rows, columns = x.to(dtype), weight.to(dtype)
        total: Tensor | None = None
        with torch.autocast(x.device.type, enabled=False):
            for chunk in chunks(len(x), len(weight)):
                loss, grad_x, grad_weight = of_rows(rows[chunk], columns, targets[chunk], scale)
                if total is None:
                    total, grads_x, sum_of_weight = loss, [grad_x], grad_weight.to(weight.dtype)
                else:
                    total = total + loss
                    grads_x.append(grad_x)
                    sum_of_weight += grad_weight
        assert total is not None
        ctx.save_for_backward(torch.cat(grads_x), sum_of_weight)
        ctx.dtype = x.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x.to(ctx.dtype) * grad, grad_weight * grad, None, None, None
