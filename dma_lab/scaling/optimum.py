"""What a law says of a budget: the best size and length of training, and how much of it another backend needs."""

from dataclasses import dataclass

import numpy as np

from dma_lab.scaling.cost import SIX_PER_PARAMETER, Cost
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.frontier import best_allocation, compute_for_loss
from dma_lab.scaling.interval import Interval, percentile_interval


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal model of a budget; intervals (95 %) are those of the law's bootstrap, if it has one."""

    flops: float
    params: float
    tokens: float
    loss: float
    params_interval: Interval | None = None
    tokens_interval: Interval | None = None
    loss_interval: Interval | None = None


def compute_optimal(law: ParametricFit, flops: float, cost: Cost = SIX_PER_PARAMETER) -> Optimum:
    """Parameters and tokens of least loss that ``flops`` pay for at ``cost``, and that loss (nats per token)."""
    params, tokens, loss = (float(value) for value in best_allocation(law.row, flops, cost))
    if law.samples is None:
        return Optimum(flops, params, tokens, loss)
    intervals = (percentile_interval(values) for values in best_allocation(law.samples, flops, cost))
    return Optimum(flops, params, tokens, loss, *intervals)


@dataclass(frozen=True)
class Multiplier:
    """How much of another's compute one needs to come to the same loss."""

    flops: float
    """The other's budget."""
    loss: float
    """What the other comes to with it, compute-optimally trained: nats per token."""
    multiplier: float
    """FLOP to reach that loss over ``flops``; infinite where the law never comes so low. The middle of the draws, where
    there are any."""
    interval: Interval | None = None
    """95 %; its upper end is infinite when the resamples do not exclude that the loss is never reached."""
    unreached: float = 0.0
    """Share of the resamples in which it is never reached."""

    @property
    def text(self) -> str:
        """In words: a number with its interval, or that no compute is known to do."""
        point = "never" if np.isinf(self.multiplier) else f"{self.multiplier:.3g} ×"
        if self.interval is None:
            return point
        low, high = self.interval
        if np.isinf(low):
            return f"{point} (never in {self.unreached:.0%} of resamples)"
        if np.isinf(high):
            return f"{point} [{low:.3g}, no upper bound: never in {self.unreached:.0%} of resamples]"
        return f"{point} [{low:.3g}, {high:.3g}]"


def compute_multiplier(
    law: ParametricFit,
    other: ParametricFit,
    flops: float,
    cost: Cost = SIX_PER_PARAMETER,
    other_cost: Cost = SIX_PER_PARAMETER,
) -> Multiplier:
    """Compute that ``law``'s backend needs to match the other's best loss for ``flops``, as a multiple of them.

    Row i of both laws' ``samples`` is taken together: they are draws of both at once (``share_floor``, then
    ``weigh_for_difference``), or, of laws fitted by ``fit_parametric`` with one seed to runs at the same points listed
    in the same order, a paired bootstrap.

    Raises:
        ValueError: when the laws have different numbers of resamples.
    """

    def ratios(rows: np.ndarray, other_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        loss = best_allocation(other_rows, flops, other_cost)[2]
        return loss, compute_for_loss(rows, loss, cost) / flops

    loss, multiplier = ratios(law.row, other.row)
    point = Multiplier(flops, float(loss), float(multiplier))
    if law.samples is None and other.samples is None:
        return point
    if law.samples is None or other.samples is None or len(law.samples) != len(other.samples):
        raise ValueError("the two laws have different numbers of resamples; fit both with the same `bootstrap`.")
    drawn = ratios(law.samples, other.samples)[1]
    interval, unreached = percentile_interval(drawn), float(np.isinf(drawn).mean())
    # Sorted, not interpolated: half way between a number and infinity lies nothing.
    middle = float(np.quantile(drawn, 0.5, method="inverted_cdf"))
    return Multiplier(flops, float(loss), middle, interval, unreached)
