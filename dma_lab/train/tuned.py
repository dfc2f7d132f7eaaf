"""Learning rates tuned for each backend, as a file: ``report.py tune=FILE`` writes it, ``tuned=FILE`` takes it.

A backend has a multiplier of the recipe's rate (docs/recipe.md), at one size or at several, straight between them in
logarithms and level beyond.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from dma_lab.attention import later_options
from dma_lab.messages import UserError
from dma_lab.settings import STRICT, Count, Positive, shown


@dataclass(frozen=True)
class TunedPoint:
    """A multiplier of the recipe's rate at a size."""

    __pydantic_config__ = STRICT
    parameters: Positive
    """Non-embedding, of the rung with MHA."""
    multiplier: Positive
    interval: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None
    """95 %, by the noise over seeds; None at an edge of the rates tried, and where the noise leaves it open."""


@dataclass(frozen=True)
class TunedBackend:
    """What was chosen for one backend, by all its options."""

    __pydantic_config__ = STRICT
    overrides: str
    """That give it these, on a command line."""
    attention: dict[str, Any]
    points: Annotated[list[TunedPoint], Field(min_length=1)]
    trainings: Count
    """That were spent on it."""
    notes: list[str]
    """What a reader must know of it: an optimum at the grid's edge, runs that diverged."""


@dataclass(frozen=True)
class TunedRates:
    """A file of them."""

    __pydantic_config__ = STRICT
    optimizer: str
    backends: list[TunedBackend]


def read_tuned(file: str) -> tuple[TunedRates, str]:
    """The file's content, and its name with a digest of its bytes, which distinguishes runs.

    Raises:
        UserError: there is no such file, or it is no file of tuned rates.
    """
    path = Path(file)
    try:
        content = path.read_bytes()
        rates = TypeAdapter(TunedRates).validate_json(json.dumps(yaml.safe_load(content)))
    except OSError as error:
        raise UserError(f"tuned={file} cannot be read ({error.strerror}); `report.py tune=FILE` writes one.") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValidationError) as error:
        reason = shown(str(error).replace("\n", " "), most=120)
        raise UserError(
            f"tuned={file} is no file of tuned rates ({reason}); `report.py tune=FILE` writes one."
        ) from None
    return rates, f"{path.name}@{hashlib.blake2b(content, digest_size=4).hexdigest()}"


def names_tuned(name: str) -> bool:
    """Whether ``name`` is what ``read_tuned`` calls a file: a name and a digest."""
    return re.fullmatch(r"[^/]+@[0-9a-f]{8}", name) is not None


def tuned_multiplier(
    rates: TunedRates, file: str, optimizer: str, attention: dict[str, Any], parameters: float
) -> float:
    """What the recipe's rate is multiplied by for a backend with these options at this size.

    Raises:
        UserError: the file has no such backend, or is of another optimizer.
    """
    if rates.optimizer != optimizer:
        raise UserError(f"tuned={file} was tuned with optimizer={rates.optimizer}, not {optimizer}; tune with that.")
    for backend in rates.backends:
        # An option that came after the file had its default then.
        if later_options(str(attention["name"])) | backend.attention == attention:
            x = [math.log(point.parameters) for point in backend.points]
            y = [math.log(point.multiplier) for point in backend.points]
            return math.exp(float(np.interp(math.log(parameters), x, y)))
    there = ", ".join(dict.fromkeys(str(backend.attention.get("name")) for backend in rates.backends))
    raise UserError(
        f"tuned={file} has no rate for attention={attention['name']} with these options (it has {there}); tune it "
        "first, or leave tuned null."
    )
