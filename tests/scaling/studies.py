"""Studies of known truth, made as a ladder of runs is: seeds, branches of a training and documents, each with noise."""

from dataclasses import dataclass, replace

import numpy as np

BACKENDS = ("mha", "swa", "mla", "nsa", "dma")
DOCUMENTS = 60


@dataclass(frozen=True)
class Design:
    """Which sizes are trained on how many tokens."""

    name: str
    sizes: np.ndarray
    """(sizes,), rising."""
    tokens: np.ndarray
    """(size, budget): branches of one training."""
    middle: tuple[float, float]
    """Parameters and tokens whose terms of a law are 0.8 nats, or near that."""
    floor: tuple[float, float] = (0.96, 1.44)
    """Least and largest E, nats: a study's own lies between, and all its backends have it."""
    alpha: tuple[float, float] = (0.24, 0.36)
    """Likewise; backends differ by 5 %."""

    @property
    def largest(self) -> float:
        """FLOP, 6 N D."""
        return float(6 * (self.sizes[:, None] * self.tokens).max())

    @property
    def smallest(self) -> float:
        """Likewise."""
        return float(6 * (self.sizes[:, None] * self.tokens).min())


def _isoflop(name: str, sizes: list[float], flops: float, middle: tuple[float, float]) -> Design:
    return Design(name, np.array(sizes), np.array([0.5, 1, 2]) * flops / 6 / np.array(sizes)[:, None], middle)


LADDER = _isoflop("ladder", [14e3, 37e3, 83e3, 150e3, 440e3], 8e11, (150e3, 9e5))
STUDY = _isoflop("study", [14e3, 37e3, 83e3, 148e3], 1e11, (83e3, 2e5))
"""``sweep=study``: 2e11 FLOP with the output head and scores, half of the work at these sizes."""
STUDY_FLAT = replace(STUDY, name="study_flat", floor=(0.3, 1.6), alpha=(0.12, 0.2))
"""Over its tenfold of sizes so small an exponent hardly bends: many runs do not show where the loss would end."""
STUDY_GPU = Design(
    "study_gpu", np.array([1e6, 3e6, 10e6]), np.array([[80e6], [120e6], [200e6]]) * [0.25, 0.5, 1], middle=(3e6, 6e7)
)
"""``sweep=study_gpu``: 80, 40 and 20 tokens per parameter."""


@dataclass(frozen=True)
class Study:
    """Arrays by (backend, size, seed, budget)."""

    design: Design
    seeds: tuple[int, ...]
    """Of each size: of those in the arrays the first."""
    laws: np.ndarray
    """(backend, 5): E, A, B, alpha, beta."""
    loss: np.ndarray
    """(backend, size, seed, budget), nats per token."""
    document_tokens: np.ndarray
    differences: np.ndarray
    """(backend - 1, size, seed, budget, documents): summed over tokens, to mha of the same seed."""
    noise: np.ndarray
    """(backend,): standard deviation of a run's loss, nats, in the middle of the ladder."""
    fall: float
    """How many times as large it is at the smallest size as at the largest, between them a power of size."""
    of_documents: float
    """Standard deviation of what documents do to a run's loss, nats: in addition, and at all sizes."""
    true: np.ndarray
    """(backend - 1, size, budget): the difference over all seeds and documents."""

    def noise_at(self, backend: int, size: float) -> float:
        """Standard deviation of a run's loss at a size, nats."""
        of_luck = self.noise[backend] * _relative_noise(np.array(size), self.design.sizes, self.fall)
        return float(np.hypot(of_luck, self.of_documents))

    def points(self, backend: int) -> tuple[np.ndarray, ...]:
        """Parameters, tokens, losses and trainings of one backend's runs."""
        shape = self.loss[backend].shape
        trained = np.arange(shape[1]) < np.array(self.seeds)[:, None]
        columns = (
            self.design.sizes[:, None, None],
            self.design.tokens[:, None],
            self.loss[backend],
            np.arange(trained.size).reshape(*trained.shape, 1),
        )
        return tuple(np.broadcast_to(column, shape)[trained].ravel() for column in columns)


def _relative_noise(size: np.ndarray, sizes: np.ndarray, fall: float) -> np.ndarray:
    return (size / np.sqrt(sizes[0] * sizes[-1])) ** (-np.log(fall) / np.log(sizes[-1] / sizes[0]))


def make_study(
    seed: int,
    seeds: int | tuple[int, ...],
    design: Design = LADDER,
    *,
    noise: tuple[float, float] = (0.005, 0.05),
    shared: float = 0.9,
    of_document: float = 0.03,
    fall: float = 1.0,
) -> Study:
    """One study.

    Args:
        seed: of what is drawn.
        seeds: trainings per backend, of every size or of each.
        noise: least and largest standard deviation over trainings, nats; every backend has its own.
        shared: how much of its variance the branches of a training have in common.
        fall: the noise of the smallest size over that of the largest.
        of_document: standard deviation of what one document does to one training, nats per token.
    """
    generator = np.random.default_rng([seed, 27])
    by_size = (seeds,) * len(design.sizes) if isinstance(seeds, int) else seeds
    laws = np.empty((len(BACKENDS), 5))
    common = generator.uniform(0.8, 1.2, 5)
    # E and alpha: of 1.2 and of 0.3.
    for place, ends in ((0, np.array(design.floor) / 1.2), (3, np.array(design.alpha) / 0.3)):
        common[place] = np.interp(common[place], (0.8, 1.2), ends)
    for law in laws:
        wiggle = common * np.array([1.0, *generator.uniform(0.9, 1.1, 2), *generator.uniform(0.95, 1.05, 2)])
        law[[0, 3, 4]] = wiggle[[0, 3, 4]] * [1.2, 0.3, 0.3]
        law[1:3] = wiggle[1:3] * 0.8 * np.array(design.middle) ** law[3:]
    E, A, B, alpha, beta = laws.T[:, :, None, None]
    true = E + A * design.sizes[:, None] ** -alpha + B * design.tokens**-beta
    spread = np.exp(generator.uniform(*np.log(noise), len(BACKENDS)))[:, None, None, None]
    shape = (len(BACKENDS), len(by_size), max(by_size), design.tokens.shape[1])
    luck = (spread * _relative_noise(design.sizes, design.sizes, fall)[:, None, None]) * (
        np.sqrt(shared) * generator.normal(size=(*shape[:-1], 1)) + np.sqrt(1 - shared) * generator.normal(size=shape)
    )
    counts = np.round(generator.lognormal(5, 0.6, DOCUMENTS))
    own = of_document * generator.normal(size=(*shape, DOCUMENTS))
    of_backend = 0.02 * generator.normal(size=(len(BACKENDS), len(by_size), 1, 1, DOCUMENTS))
    run = true[:, :, None] + luck
    by_document = (run[..., None] + own + of_backend) * counts
    return Study(
        design,
        by_size,
        laws,
        run + own @ counts / counts.sum(),
        counts,
        by_document[1:] - by_document[:1],
        spread.ravel(),
        fall,
        float(of_document * np.sqrt(np.square(counts).sum()) / counts.sum()),
        true[1:] - true[:1],
    )
