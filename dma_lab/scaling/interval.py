"""95 % percentile intervals of resampled estimates, some of which may not exist."""

import numpy as np
from numpy.typing import ArrayLike

from dma_lab.messages import UserError

Interval = tuple[float, float]
_LEAST_RESAMPLES = 20


def require_resamples(bootstrap: int) -> None:
    """Refuse (UserError) so few resamples that their extremes lie well within a 95 % interval."""
    if bootstrap < _LEAST_RESAMPLES:
        raise UserError(
            f"bootstrap={bootstrap}: a 95 % interval needs at least {_LEAST_RESAMPLES} resamples; 0 gives none."
        )


def percentile_interval(samples: ArrayLike) -> Interval:
    """The 2.5th and 97.5th percentile of ``samples`` (resamples,).

    An estimate may be infinite, and where a resample gives none at all (NaN) it could have been anything: it counts
    as below all others for the lower end and as above them for the upper. The interval is then wider, or open, never
    narrower for what could not be worked out.
    """
    values = np.asarray(samples, float)
    unknown = np.isnan(values)
    # Sample points, not interpolations: between a number and infinity lies nothing.
    low = np.quantile(np.where(unknown, -np.inf, values), 0.025, method="inverted_cdf")
    high = np.quantile(np.where(unknown, np.inf, values), 0.975, method="inverted_cdf")
    return float(low), float(high)
