"""Sweeps of the learning rate as train.py leaves them: losses lie on parabolas whose lowest points a test knows."""

import math

import numpy as np

from tests.report.conftest import vouch

RATES = [0.004 * 1.5**step for step in range(-3, 4)]
RECIPE = {"nano": 0.00865, "440k": 0.0072}
"""By hand: 3e-3 (84.9M / N)^(1/6), docs/recipe.md."""
PARAMETERS = {"nano": 148_096, "440k": 443_424}
MULTIPLES = {("mha", "nano"): 0.5, ("mha", "440k"): 2 / 3, ("dma", "nano"): 0.75, ("dma", "440k"): 0.5}
BEST = {place: multiple * RECIPE[place[1]] for place, multiple in MULTIPLES.items()}


def write_sweep(
    add_run, attention, rungs=("nano", "440k"), best=BEST, rates=RATES, seeds=(0, 1), lowest=3.0, tokens=1_000_000,
    options=None, noise=1e-4,
):  # fmt: skip
    """Losses of seeds lie ``noise`` apart, and ``lowest`` at the best rate in their mean."""
    for rung in rungs:
        for rate in rates:
            for seed in seeds:
                loss = lowest + 0.1 * math.log(rate / best[attention, rung]) ** 2
                offset = noise * (seed - (len(seeds) - 1) / 2)
                add_swept(add_run, attention, rung, rate, loss + offset, seed=seed, tokens=tokens, options=options)


def add_swept(add_run, attention, rung, rate, loss=None, options=None, **more):
    """One run of a sweep."""
    settings = {"optimizer": {"name": "muon", "learning_rate": rate}, "attention": options or {}}
    shape = {"recipe_learning_rate": RECIPE.get(rung, 0.006), "params_non_embedding": PARAMETERS.get(rung, 1_000_000)}
    loss = {} if loss is None else {"val_loss": loss}
    return add_run(attention, rung, settings=settings, **shape, **loss, **more)


def shift(path, nats):
    """Raise every document's loss of a run."""
    scores = dict(np.load(path / "validation.npz"))
    scores["document_nats"] = scores["document_nats"] + nats * scores["document_tokens"]
    np.savez(path / "validation.npz", **scores)
    vouch(path)
