"""What training costs: FLOP per token as a function of the model's size."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
_PER_PARAMETER = 6.0
"""FLOP of training per token: a multiply-add forward, two backward."""
_BEYOND = 2.0 ** np.arange(1, 11)
"""Multiples of the last size run: finely enough that no size is the best for being one of them."""


@dataclass(frozen=True)
class Cost:
    """FLOP per token of models of N parameters: straight lines between ``log_params``, in logarithms.

    6 N leaves out attention's scores and the output head, which on a small rung cost more than all parameters. Runs
    count them, so between the sizes run their own counts are interpolated. Beyond the first and the last of
    ``log_params`` FLOP per parameter and token stay as they are there.
    """

    log_params: Vector
    """(sizes,), rising: natural logarithms of parameters."""
    log_flops_per_token: Vector
    """(sizes,)"""

    @classmethod
    def of_runs(cls, params: ArrayLike, tokens: ArrayLike, flops: ArrayLike) -> "Cost":
        """From each run's parameters, training tokens and training FLOP, (runs,) each; runs of one size are averaged.

        Beyond the smallest and the largest of them, a thousandfold, FLOP per token go on as 6 N and what the runs have
        on top of it, which grows as the square root of N: head and scores as the width, parameters as its square.

        Raises:
            ValueError: when the three differ in length or are not positive and finite.
        """
        params, tokens, flops = (np.asarray(values, float) for values in (params, tokens, flops))
        if not params.shape == tokens.shape == flops.shape or params.ndim != 1 or not len(params):
            raise ValueError(
                f"params, tokens and flops differ in length: {params.shape}, {tokens.shape}, {flops.shape}."
            )
        if not all((np.isfinite(values) & (values > 0)).all() for values in (params, tokens, flops)):
            raise ValueError("params, tokens and flops must be positive and finite.")
        sizes = np.unique(params)
        logs = np.log(flops / tokens)
        own = np.array([logs[params == size].mean() for size in sizes])
        below, above = (sizes[end] * _BEYOND**sign for end, sign in ((0, -1.0), (-1, 1.0)))
        return cls(
            np.log(np.concatenate((below[::-1], sizes, above))),
            np.concatenate((_beyond(below, sizes[0], own[0])[::-1], own, _beyond(above, sizes[-1], own[-1]))),
        )

    def flops_per_token(self, params: ArrayLike) -> Vector:
        """FLOP per token of models of ``params`` parameters."""
        log_n = np.log(np.asarray(params, float))
        # What lies beyond the ends, at slope 1; np.interp holds the end's value.
        beyond = log_n - np.clip(log_n, self.log_params[0], self.log_params[-1])
        values: Vector = np.exp(np.interp(log_n, self.log_params, self.log_flops_per_token) + beyond)
        return values

    @property
    def segments(self) -> list[tuple[float, float, float, float]]:
        """Power laws log(FLOP per token) = k + p log N and the ranges of log N where they hold: (low, high, k, p)."""
        x = np.concatenate(([-np.inf], self.log_params, [np.inf]))
        slopes = np.concatenate(([1.0], np.diff(self.log_flops_per_token) / np.diff(self.log_params), [1.0]))
        anchors = np.append(0, np.arange(len(self.log_params)))
        offsets = self.log_flops_per_token[anchors] - slopes * self.log_params[anchors]
        return [(float(x[i]), float(x[i + 1]), float(offsets[i]), float(slopes[i])) for i in range(len(slopes))]


def _beyond(params: Vector, end: float, log_flops_per_token: float) -> Vector:
    """Logarithms of FLOP per token of sizes beyond the one at an ``end``."""
    there = float(np.exp(log_flops_per_token))
    of_parameters = min(_PER_PARAMETER, there / end)
    values: Vector = np.log(of_parameters * params + (there - of_parameters * end) * np.sqrt(params / end))
    return values


SIX_PER_PARAMETER = Cost(np.zeros(1), np.log([_PER_PARAMETER]))
"""C = 6 N D, what the literature counts (arXiv 2001.08361, section 2.1)."""
