"""What a law and its noise may be given the runs: draws of the posterior under a reference prior.

The prior (Bernardo 1979) is Jeffreys' rule for the law given the noise, flat in the logarithms of the two noises,
normal in the powers of size that they are, with E, A and B above 0: of such intervals the share that holds the truth is
near their name, which simulations check (tests/scaling/test_coverage.py). E, A, B and the noise are drawn exactly given
exponents, ratio of the noises and powers; those by an affine-invariant ensemble (Goodman and Weare 2010).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dma_lab.messages import UserError
from dma_lab.scaling.noise_by_size import POWER_PRIOR, NoisePower
from dma_lab.scaling.projection import Trainings, Vector

DRAWS = 2000
LOG_EXPONENTS = float(np.log(0.005)), float(np.log(6.0))
_LOG_RATIO = 14.0
"""Largest: branches' own noise then has a thousandth of the training's standard deviation."""
_WALKERS, _BURN, _THIN = 128, 60, 3


def draw_noises(
    runs: Trainings, elsewhere: NoisePower, exponents: Vector, generator: np.random.Generator, count: int
) -> Vector:
    """(count, 3): logarithms of the ratio of the noises, and powers as of ``Trainings.normal``, given the exponents."""
    grid = np.stack(
        np.meshgrid(
            np.linspace(0.0, _LOG_RATIO, 36)[:-1] if runs.branched else [0.0],
            np.linspace(-4.0, 4.0, 21) if runs.replicated else [0.0],
            np.linspace(-2.0, 2.0, 9) if runs.replicated and runs.branched else [0.0],
            indexing="ij",
        ),
        axis=-1,
    ).reshape(-1, 3)
    density = _log_density(runs, elsewhere, np.column_stack((np.tile(exponents, (len(grid), 1)), grid)), exponents)
    share = np.exp(density - density.max())
    return np.asarray(grid[generator.choice(len(grid), count, p=share / share.sum())])


@dataclass(frozen=True)
class Draws:
    """Of the posterior; a row of each is one draw."""

    laws: Vector
    """(draws, 5): E, A, B, alpha, beta."""
    noise: Vector
    """(draws, 2): standard deviations of a training's noise and of a branch's own."""
    noise_power: Vector
    """(draws, 2): the powers of size that their variances are."""
    floor_slopes: Vector
    """(draws, 2): by how much A and B change for each nat of E, exponents and noise being what they are."""
    floor_deviations: Vector
    """(draws, 2): standard deviation that E would have by the information of the runs (Cramér and Rao), were the draw
    the truth, and were the best exponents, with the draw's noise."""


def draw_laws(
    runs: Trainings, elsewhere: NoisePower, best: Vector, of_noise: Sequence[float], generator: np.random.Generator
) -> Draws:
    """``DRAWS`` of them, from an ensemble that begins about ``best``."""
    normal = runs.normal(*np.array([*best, *of_noise])[:, None])
    (coefficients,), (left,) = normal.best
    # How far the exponents may lie from the best, by the curvature there: where the ensemble begins.
    columns = np.array([1, 1, 1, *-coefficients[1:] * np.exp(best)])
    covariance = np.linalg.pinv(normal.matrix[0] * np.outer(columns, columns))[3:, 3:] * left / (runs.runs - 5)
    spread = np.linalg.cholesky(covariance + 1e-18 * np.eye(2))
    spread *= min(1.0, 0.4 / np.sqrt(np.trace(covariance)))
    begun = draw_noises(runs, elsewhere, best, generator, _WALKERS)
    # Off the grid, or no walker leaves it.
    begun[:, 1:] += 0.1 * generator.normal(size=(_WALKERS, 2)) * [runs.replicated, runs.replicated and runs.branched]
    walkers = np.column_stack((best + generator.normal(size=(_WALKERS, 2)) @ spread.T, begun))
    walkers[:, :2] = np.clip(walkers[:, :2], LOG_EXPONENTS[0] + 1e-6, LOG_EXPONENTS[1] - 1e-6)
    dimensions = 2 + runs.branched + runs.replicated * (1 + runs.branched)
    density = _log_density(runs, elsewhere, walkers, best)
    half, kept = _WALKERS // 2, []
    for step in range(_BURN + _THIN * -(-2 * DRAWS // _WALKERS)):
        for own, others in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            stretch = (1 + generator.random(half)) ** 2 / 2
            other = walkers[others][generator.integers(half, size=half)]
            moved = other + stretch[:, None] * (walkers[own] - other)
            moved_density = _log_density(runs, elsewhere, moved, best)
            gain = (dimensions - 1) * np.log(stretch) + moved_density - density[own]
            taken = np.log(generator.random(half)) < gain
            walkers[own] = np.where(taken[:, None], moved, walkers[own])
            density[own] = np.where(taken, moved_density, density[own])
        if step >= _BURN and step % _THIN == 0:
            kept.append(walkers.copy())
    return _drawn_laws(runs, np.concatenate(kept), best, generator)


def _log_density(runs: Trainings, elsewhere: NoisePower, z: Vector, best: Vector) -> Vector:
    """(m,): of z (m, 5), logarithms of the exponents and of the ratio, and the powers; E, A, B and the noise integrated
    out. ``best``: logarithms of the exponents (2,) of least squares.

    Without the prior's factor A · B, and without E, A, B > 0: the draws of these bring both.
    """
    low, high = LOG_EXPONENTS
    inside = ((z[:, :2] > low) & (z[:, :2] < high)).all(axis=1) & (z[:, 2] >= 0) & (z[:, 2] < _LOG_RATIO)
    density = np.full(len(z), -np.inf)
    if not inside.any():
        return density
    z = z[inside]
    normal = runs.normal(*z.T)
    at_best = runs.matrices(best, z[:, 2:])
    value = (
        (normal.log_weights - _log_det(normal.linear) - (runs.runs - 3) * np.log(normal.best[1])) / 2
        # Jeffreys' rule for the law's parameters given the noise; at the best law it says nothing of the noise.
        + (_log_det(normal.matrix) - _log_det(at_best)) / 2
        + z[:, :2].sum(axis=1)
        - ((z[:, 3] - elsewhere.mean) / elsewhere.deviation) ** 2 / 2
        - (z[:, 4] / POWER_PRIOR) ** 2 / 2
    )
    density[inside] = np.where(np.isfinite(value), value, -np.inf)
    return density


def _log_det(matrix: Vector) -> Vector:
    return np.asarray(np.linalg.slogdet(matrix)[1])


def _drawn_laws(runs: Trainings, z: Vector, best: Vector, generator: np.random.Generator) -> Draws:
    """E, A, B and the noise given the rest, z (m, 5), drawn above 0, weighted by the prior's A · B."""
    normal = runs.normal(*z.T)
    coefficients, left = normal.best
    variance = left / generator.chisquare(runs.runs - 3, len(z))
    root = np.linalg.cholesky(np.linalg.inv(normal.linear))
    coefficients = coefficients + np.sqrt(variance)[:, None] * np.einsum(
        "mij,mj->mi", root, generator.normal(size=(len(z), 3))
    )
    weight = np.where((coefficients > 0).all(axis=1), coefficients[:, 1] * coefficients[:, 2], 0.0)
    if (weight > 0).sum() < len(z) // 100:
        raise UserError(
            "given their noise, hardly any law with E, A and B above 0 fits these runs; run sizes and numbers of "
            "tokens that are further apart, or more seeds."
        )
    chosen = generator.choice(len(z), DRAWS, p=weight / weight.sum())
    followed = np.asarray(np.linalg.solve(normal.linear[:, 1:, 1:], normal.linear[:, 1:, 0, None]), float)[..., 0]
    with np.errstate(over="ignore"):
        scaled = coefficients[:, 1:] * np.exp(normal.scale)
        slopes = -followed * np.exp(normal.scale)
    laws = np.column_stack((coefficients[:, 0], scaled, np.exp(z[:, :2])))
    noise = np.sqrt(np.column_stack((variance * runs.shared_of(z[:, 2]), variance)))
    powers = np.cumsum(z[:, 3:], axis=1)
    matrices = np.stack((normal.matrix[chosen], runs.matrices(best, z[chosen, 2:])), axis=1)
    deviations = np.sqrt(variance[chosen, None] * np.linalg.pinv(matrices, hermitian=True)[..., 0, 0])
    return Draws(laws[chosen], noise[chosen], powers[chosen], slopes[chosen], deviations)
