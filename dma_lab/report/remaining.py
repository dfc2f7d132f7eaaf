"""How long points of a sweep will take that nobody has begun, from what finished and running ones took.

A point's cost is ``(N + V · M) · tokens``, to which training FLOPs are proportional but for attention's scores; its
seconds per cost are those of the run that is nearest in cost, of the same backend where one was measured.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

_SAME_COST = ("seed=", "init.", "optimizer", "study=", "output_dir=", "logger", "trainer.log_every=", "data.")
"""How overrides begin that change no cost; composing a config takes 0.2 s."""


@dataclass(frozen=True)
class Cost:
    """What decides how long a run takes on one machine, but for its attention."""

    per_token: float
    """Parameters that multiply a token: N of the rung with MHA, and the head."""
    tokens: float

    @property
    def total(self) -> float:
        return self.per_token * self.tokens


Measured = tuple[Cost, str, float]
"""A run: its cost, its attention, the seconds that all of it takes."""


def cost_of(model: Mapping[str, Any], tokens: float) -> Cost:
    """Of a run of the rung ``model``, as its config has it."""
    return Cost(_matrices(model) + model["vocab_size"] * model["d_model"], tokens)


def _matrices(model: Mapping[str, Any]) -> int:
    """Parameters of the layers with MHA, but for the norms. (``model.ladder`` counts exactly, and imports PyTorch.)"""
    projections = 2 * (model["n_heads"] + model["n_kv_heads"]) * model["head_dim"]
    return int(model["n_layers"] * model["d_model"] * (projections + 3 * model["d_ff"]))


def seconds_of(overrides: str, measured: Sequence[Measured], after_tokens: float = 0.0) -> float | None:
    """What the point takes, or its branches that train on more than ``after_tokens``; None where nothing tells.

    Args:
        overrides: the point's.
        measured: runs to go by.
    """
    composed = _composed(" ".join(part for part in overrides.split() if not part.startswith(_SAME_COST)))
    if composed is None or not measured:
        return None
    attention, per_token, budget, branches, decay = composed
    seconds, shorter = 0.0, 0.0
    for multiple in branches:
        cost = Cost(per_token, multiple * budget)
        own = 1 - (1 - decay) * shorter / multiple  # the rest of its steps a shorter branch has taken
        shorter = multiple
        if cost.tokens > 1.001 * after_tokens:
            seconds += own * cost.total * _seconds_per_cost(cost, attention, measured)
    return seconds


def _seconds_per_cost(cost: Cost, attention: str, measured: Sequence[Measured]) -> float:
    own = [run for run in measured if run[1] == attention] or measured
    nearest = min(own, key=lambda run: abs(math.log(run[0].per_token / cost.per_token)))
    return nearest[2] / nearest[0].total


@functools.cache
def _composed(overrides: str) -> tuple[str, float, float, tuple[float, ...], float] | None:
    """Attention, cost per token, tokens, branches and share of the decay of a point; None where none can be made of it.

    Whatever Hydra raises: the point's own process will say it, as a sentence.
    """
    try:
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", overrides.split(), RunMode.RUN)
        rung = cost_of(config.model, 1)
        if config.tokens is not None:
            tokens = config.tokens
        elif config.flops is not None:
            tokens = config.flops / (6 * rung.per_token)
        else:
            tokens = config.tokens_per_parameter * _matrices(config.model)
        branches = tuple(sorted(config.schedule.branches or [1.0]))
        return config.attention.name, rung.per_token, tokens, branches, config.schedule.get("decay_fraction", 0.0)
    except Exception:
        return None
