"""The law with its noise: branches of one training share a part of it, and E, A and B are linear given the rest.

Loss of a run = E + A / N^alpha + B / D^beta + u + e, nats per token: u, normal, is the training's, one in all of
its branches, e, normal, the branch's own; the variance of each may be a power of N, and not the same: part of a
branch's own noise is of documents, which does not fall with size as luck does. Given the exponents, the ratio of the
two variances and those powers, E, A and B are those of generalised least squares in closed form (variable projection,
Golub and Pereyra 1973).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dma_lab.scaling.objective import Points

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Normal:
    """Normal equations of candidates (m,): the law's linear part alone, and with its exponents' derivatives."""

    matrix: Vector
    """(m, 5, 5): of the columns of E, A and B, and of A's and B's times their log N and log D."""
    right: Vector
    """(m, 3): the first three columns against the losses."""
    total: Vector
    """(m,): weighted sum of squared losses."""
    log_weights: Vector
    """(m,): sum of the logarithms of all weights."""
    scale: Vector
    """(m, 2): natural logarithms of A and B where their coefficients are 1."""

    @property
    def linear(self) -> Vector:
        """(m, 3, 3), of E and of A's and B's terms where they are largest."""
        return self.matrix[:, :3, :3] + 1e-14 * self.matrix[:, :1, :1] * np.eye(3)

    @property
    def best(self) -> tuple[Vector, Vector]:
        """Coefficients (m, 3) of least squares, and the weighted squares (m,) that they leave."""
        found = np.linalg.solve(self.linear, self.right[..., None])[..., 0]
        return np.asarray(found), self._left(self.total - (self.right * found).sum(axis=1))

    def best_given(self, floor: float) -> tuple[Vector, Vector]:
        """``best`` where E, the first coefficient, is ``floor``."""
        right = self.right[:, 1:] - floor * self.matrix[:, 1:3, 0]
        found = np.linalg.solve(self.linear[:, 1:, 1:], right[..., None])[..., 0]
        total = self.total - 2 * floor * self.right[:, 0] + floor**2 * self.matrix[:, 0, 0]
        left = self._left(total - (right * found).sum(axis=1))
        return np.column_stack((np.full(len(found), floor), found)), left

    def _left(self, squares: Vector) -> Vector:
        # Below a billionth of the loss noise cannot be told from rounding.
        return np.asarray(np.maximum(squares, 1e-18 * self.total))


class Trainings:
    """Runs of one backend, each with the training that it is a branch of.

    Args:
        points: (runs,) parameters, tokens and losses.
        training: (runs,) equal entries share a training.
    """

    def __init__(self, points: Points, training: ArrayLike) -> None:
        labels, of = np.unique(np.asarray(training), return_inverse=True)
        counts = np.bincount(of)
        rows, branches = [], []
        for label, count in enumerate(counts):
            own = np.flatnonzero(of == label)
            # Orthonormal: the mean of the branches, which has all of their shared noise, and contrasts that have none.
            basis = np.linalg.qr(np.column_stack((np.ones(count), np.eye(count)[:, 1:])))[0]
            turned = np.zeros((count, len(of)))
            turned[:, own] = basis.T
            rows.append(turned)
            branches += [count, *[0] * (count - 1)]
        self.trainings = len(labels)
        self.runs = len(of)
        self.branched = len(of) > len(labels)
        """Whether any training has two branches: else the two noises are one."""
        places, place, several = np.unique(
            np.column_stack((points.log_n, points.log_d)), axis=0, return_inverse=True, return_counts=True
        )
        self.replicated = len(np.unique(places[several > 1, 0])) > 1
        """Whether two sizes or more have several seeds, which tell how noise changes with size."""
        # From the least size and number of tokens: there the terms are largest.
        self._from = points.log_n.min(), points.log_d.min()
        self._u, self._v = (places - self._from).T
        u, v = points.log_n - self._from[0], points.log_d - self._from[1]
        self._middle = u.mean(), v.mean()
        self.middle = float(self._from[0] + self._middle[0])
        """Log of the size that noise is given at."""
        turn = np.concatenate(rows)
        # All branches of a training have its size, and so have the rows that they are turned into.
        size = np.array([u[row != 0][0] for row in turn]) - self._middle[0]
        # Seeds of one size and the same budgets differ in their losses alone: of their rows the mean does for all.
        alike = np.column_stack((branches, size, turn @ np.eye(len(places))[place]))
        distinct, kind, self._seeds = np.unique(alike, axis=0, return_inverse=True, return_counts=True)
        self._branches, self._row_u, self._turn = distinct[:, 0], distinct[:, 1], distinct[:, 2:]
        loss = turn @ np.exp(points.log_l)
        self._loss = np.bincount(kind, loss) / self._seeds
        self._squares = np.bincount(kind, loss**2)
        self._ones = self._turn.sum(axis=1)

    def normal(
        self, log_alpha: Vector, log_beta: Vector, log_ratio: Vector, power: Vector, own_power: Vector
    ) -> Normal:
        """Normal equations at every candidate (m,); of exponents and of the noise there may be one (1,) for all.

        ``log_ratio``: natural logarithm of the variance of a whole training's mean over that of its branches' own,
        both times the number of branches, at the middle size: 0 where branches share no noise.
        ``power``: of size, that the variance of trainings is. ``own_power``: by how much that of branches exceeds it.
        """
        alpha, beta = np.exp(log_alpha)[:, None], np.exp(log_beta)[:, None]
        weights = self._weights(log_ratio, power, own_power)
        columns = self._columns(alpha, beta)
        weighted = columns * (weights * self._seeds)[:, None]
        return Normal(
            weighted @ columns.transpose(0, 2, 1),
            (weighted @ self._loss)[:, :3],
            weights @ self._squares,
            np.log(weights) @ self._seeds,
            np.concatenate((alpha * self._from[0], beta * self._from[1]), axis=1),
        )

    def matrices(self, log_exponents: Vector, noises: Vector) -> Vector:
        """(m, 5, 5): ``Normal.matrix`` of one pair of exponents (2,) at every noise (m, 3), at little cost."""
        (columns,) = self._columns(*np.exp(log_exponents)[:, None, None])
        products = (columns[:, None] * columns).reshape(25, -1)
        weights = self._weights(*noises.T) * self._seeds
        return np.asarray((weights @ products.T).reshape(-1, 5, 5))

    def _weights(self, log_ratio: Vector, power: Vector, own_power: Vector) -> Vector:
        """(m, rows), of one seed each."""
        shared = np.expm1(log_ratio)[:, None] / max(self._branches.max(), 1)
        weights: Vector = np.exp(-power[:, None] * self._row_u) / (
            np.exp(own_power[:, None] * self._row_u) + self._branches * shared
        )
        return weights

    def _columns(self, alpha: Vector, beta: Vector) -> Vector:
        """(m, 5, rows), of exponents (m, 1)."""
        x, y = np.exp(-alpha * self._u), np.exp(-beta * self._v)
        terms = np.stack((x, y, x * (self._u - self._middle[0]), y * (self._v - self._middle[1])), axis=1)
        columns = np.empty((len(terms), 5, len(self._ones)))
        columns[:, 0] = self._ones
        # One product of matrices in place of m small ones.
        columns[:, 1:] = (terms.reshape(-1, terms.shape[-1]) @ self._turn.T).reshape(len(terms), 4, -1)
        return columns

    def shared_of(self, log_ratio: ArrayLike) -> Vector:
        """Variance of a training's noise over that of a branch's own."""
        values: Vector = np.expm1(np.asarray(log_ratio, float)) / max(self._branches.max(), 1)
        return values
