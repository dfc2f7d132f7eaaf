"""Several linear maps of one input."""

import torch
import torch.nn.functional as F
from torch import Tensor


def project(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """``F.linear(x, weight)`` for each of ``weights``: x (..., M), weights (M_i, M) -> (..., M_i).

    To train, as one product of the weights side by side: x is read once, and its gradient is one product too. Putting
    them side by side copies them, which does not pay for the few tokens of a decoding step.
    """
    if not torch.is_grad_enabled():
        return tuple(F.linear(x, weight) for weight in weights)
    return F.linear(x, torch.cat(weights)).split([len(weight) for weight in weights], -1)
