"""The law fitted to trainings by least squares, and what its parameters may be given the noise that the runs show.

Branches of one training share its noise, so a ladder with three branches per size has not three times the evidence of
one without. How much they share, and how large it is, is estimated with the law, and is uncertain by the few trainings
that tell it: intervals are wider than a bootstrap of the points makes them. Where two sizes have several seeds, noise
is a power of size, estimated likewise: runs of the less noisy sizes weigh more. Few seeds tell little of that power; it
is taken to be alike in all backends, so the others' seeds help.
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
from dma_lab.scaling.noise_by_size import NO_SEEDS, NoisePower
from dma_lab.scaling.objective import ONE_LAW, Points, one_blas_thread, take_points
from dma_lab.scaling.posterior import LOG_EXPONENTS, draw_laws, draw_noises
from dma_lab.scaling.projection import Trainings, Vector

LEAST_TRAININGS = 4
"""Their means fix E, A and alpha; one more is the first to tell of noise."""
_SHARES = ("E", "A", "B", "alpha", "beta")
OF_DRAWS = ("samples", "noise", "noise_power", "floor_slopes", "floor_deviations")
"""Fields with a row for each draw."""


@dataclass(frozen=True)
class TrainingsFit(ParametricFit):
    """The law of least squares. ``objective``: weighted sum of squared residuals, nats². ``samples`` and ``intervals``:
    draws of what the law may be given the runs, and the middle 95 % of them."""

    noise: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    """(draws, 2): standard deviations of a training's noise and of a branch's own, nats, one pair a row of
    ``samples``, of a model of ``noise_size`` parameters."""
    noise_power: Vector = dataclasses.field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    """(draws, 2): the powers of size that their variances are."""
    noise_size: float = 1.0
    floor_slopes: Vector = dataclasses.field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    """(draws, 2): by how much A and B of a row of ``samples`` change for each nat of its E."""
    floor_deviations: Vector = dataclasses.field(default_factory=lambda: np.ones((0, 2)), repr=False)
    """(draws, 2): standard deviation of E by the information of the runs, at a row of ``samples`` and at the law."""
    trainings: int = 0
    elsewhere: NoisePower = NO_SEEDS
    """What was known beforehand of the power of size that the variance of trainings is."""

    def predicted(self, params: ArrayLike, tokens: ArrayLike, training: ArrayLike, seed: int = 0) -> Vector:
        """(draws, runs): losses that runs to come may have, a training's noise shared by its branches."""
        assert self.samples is not None
        log_n = np.log(np.asarray(params, float))
        laws = law_loss(self.samples[:, None], log_n, np.log(np.asarray(tokens, float)))
        relative = np.exp(self.noise_power[:, None] / 2 * (log_n - np.log(self.noise_size))[:, None])
        generator = np.random.default_rng(seed)
        labels, of = np.unique(np.asarray(training), return_inverse=True)
        shared = self.noise[:, :1] * generator.normal(size=(len(laws), len(labels)))
        own = self.noise[:, 1:] * generator.normal(size=laws.shape)
        values: Vector = laws + relative[..., 0] * shared[:, of] + relative[..., 1] * own
        return values

    def predicted_interval(self, params: float, tokens: float) -> Interval:
        """95 %, of the loss of one training to come."""
        return percentile_interval(self.predicted([params], [tokens], [0])[:, 0])


@one_blas_thread
def fit_trainings(
    params: ArrayLike,
    tokens: ArrayLike,
    loss: ArrayLike,
    training: ArrayLike,
    *,
    elsewhere: NoisePower = NO_SEEDS,
    seed: int = 0,
) -> TrainingsFit:
    """Fit the law to runs, some of which may be branches of one training.

    Its ``samples`` are draws of the posterior (dma_lab/scaling/posterior.py). Runs that do not show where the loss
    would end may be closest to a law whose E is below 0, or fix E and A only together. Then E, which lies between 0 and
    the least loss whatever the runs say, is the median of its draws, and the rest of the law that of least squares
    given it.

    Args:
        params: (runs,) parameters of each run's model.
        tokens: (runs,) training tokens.
        loss: (runs,) final losses, nats per token.
        training: (runs,) equal entries are branches of one training.
        elsewhere: what other backends' seeds say of the power of size that noise is (``powers_elsewhere``).
        seed: of the draws.

    Raises:
        UserError: as ``fit_parametric`` with intervals, but for an E that is below 0 or not fixed; and for fewer than 4
            trainings.
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
    start = _lowest(runs, (0.0, 0.0, 0.0))
    if not _within(start) and _law(runs, start, (0.0, 0.0, 0.0))[0][0] <= 0:
        # A logarithm of size: no power of it with an E that a loss can have.
        start = _lowest(runs, (0.0, 0.0, 0.0), floor=0.0)
    _require_within(start)
    generator = np.random.default_rng(seed)
    of_noise = tuple(map(float, np.median(draw_noises(runs, elsewhere, start, generator, 500), axis=0)))
    best = _lowest(runs, of_noise, start)
    floor = None if _law(runs, best, of_noise)[0][0] > 0 else 0.0
    if floor is not None:
        best = _lowest(runs, of_noise, best if _within(best) else start, floor)
    _require_within(best)
    draws = draw_laws(runs, elsewhere, best, of_noise, generator)
    row, objective = _law(runs, best, of_noise, floor)
    low, high = percentile_interval(draws.laws[:, 0])
    if floor is not None or not low < row[0] < high or not _fixed(row, points):
        floor = float(np.median(draws.laws[:, 0]))
        best = _lowest(runs, of_noise, best, floor)
        _require_within(best)
        row, objective = _law(runs, best, of_noise, floor)
    require_identified(_log_law(row), [points], ONE_LAW, floor_given=floor is not None)
    intervals = {name: percentile_interval(draws.laws[:, i]) for i, name in enumerate(_SHARES)}
    E, A, B, alpha, beta = map(float, row)
    return TrainingsFit(
        *(E, A, B, alpha, beta, objective, intervals),
        samples=draws.laws,
        noise=draws.noise,
        noise_power=draws.noise_power,
        noise_size=float(np.exp(runs.middle)),
        floor_slopes=draws.floor_slopes,
        floor_deviations=draws.floor_deviations,
        trainings=runs.trainings,
        elsewhere=elsewhere,
    )


def _log_law(row: Vector) -> Vector:
    """(5,), as ``require_identified`` takes it, of E, A, B, alpha, beta."""
    return np.array([row[3], row[4], *np.log(np.maximum(row[:3], 1e-300))])


def _fixed(row: Vector, points: Points) -> bool:
    """Whether runs fix the whole law, E too."""
    try:
        require_identified(_log_law(row), [points], ONE_LAW)
    except UserError:
        return False
    return True


def _within(log_exponents: Vector) -> bool:
    """Whether exponents are at no end of what is searched."""
    low, high = LOG_EXPONENTS
    return bool(((log_exponents > low + 0.01) & (log_exponents < high - 0.01)).all())


def _require_within(log_exponents: Vector) -> None:
    """Refuse (UserError) exponents at an end of what is searched."""
    for value, name, what in zip(log_exponents, ("α", "β"), ("sizes", "numbers of tokens"), strict=True):
        if not _within(np.array([value])):
            raise UserError(
                f"the closest law has {name} = {np.exp(value):.2g}: these runs follow no power of {what}; "
                f"run {what} further apart, or more seeds."
            )


def _lowest(
    runs: Trainings, of_noise: Sequence[float], start: Vector | None = None, floor: float | None = None
) -> Vector:
    """Logarithms of the exponents (2,) of least squares: the best of a fine grid, polished. ``floor``: E, if given."""

    def squares(log_exponents: Vector) -> Vector:
        a, b = np.clip(log_exponents, *LOG_EXPONENTS).T
        normal = runs.normal(a, b, *np.array(of_noise)[:, None])
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
    values: Vector = np.clip(found.x, *LOG_EXPONENTS)
    return values


def _law(
    runs: Trainings, exponents: Vector, of_noise: Sequence[float], floor: float | None = None
) -> tuple[Vector, float]:
    """E, A, B, alpha, beta (5,) of least squares given exponents, and E where it is given, and the squares left."""
    normal = runs.normal(*np.array([*exponents, *of_noise])[:, None])
    (coefficients,), (left,) = normal.best if floor is None else normal.best_given(floor)
    A, B = coefficients[1:] * np.exp(normal.scale[0])
    return np.array([coefficients[0], A, B, *np.exp(exponents)]), float(left)
