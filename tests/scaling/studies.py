"""Studies of known truth, made as a ladder of runs is: seeds, branches of a training and documents, each with noise."""

from dataclasses import dataclass

import numpy as np

BACKENDS = ("mha", "swa", "mla", "nsa", "dma")
SIZES = np.array([14e3, 37e3, 83e3, 150e3, 440e3])
BUDGETS = np.array([0.5, 1.0, 2.0])
"""Branches of one training."""
FLOPS = 8e11
DOCUMENTS = 60


@dataclass(frozen=True)
class Study:
    """Arrays by (backend, size, seed, budget)."""

    laws: np.ndarray
    """(backend, 5): E, A, B, alpha, beta."""
    tokens: np.ndarray
    """(size, budget)"""
    loss: np.ndarray
    """(backend, size, seed, budget), nats per token."""
    document_tokens: np.ndarray
    differences: np.ndarray
    """(backend - 1, size, seed, budget, documents): summed over tokens, to mha of the same seed."""
    noise: np.ndarray
    """(backend,): standard deviation of a run's loss, nats, in the middle of the ladder."""
    fall: float
    """How many times as large it is at the smallest size as at the largest, between them a power of size."""
    true: np.ndarray
    """(backend - 1, size, budget): the difference over all seeds and documents."""

    def noise_at(self, backend: int, size: float) -> float:
        """Standard deviation of a run's loss at a size, nats."""
        return float(self.noise[backend] * _relative_noise(np.array(size), self.fall))

    def points(self, backend: int) -> tuple[np.ndarray, ...]:
        """Parameters, tokens, losses and trainings of one backend's runs."""
        shape = self.loss[backend].shape
        params = np.broadcast_to(SIZES[:, None, None], shape).ravel()
        tokens = np.broadcast_to(self.tokens[:, None], shape).ravel()
        training = np.repeat(np.arange(shape[0] * shape[1]), shape[2])
        return params, tokens, self.loss[backend].ravel(), training


def _relative_noise(size: np.ndarray, fall: float) -> np.ndarray:
    return (size / np.sqrt(SIZES[0] * SIZES[-1])) ** (-np.log(fall) / np.log(SIZES[-1] / SIZES[0]))


def make_study(
    seed: int,
    seeds: int,
    *,
    noise: tuple[float, float] = (0.005, 0.05),
    shared: float = 0.9,
    of_document: float = 0.03,
    fall: float = 1.0,
) -> Study:
    """One study.

    Args:
        seed: of what is drawn.
        seeds: trainings per backend and size.
        noise: least and largest standard deviation over trainings, nats; every backend has its own.
        shared: how much of its variance the branches of a training have in common.
        fall: the noise of the smallest size over that of the largest.
        of_document: standard deviation of what one document does to one training, nats per token.
    """
    generator = np.random.default_rng([seed, 27])
    tokens = BUDGETS * FLOPS / 6 / SIZES[:, None]
    laws = np.empty((len(BACKENDS), 5))
    common = generator.uniform(0.8, 1.2, 5)
    for law in laws:
        wiggle = common * np.array([1.0, *generator.uniform(0.9, 1.1, 2), *generator.uniform(0.95, 1.05, 2)])
        law[[0, 3, 4]] = wiggle[[0, 3, 4]] * [1.2, 0.3, 0.3]
        law[1:3] = wiggle[1:3] * [0.8 * 150e3 ** law[3], 0.8 * 9e5 ** law[4]]
    E, A, B, alpha, beta = laws.T[:, :, None, None]
    true = E + A * SIZES[:, None] ** -alpha + B * tokens**-beta
    spread = np.exp(generator.uniform(*np.log(noise), len(BACKENDS)))[:, None, None, None]
    shape = (len(BACKENDS), len(SIZES), seeds, len(BUDGETS))
    luck = (spread * _relative_noise(SIZES, fall)[:, None, None]) * (
        np.sqrt(shared) * generator.normal(size=(*shape[:-1], 1)) + np.sqrt(1 - shared) * generator.normal(size=shape)
    )
    counts = np.round(generator.lognormal(5, 0.6, DOCUMENTS))
    own = of_document * generator.normal(size=(*shape, DOCUMENTS))
    of_backend = 0.02 * generator.normal(size=(len(BACKENDS), len(SIZES), 1, 1, DOCUMENTS))
    run = true[:, :, None] + luck
    by_document = (run[..., None] + own + of_backend) * counts
    return Study(
        laws,
        tokens,
        run + own @ counts / counts.sum(),
        counts,
        by_document[1:] - by_document[:1],
        spread.ravel(),
        fall,
        true[1:] - true[:1],
    )
