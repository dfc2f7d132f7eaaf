"""Laws of two backends that share E: the loss that no model of the text can go below is the text's, not a backend's."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from dma_lab.messages import UserError
from dma_lab.scaling.interval import percentile_interval
from dma_lab.scaling.objective import Vector
from dma_lab.scaling.posterior import DRAWS
from dma_lab.scaling.trainings import OF_DRAWS, TrainingsFit

_NEAREST = 8
_PAIRS = 4
"""Times as many as are kept."""
_LEAST = 50
"""Draws of one law, by their weight, at whose E the other has any."""


def share_floor(law: TrainingsFit, other: TrainingsFit, *, seed: int = 0) -> tuple[TrainingsFit, TrainingsFit]:
    """Both laws given that their E is one: row i of both ``samples`` is a draw of the two at once.

    Their trainings are taken to be independent, so the likelihood of both given one E is the product of theirs: draws
    of the one are weighted by the other's density of E, and each is joined to a draw of the other with the same E: one
    of the neighbouring few of thousands, whose A and B follow E over what is left as least squares has them, so that
    its loss at the runs stays what it was.

    The product has the prior of E twice. By Jeffreys' rule each law's has in it the precision of E, 1 / v, and that of
    both the sum of precisions: pairs are weighted by the root of (1 / v1 + 1 / v2) / (1 / v1 · 1 / v2) = v1 + v2. Where
    runs hardly show E its precision rises steeply with E, and the square of it drew E up.

    Raises:
        UserError: no E fits both.
    """
    from scipy.stats import gaussian_kde  # half a second, for which most reports need not wait

    generator = np.random.default_rng(seed)
    ours, theirs = _samples(law), _samples(other)
    weights = gaussian_kde(theirs[:, 0])(ours[:, 0])
    if not weights.sum() > 0 or weights.sum() ** 2 / (weights**2).sum() < _LEAST:
        low, high = (percentile_interval(samples[:, 0]) for samples in (ours, theirs))
        raise UserError(
            f"no E fits both laws, {low[0]:.3g} to {low[1]:.3g} and {high[0]:.3g} to {high[1]:.3g}, although E belongs "
            "to the text and not to a backend; run sizes and numbers of tokens that are further apart."
        )
    chosen = generator.choice(len(ours), _PAIRS * DRAWS, p=weights / weights.sum())
    order = np.argsort(theirs[:, 0])
    at = np.searchsorted(theirs[order, 0], ours[chosen, 0]) + generator.integers(-_NEAREST, _NEAREST, len(chosen))
    joined = order[np.clip(at, 0, len(order) - 1)]
    variance, at_best = (np.square(law.floor_deviations[chosen]) + np.square(other.floor_deviations[joined])).T
    # Over what it is at the best laws, as each law's prior: it says nothing of the noise.
    weights = np.sqrt(variance / at_best)
    kept = generator.choice(len(chosen), DRAWS, p=weights / weights.sum())
    chosen, joined = chosen[kept], joined[kept]
    return _given(law, chosen, ours[chosen, 0]), _given(other, joined, ours[chosen, 0])


def _samples(law: TrainingsFit) -> Vector:
    assert law.samples is not None
    return law.samples


def _given(law: TrainingsFit, rows: NDArray[np.intp], floor: Vector) -> TrainingsFit:
    assert law.intervals is not None
    samples, slopes = _samples(law)[rows], law.floor_slopes[rows]
    moved = samples[:, 1:3] + slopes * (floor - samples[:, 0])[:, None]
    # Where the next E is far, in the tails, a coefficient that is next to nothing stays above it.
    samples = np.column_stack((floor, np.maximum(moved, 0.01 * samples[:, 1:3]), samples[:, 3:]))
    intervals = {name: percentile_interval(samples[:, i]) for i, name in enumerate(law.intervals)}
    drawn = {name: getattr(law, name)[rows] for name in OF_DRAWS} | {"samples": samples}
    return dataclasses.replace(law, intervals=intervals, **drawn)
