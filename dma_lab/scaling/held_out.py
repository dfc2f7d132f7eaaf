"""Whether a law says anything beyond the runs it was fitted to: fitted to the small rungs, held against the largest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.scaling.fit import ParametricFit, fit_parametric
from dma_lab.scaling.frontier import law_loss
from dma_lab.scaling.interval import Interval, percentile_interval
from dma_lab.scaling.objective import take_points

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """Runs of the largest size, and what the law of all smaller ones predicts of them; (runs,) each."""

    law: ParametricFit
    params: float
    tokens: Vector
    loss: Vector
    """Measured, nats a token."""
    predicted: Vector

    @property
    def errors(self) -> Vector:
        """Predicted minus measured loss, nats a token."""
        return self.predicted - self.loss

    @property
    def nats(self) -> float:
        """Mean absolute error, nats a token."""
        return float(np.abs(self.errors).mean())

    @property
    def relative(self) -> float:
        """Mean absolute error as a share of the measured loss."""
        return float(np.abs(self.errors / self.loss).mean())

    @property
    def mean_error_interval(self) -> Interval | None:
        """95 %, of the mean of ``errors``: what the bootstrap of the small rungs leaves open. None without one."""
        if self.law.samples is None:
            return None
        drawn = law_loss(self.law.samples[:, None], np.log(self.params), np.log(self.tokens))
        return percentile_interval(drawn.mean(axis=1) - self.loss.mean())


def hold_out_largest(
    params: ArrayLike, tokens: ArrayLike, loss: ArrayLike, *, delta: float = 1e-3, bootstrap: int = 0, seed: int = 0
) -> HeldOut:
    """Fit the law to all runs but those of the largest size, and predict these; arguments as of ``fit_parametric``.

    Raises:
        UserError: the smaller sizes' runs do not suffice for a law.
    """
    params, tokens, loss = (np.asarray(values, float) for values in (params, tokens, loss))
    take_points(params, tokens, loss)  # of a size that is none, no run would be the largest
    largest = params == params.max()
    small = ~largest
    law = fit_parametric(params[small], tokens[small], loss[small], delta=delta, bootstrap=bootstrap, seed=seed)
    size = float(params.max())
    return HeldOut(law, size, tokens[largest], loss[largest], law.predict(size, tokens[largest]))
