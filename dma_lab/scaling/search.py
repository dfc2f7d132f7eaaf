"""The global search of approach 3: where its descents begin.

For given exponents the law is linear in E, A and B: a grid over two unknowns, not five, has no gaps that a minimum can
hide in (variable projection, Golub and Pereyra 1973). The published grid of 4,500 starts over all five (arXiv
2203.15556, section D.2), coarser in each, leaves some noisy sets several per cent above their minimum.
"""

import numpy as np

from dma_lab.scaling.objective import ONE_LAW, Points, Vector, curvature_scaling, descend, values_at

_EXPONENTS = np.geomspace(0.01, 4.0, 28)
"""Of both alpha and beta; the published grid ends at 2."""
_REWEIGHTINGS = 12
_LEAST_SHARE = 1e-6
"""Of the mean loss: a term whose best coefficient is negative begins there."""
_DESCENTS = 60
"""All to the end: in a long valley what came lowest after a few steps need not end lowest."""


def search(points: Points, delta: float) -> tuple[float, Vector]:
    """The lowest minimum found of the objective, and its (alpha, beta, e, a, b)."""
    starts = projected_grid(points, delta)
    lowest = starts[np.argsort(values_at(starts, points, delta))[:_DESCENTS]]
    minima = [settle(start, points, delta) for start in lowest]
    return min(minima, key=lambda found: found[0])


def settle(start: Vector, points: Points, delta: float) -> tuple[float, Vector]:
    """Descend until another descent, in newly rescaled coordinates, gains nothing more."""
    best = float(values_at(start[None], points, delta)[0]), start
    for _ in range(6):
        scaling = curvature_scaling(best[1], [points], ONE_LAW, delta)
        found = descend(best[1], [points], ONE_LAW, delta, scaling=scaling, iterations=200)
        if not found[0] < best[0] * (1 - 1e-8):
            return min(best, found, key=lambda pair: pair[0])
        best = found
    return best


def projected_grid(points: Points, delta: float) -> Vector:
    """(exponents², 5): every pair of exponents with the E, A and B that are near their best.

    E, A and B minimise the Huber loss of relative errors, which are those of the logarithms when small, by iteratively
    reweighted least squares.
    """
    alpha, beta = (axis.ravel() for axis in np.meshgrid(_EXPONENTS, _EXPONENTS, indexing="ij"))
    centre_n, centre_d = points.log_n.mean(), points.log_d.mean()
    columns = np.stack(
        (
            np.ones((len(alpha), len(points.log_l))),
            np.exp(-alpha[:, None] * (points.log_n - centre_n)),
            np.exp(-beta[:, None] * (points.log_d - centre_d)),
        ),
        axis=1,
    ) / np.exp(points.log_l)
    scale = np.linalg.norm(columns, axis=2, keepdims=True)
    columns /= scale
    weight = np.ones((len(alpha), len(points.log_l)))
    for _ in range(_REWEIGHTINGS):
        weighted = columns * weight[:, None]
        normal = weighted @ columns.transpose(0, 2, 1) + 1e-10 * np.eye(3)
        coefficients = np.linalg.solve(normal, weighted.sum(axis=2, keepdims=True))[..., 0]
        residual = 1 - np.einsum("gkr,gk->gr", columns, coefficients)
        weight = 1 / np.maximum(1, np.abs(residual) / delta)
    least = _LEAST_SHARE * np.exp(points.log_l.mean())
    e, a, b = np.log(np.maximum(coefficients / scale[..., 0], least)).T
    return np.stack((alpha, beta, e, a + alpha * centre_n, b + beta * centre_d), axis=1)
