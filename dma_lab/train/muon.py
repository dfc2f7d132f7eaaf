"""Muon (Keller Jordan, kellerjordan.github.io/posts/muon, 2024), such that a step of it is captured as a CUDA graph."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dma_lab.train.parts import own_part, part_of, whole

_QUINTIC = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_EPS = 1e-7
_RMS = 0.2
_MOST_NUMBERS = 2**26
"""In one product of matrices: their copies then take a few hundred MiB at most."""


class Muon(torch.optim.Optimizer):
    """Momentum whose every matrix is made nearly orthogonal before it is taken off the weights.

    ``m = lerp(m, g, 1 - momentum)``; ``u = orthogonalise(lerp(g, m, momentum))`` (Nesterov);
    ``w = (1 - lr · weight_decay) · w - lr · 0.2 · sqrt(max(rows, columns)) · u``. The factor is that of Moonshot (arXiv
    2502.16982, section 2.2): an update's root mean square is then about AdamW's, so AdamW's learning rates serve.

    ``torch.optim.Muon`` computes the same, but waits for a rate that is a tensor on the GPU, knows no ``found_inf`` and
    takes one matrix at a time. This one takes all of a shape at once; a tall matrix is a wide one transposed. Several
    processes that train together orthogonalise a share of the matrices each.

    Args:
        parameters: matrices, float32.
    """

    found_inf: Tensor | None = None
    """1 where a step is to change nothing, else 0, as fused AdamW reads it."""

    def __init__(
        self, parameters: Iterable[Tensor], *, learning_rate: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay})
        assert all(parameter.ndim == 2 for group in self.param_groups for parameter in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[min(weight.shape), max(weight.shape)].append(weight)
            for (rows, columns), weights in alike.items():
                most = max(1, _MOST_NUMBERS // (rows * columns))
                for first in range(0, len(weights), most):
                    self._update(weights[first : first + most], group)

    def _update(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        """One update of ``weights``, equal in shape but for transposition."""
        momenta = [self._momentum(weight) for weight in weights]
        gradient = torch.stack([_wide(whole(weight.grad)) for weight in weights if weight.grad is not None])
        momentum = torch.stack([_wide(whole(buffer)) for buffer in momenta])
        kept: Tensor | float = 1.0
        if self.found_inf is not None:
            # Factors rather than a branch, which a captured step cannot take; 0 · NaN would be NaN.
            kept = 1.0 - self.found_inf
            gradient.masked_fill_(self.found_inf > 0, 0.0)
        momentum += (1 - group["momentum"]) * kept * (gradient - momentum)
        update = _orthogonalise_together(gradient.lerp(momentum, group["momentum"]))
        update *= -group["lr"] * kept * _RMS * max(weights[0].shape) ** 0.5
        decay = 1 - group["lr"] * kept * group["weight_decay"]
        # All matrices at once: three kernels for each are many of those that a small model's step consists of.
        own = [own_part(weight) for weight in weights]
        torch._foreach_copy_([own_part(buffer) for buffer in momenta], _parts(momentum, momenta))
        torch._foreach_mul_(own, decay)
        torch._foreach_add_(own, _parts(update, weights))

    def _momentum(self, weight: nn.Parameter) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _orthogonalise_together(matrices: Tensor) -> Tensor:
    """``orthogonalise`` by all processes that train together, which hold the same ``matrices``."""
    count = dist.get_world_size() if dist.is_initialized() else 1
    if count == 1:
        return orthogonalise(matrices)
    number, each = len(matrices), -(-len(matrices) // count)
    padded = nn.functional.pad(matrices, (0, 0, 0, 0, 0, count * each - number))
    shares = list(torch.empty_like(padded).chunk(count))
    dist.all_gather(shares, orthogonalise(padded.chunk(count)[dist.get_rank()]))
    return torch.cat(shares)[:number]


def orthogonalise(matrices: Tensor) -> Tensor:
    """``U f(S) Vᵀ`` of every ``U S Vᵀ``, (n, rows, columns) with rows ≤ columns; float32 as given.

    Newton-Schulz with the published quintic: f leads singular values above a hundredth of a matrix' norm to about 0.7
    to 1.2. In bfloat16 on a GPU, as published, where float32 takes several times as long; on a CPU it is slower.
    """
    a, b, c = _QUINTIC
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    x = x.bfloat16() if matrices.is_cuda else x
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    out: Tensor = x.to(matrices.dtype)
    return out


def _parts(wide: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Of matrices that ``_wide`` made, stacked, what lies in this process of each of ``like``."""
    pairs = zip(wide, like, strict=True)
    return [own_part(part_of(one if one.shape == as_.shape else one.mT.contiguous(), as_)) for one, as_ in pairs]


def _wide(matrix: Tensor) -> Tensor:
    """A view with no more rows than columns."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
