"""The law fitted to trainings by least squares, and what its parameters may be given the noise that the runs show.

Branches of one training share its noise, so a ladder with three branches per size has not three times the evidence of
one without. How much they share, and how large it is, is estimated with the law, and is uncertain by the few trainings
that tell it: intervals are wider than a bootstrap of the points makes them. Where two sizes have several seeds, noise
is a power of size, estimated likewise: runs of the less noisy sizes weigh more.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from dma_lab.messages import UserError
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.frontier import law_loss
from dma_lab.scaling.identification import require_enough, require_identified, require_plane, require_spread
from dma_lab.scaling.interval import Interval, percentile_interval
from dma_lab.scaling.noise_by_size import POWER_PRIOR
from dma_lab.scaling.objective import ONE_LAW, one_blas_thread, take_points
from dma_lab.scaling.projection import Trainings, Vector

DRAWS = 2000
LEAST_TRAININGS = 4
"""Their means fix E, A and alpha; one more is the first to tell of noise."""
_LOG_EXPONENTS = float(np.log(0.005)), float(np.log(6.0))
_LOG_RATIO = 14.0
"""Largest: branches' own noise then has a thousandth of the training's standard deviation."""
_WALKERS, _BURN, _THIN = 128, 60, 3
_SHARES = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class TrainingsFit(ParametricFit):
    """The law of least squares. ``objective``: weighted sum of squared residuals, nats². ``samples`` and ``intervals``:
    draws of what the law may be given the runs, and the middle 95 % of them."""

    noise: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    """(draws, 2): standard deviations of a training's noise and of a branch's own, nats, one pair a row of
    ``samples``, of a model of ``noise_size`` parameters."""
    noise_power: Vector = dataclasses.field(default_factory=lambda: np.zeros(0), repr=False)
    """(draws,): the power of size that their variances are."""
    noise_size: float = 1.0
    trainings: int = 0

    def predicted(self, params: ArrayLike, tokens: ArrayLike, training: ArrayLike, seed: int = 0) -> Vector:
        """(draws, runs): losses that runs to come may have, a training's noise shared by its branches."""
        assert self.samples is not None
        log_n = np.log(np.asarray(params, float))
        laws = law_loss(self.samples[:, None], log_n, np.log(np.asarray(tokens, float)))
        relative = np.exp(self.noise_power[:, None] / 2 * (log_n - np.log(self.noise_size)))
        generator = np.random.default_rng(seed)
        labels, of = np.unique(np.asarray(training), return_inverse=True)
        shared = self.noise[:, :1] * generator.normal(size=(len(laws), len(labels)))
        own: Vector = relative * (shared[:, of] + self.noise[:, 1:] * generator.normal(size=laws.shape))
        return laws + own

    def predicted_interval(self, params: float, tokens: float) -> Interval:
        """95 %, of the loss of one training to come."""
        return percentile_interval(self.predicted([params], [tokens], [0])[:, 0])


@one_blas_thread
def fit_trainings(
    params: ArrayLike, tokens: ArrayLike, loss: ArrayLike, training: ArrayLike, *, seed: int = 0
) -> TrainingsFit:
    """Fit the law to runs, some of which may be branches of one training.

    Draws are of the posterior under a reference prior (Bernardo 1979; Jeffreys' rule for the law given the noise, flat
    in the logarithms of the two noises, of the power about 0), with E, A and B above 0: of such intervals the share
    that holds the truth is near their name, which simulations check (tests/scaling/test_coverage.py). E, A, B and the
    noise are drawn exactly given exponents, ratio of the noises and power; those by an affine-invariant ensemble
    (Goodman and Weare 2010).
    Runs that do not show where the loss would end may be closest to a law whose E is below 0. Then E is the median of
    its draws, and the rest of the law that of least squares given it.

    Args:
        params: (runs,) parameters of each run's model.
        tokens: (runs,) training tokens.
        loss: (runs,) final losses, nats per token.
        training: (runs,) equal entries are branches of one training.
        seed: of the draws.

    Raises:
        UserError: as ``fit_parametric`` with intervals, but for an E below 0; and for fewer than 4 trainings.
    """
    points = take_points(params, tokens, loss)
    require_enough(points)
    require_plane(points)
    require_spread(points)
    runs = Trainings(points, training)
    if runs.trainings < LEAST_TRAININGS:
        raise UserError(
            f"{runs.trainings} trainings do not determine the noise beside a law's E, A and α, and branches of one "
            f"training share its noise; run at least {LEAST_TRAININGS}: more sizes, or more seeds."
        )
    start = _lowest(runs, (0.0, 0.0))
    _require_within(start)
    generator = np.random.default_rng(seed)
    of_noise = tuple(map(float, np.median(_noises(runs, start, generator, 500), axis=0)))
    best = _lowest(runs, of_noise, start)
    floor = None if _law(runs, best, of_noise)[0][0] > 0 else 0.0
    if floor is not None:
        best = _lowest(runs, of_noise, best, floor)
    _require_within(best)
    samples, noise, power = _draws(runs, best, of_noise, generator)
    if floor is not None:
        floor = float(np.median(samples[:, 0]))
        best = _lowest(runs, of_noise, best, floor)
        _require_within(best)
    row, objective = _law(runs, best, of_noise, floor)
    at = np.array([row[3], row[4], *np.log(np.maximum(row[:3], 1e-300))])
    require_identified(at, [points], ONE_LAW, floor_given=floor is not None)
    intervals = {name: percentile_interval(samples[:, i]) for i, name in enumerate(_SHARES)}
    E, A, B, alpha, beta = map(float, row)
    size = float(np.exp(runs.middle))
    return TrainingsFit(E, A, B, alpha, beta, objective, intervals, samples, noise, power, size, runs.trainings)


def _require_within(log_exponents: Vector) -> None:
    """Refuse (UserError) exponents at an end of what is searched."""
    for value, name, what in zip(log_exponents, ("α", "β"), ("sizes", "numbers of tokens"), strict=True):
        if not _LOG_EXPONENTS[0] + 0.01 < value < _LOG_EXPONENTS[1] - 0.01:
            raise UserError(
                f"the closest law has {name} = {np.exp(value):.2g}: these runs follow no power of {what}; "
                f"run {what} further apart, or more seeds."
            )


def _lowest(
    runs: Trainings, of_noise: Sequence[float], start: Vector | None = None, floor: float | None = None
) -> Vector:
    """Logarithms of the exponents (2,) of least squares: the best of a fine grid, polished. ``floor``: E, if given."""

    def squares(log_exponents: Vector) -> Vector:
        a, b = np.clip(log_exponents, *_LOG_EXPONENTS).T
        normal = runs.normal(a, b, *(np.full(len(a), value) for value in of_noise))
        return (normal.best if floor is None else normal.best_given(floor))[1]

    if start is None:
        axis = np.linspace(np.log(0.01), np.log(4.0), 48)
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
        start = grid[squares(grid).argmin()]
    unit = float(squares(start[None])[0])
    found = minimize(
        lambda at: float(squares(at[None])[0]) / unit,
        start,
        method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-10, "maxiter": 1000, "initial_simplex": start + 0.05 * np.eye(3, 2, -1)},
    )
    values: Vector = np.clip(found.x, *_LOG_EXPONENTS)
    return values


def _law(
    runs: Trainings, exponents: Vector, of_noise: Sequence[float], floor: float | None = None
) -> tuple[Vector, float]:
    """E, A, B, alpha, beta (5,) of least squares given exponents, and E where it is given, and the squares left."""
    normal = runs.normal(*(np.array([value]) for value in (*exponents, *of_noise)))
    (coefficients,), (left,) = normal.best if floor is None else normal.best_given(floor)
    A, B = coefficients[1:] * np.exp(normal.scale[0])
    return np.array([coefficients[0], A, B, *np.exp(exponents)]), float(left)


def _log_density(runs: Trainings, z: Vector, best: Vector) -> Vector:
    """(m,): of z (m, 4), logarithms of the exponents and of the ratio, and the power; E, A, B and the noise integrated
    out. ``best``: logarithms of the exponents (2,) of least squares.

    Without the prior's factor A · B, and without E, A, B > 0: the draws of these bring both.
    """
    low, high = _LOG_EXPONENTS
    inside = ((z[:, :2] > low) & (z[:, :2] < high)).all(axis=1) & (z[:, 2] >= 0) & (z[:, 2] < _LOG_RATIO)
    density = np.full(len(z), -np.inf)
    if not inside.any():
        return density
    z = z[inside]
    normal = runs.normal(*z.T)
    a, b = np.tile(best, (len(z), 1)).T
    at_best = runs.normal(a, b, *z.T[2:])
    value = (
        (normal.log_weights - _log_det(normal.linear) - (runs.runs - 3) * np.log(normal.best[1])) / 2
        # Jeffreys' rule for the law's parameters given the noise; at the best law it says nothing of the noise.
        + (_log_det(normal.matrix) - _log_det(at_best.matrix)) / 2
        + z[:, :2].sum(axis=1)
        - z[:, 3] ** 2 / (2 * POWER_PRIOR**2)
    )
    density[inside] = np.where(np.isfinite(value), value, -np.inf)
    return density


def _log_det(matrix: Vector) -> Vector:
    return np.asarray(np.linalg.slogdet(matrix)[1])


def _noises(runs: Trainings, exponents: Vector, generator: np.random.Generator, count: int) -> Vector:
    """(count, 2): logarithms of the ratio of the noises and powers, given the exponents."""
    grid = np.stack(
        np.meshgrid(
            np.linspace(0.0, _LOG_RATIO, 71)[:-1] if runs.branched else [0.0],
            np.linspace(-4.0, 4.0, 41) if runs.replicated else [0.0],
            indexing="ij",
        ),
        axis=-1,
    ).reshape(-1, 2)
    density = _log_density(runs, np.column_stack((np.tile(exponents, (len(grid), 1)), grid)), exponents)
    share = np.exp(density - density.max())
    return np.asarray(grid[generator.choice(len(grid), count, p=share / share.sum())])


def _draws(
    runs: Trainings, best: Vector, of_noise: Sequence[float], generator: np.random.Generator
) -> tuple[Vector, Vector, Vector]:
    """Laws (draws, 5), noises (draws, 2) and powers (draws,)."""
    normal = runs.normal(*(np.array([value]) for value in (*best, *of_noise)))
    (coefficients,), (left,) = normal.best
    # How far the exponents may lie from the best, by the curvature there: where the ensemble begins.
    columns = np.array([1, 1, 1, *-coefficients[1:] * np.exp(best)])
    covariance = np.linalg.pinv(normal.matrix[0] * np.outer(columns, columns))[3:, 3:] * left / (runs.runs - 5)
    spread = np.linalg.cholesky(covariance + 1e-18 * np.eye(2))
    spread *= min(1.0, 0.4 / np.sqrt(np.trace(covariance)))
    begun = _noises(runs, best, generator, _WALKERS)
    begun[:, 1] += 0.05 * generator.normal(size=_WALKERS) * runs.replicated  # off the grid, or no walker leaves it
    walkers = np.column_stack((best + generator.normal(size=(_WALKERS, 2)) @ spread.T, begun))
    walkers[:, :2] = np.clip(walkers[:, :2], _LOG_EXPONENTS[0] + 1e-6, _LOG_EXPONENTS[1] - 1e-6)
    dimensions = 2 + runs.branched + runs.replicated
    density = _log_density(runs, walkers, best)
    half, kept = _WALKERS // 2, []
    for step in range(_BURN + _THIN * -(-2 * DRAWS // _WALKERS)):
        for own, others in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            stretch = (1 + generator.random(half)) ** 2 / 2
            other = walkers[others][generator.integers(half, size=half)]
            moved = other + stretch[:, None] * (walkers[own] - other)
            moved_density = _log_density(runs, moved, best)
            gain = (dimensions - 1) * np.log(stretch) + moved_density - density[own]
            taken = np.log(generator.random(half)) < gain
            walkers[own] = np.where(taken[:, None], moved, walkers[own])
            density[own] = np.where(taken, moved_density, density[own])
        if step >= _BURN and step % _THIN == 0:
            kept.append(walkers.copy())
    return _drawn_laws(runs, np.concatenate(kept), generator)


def _drawn_laws(runs: Trainings, z: Vector, generator: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    """E, A, B and the noise given exponents, ratio and power z (m, 4), drawn above 0, weighted by the prior's A · B."""
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
    with np.errstate(over="ignore"):
        scaled = coefficients[:, 1:] * np.exp(normal.scale)
    laws = np.column_stack((coefficients[:, 0], scaled, np.exp(z[:, :2])))
    noise = np.sqrt(np.column_stack((variance * runs.shared_of(z[:, 2]), variance)))
    return laws[chosen], noise[chosen], z[chosen, 3]
