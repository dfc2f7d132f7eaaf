"""Whether a law predicts beyond the runs it was fitted to: fitted to the small rungs, compared with the largest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.scaling.interval import Interval, percentile_interval
from dma_lab.scaling.noise_by_size import NO_SEEDS, NoisePower
from dma_lab.scaling.objective import take_points
from dma_lab.scaling.trainings import TrainingsFit, fit_trainings

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """Runs of the largest size, and what the law of all smaller ones predicts of them; (runs,) each."""

    law: TrainingsFit
    params: float
    tokens: Vector
    loss: Vector
    """Measured, nats per token."""
    predicted: Vector
    mean_error_interval: Interval
    """95 %, of the mean of ``errors``, were the law to go on: what the smaller sizes leave open of it, and the noise of
    the largest size's trainings."""

    @property
    def errors(self) -> Vector:
        """Predicted minus measured loss, nats per token."""
        return self.predicted - self.loss

    @property
    def nats(self) -> float:
        """Mean absolute error, nats per token."""
        return float(np.abs(self.errors).mean())

    @property
    def relative(self) -> float:
        """Mean absolute error as a share of the measured loss."""
        return float(np.abs(self.errors / self.loss).mean())


def hold_out_largest(
    params: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    training: ArrayLike,
    *,
    elsewhere: NoisePower = NO_SEEDS,
    seed: int = 0,
) -> HeldOut:
    """Fit the law to all runs but those of the largest size, and predict these; arguments as of ``fit_trainings``.

    Raises:
        UserError: the smaller sizes' runs do not suffice for a law.
    """
    params, tokens, loss = (np.asarray(values, float) for values in (params, tokens, loss))
    training = np.asarray(training)
    take_points(params, tokens, loss)  # of a size that is none, no run would be the largest
    largest = params == params.max()
    small = ~largest
    law = fit_trainings(params[small], tokens[small], loss[small], training[small], elsewhere=elsewhere, seed=seed)
    size = float(params.max())
    drawn = law.predicted(params[largest], tokens[largest], training[largest], seed)
    interval = percentile_interval(drawn.mean(axis=1) - loss[largest].mean())
    return HeldOut(law, size, tokens[largest], loss[largest], law.predict(size, tokens[largest]), interval)
