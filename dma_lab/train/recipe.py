"""The recipe: the learning rate and the tokens per step that a run is given where nobody gives it any (docs/recipe.md).

Both are functions of N, the non-embedding parameters of the rung with MHA, so that every backend of a rung gets the
same, of D, the tokens of the budget, and of B, the tokens per step. From 84.9M parameters up they go through the points
of the paper's table (arXiv 2508.02124, table 4), straight between them in logarithms.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Law:
    """``constant · (N / 84.9M)^n · (D / 20 N)^d · (B / B(N, D))^b``."""

    constant: float
    n: float
    d: float = 0.0
    b: float = 0.0

    def __call__(self, parameters: float, tokens: float, batch_ratio: float = 1.0) -> float:
        """At N, D and B over the recipe's own B."""
        size, length = parameters / _SMALLEST_OF_THE_PAPER, tokens / (20 * parameters)
        return float(self.constant * size**self.n * length**self.d * batch_ratio**self.b)


_SMALLEST_OF_THE_PAPER = 84.9e6
LEARNING_RATE = {"adamw": Law(3e-3, -1 / 20), "muon": Law(3e-3, -1 / 6)}
"""Peak, below 84.9M; of Muon the matrices', whose updates are as large as AdamW's. Measured at 14k and 1m."""
TOKENS_PER_STEP = Law(0.128e6, 0.6)
"""Below 84.9M. Through the best batches measured at 14k, nano and 1m (docs/recipe.md)."""
_PAPER = np.array([(84.9e6, 3e-3, 131_072), (201.3e6, 2e-3, 196_608), (679.5e6, 1e-3, 393_216), (1409e6, 1e-3, 2**20)])
"""N, learning rate and tokens per step; batches in whole sequences of 2,048."""
_TOGETHER = 4
"""Sequences per step come in fours, which two and four devices share."""


def recipe_tokens_per_step(parameters: float, tokens: float, context: int) -> int:
    """B(N, D) in whole sequences of ``context`` tokens."""
    target = _papers(parameters, 2) if parameters > _SMALLEST_OF_THE_PAPER else TOKENS_PER_STEP(parameters, tokens)
    return _TOGETHER * max(1, round(target / context / _TOGETHER)) * context


def recipe_learning_rate(
    optimizer: str, parameters: float, tokens: float, tokens_per_step: float, context: int
) -> float:
    """The peak at N, D and B, to three digits."""
    law = LEARNING_RATE[optimizer]
    batch_ratio = tokens_per_step / recipe_tokens_per_step(parameters, tokens, context)
    if parameters > _SMALLEST_OF_THE_PAPER:
        rate = _papers(parameters, 1) * batch_ratio**law.b
    else:
        rate = law(parameters, tokens, batch_ratio)
    return float(f"{rate:.3g}")


def _papers(parameters: float, column: int) -> float:
    """The table at N: straight between its rows in logarithms, level beyond the last."""
    return math.exp(np.interp(math.log(parameters), np.log(_PAPER[:, 0]), np.log(_PAPER[:, column])))
