"""Whether another setting than a backend's default is better, where the best of many tried looks better by luck.

Every setting is compared with the default one alone, and the level is divided by how many are (Bonferroni): where none
of them is better, one is chosen in at most 5 of 100 such searches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from dma_lab.scaling.tuning import BestRate, SeedNoise

LEVEL = 0.05


@dataclass(frozen=True)
class Tried:
    """A setting at one rung, at its own best rate."""

    best: BestRate
    noise: SeedNoise | None
    """Over seeds."""

    @property
    def loss(self) -> float:
        """By the curve, nats."""
        return float(self.best.loss(self.best.rate))


@dataclass(frozen=True)
class Gain:
    """Of one setting over the default one."""

    nats: float
    """Loss of the default minus its own, in the mean over rungs."""
    p_value: float
    """One-sided, times the number of settings compared with the default; 1 where no noise is known."""
    everywhere: bool
    """Whether its loss is the lower at every rung."""

    @property
    def shown(self) -> bool:
        """Whether it may be chosen."""
        return self.everywhere and self.p_value <= LEVEL


def gain_over(rungs: Sequence[tuple[Tried, Tried]], compared: int) -> Gain:
    """Of a setting over the default, by ``rungs``, each with the default and it; ``compared`` settings are.

    The variance of a loss is that of the curve at its lowest point, whose place adds nothing to first order. Degrees of
    freedom are the fewest of all that enter: noise may be pooled, and the same pool is not two.
    """
    apart = [default.loss - other.loss for default, other in rungs]
    nats, everywhere = sum(apart) / len(apart), min(apart) > 0
    variance, freedom = 0.0, math.inf
    for tried in (tried for pair in rungs for tried in pair):
        half = tried.best.half_width(tried.best.rate)
        if tried.noise is None or half is None:
            return Gain(nats, 1.0, everywhere)
        variance += (float(half) / special.stdtrit(tried.noise.freedom, 0.975)) ** 2 / len(rungs) ** 2
        freedom = min(freedom, tried.noise.freedom)
    if not variance:
        return Gain(nats, 0.0 if nats > 0 else 1.0, everywhere)
    return Gain(nats, min(1.0, compared * float(special.stdtr(freedom, -nats / math.sqrt(variance)))), everywhere)
