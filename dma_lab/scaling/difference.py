"""Two laws that are to be compared: how their noises, which few trainings tell, are weighed for what they differ by.

Were each drawn under its own reference prior, intervals of the difference would be wider than their name (Behrens and
Fisher's problem), the more so the fewer trainings tell the noise. For two means Ghosh and Kim (2001) give the prior
under which they are not, to second order: the product of both, and beside it (v1 / n1 + v2 / n2) / (v1 v2), where v is
the variance of a training's noise and n the number of trainings.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from dma_lab.scaling.trainings import OF_DRAWS, TrainingsFit


def weigh_for_difference(law: TrainingsFit, other: TrainingsFit, *, seed: int = 0) -> tuple[TrainingsFit, TrainingsFit]:
    """Both laws with rows of their ``samples`` drawn again, by that prior, for what they differ by.

    Row i of both is a draw of the two at once, before (``share_floor``) and after. ``intervals``, of what each law is
    by itself, stay as they are.
    """
    ours, theirs = (np.square(own.noise).sum(axis=1) for own in (law, other))
    # Of the two terms of that factor each has one law's variance alone.
    weights = 1 / (law.trainings * theirs) + 1 / (other.trainings * ours)
    rows = np.random.default_rng(seed).choice(len(weights), len(weights), p=weights / weights.sum())
    return _rows(law, rows), _rows(other, rows)


def _rows(law: TrainingsFit, rows: NDArray[np.intp]) -> TrainingsFit:
    assert law.samples is not None
    return dataclasses.replace(law, **{name: getattr(law, name)[rows] for name in OF_DRAWS})
