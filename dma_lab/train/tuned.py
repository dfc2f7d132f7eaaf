"""What was tuned for each backend, as a file: ``report.py tune=FILE`` writes it, ``tuned=FILE`` takes it.

A backend has a multiplier of the recipe's rate (docs/recipe.md), at one size or at several, straight between them in
logarithms and level beyond; and, where others than its own settings were shown to be better, those.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from dma_lab.attention import later_options, tunable_options
from dma_lab.messages import UserError, print_once, warn_once
from dma_lab.run_summary import Tuned
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
class TunedChoice:
    """Between a backend's default settings and others that were tried."""

    __pydantic_config__ = STRICT
    options: dict[str, Any]
    """That replace the defaults; empty where none was shown to be better."""
    tried: Count
    """Settings, the default one included."""
    trainings: Count
    """That were spent on all of them."""
    said: str
    """How it was made, for a reader."""


@dataclass(frozen=True)
class TunedBackend:
    """What was found for one backend, by all its options."""

    __pydantic_config__ = STRICT
    overrides: str
    """That give it these, on a command line."""
    attention: dict[str, Any]
    points: Annotated[list[TunedPoint], Field(min_length=1)]
    """By size, rising."""
    trainings: Count
    """That were spent on it with these options."""
    notes: list[str]
    """What a reader must know of it: an optimum at the grid's edge, runs that diverged."""
    choice: TunedChoice | None
    """None where its settings were not tuned, and of settings that are not its default."""


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
    for backend in rates.backends:
        if any(low.parameters >= high.parameters for low, high in pairwise(backend.points)):
            raise UserError(
                f"tuned={file}: parameters of the points of `{shown(backend.overrides)}` do not rise; sort them."
            )
    return rates, f"{path.name}@{hashlib.blake2b(content, digest_size=4).hexdigest()}"


def names_tuned(name: str) -> bool:
    """Whether ``name`` is what ``read_tuned`` calls a file: a name and a digest."""
    return re.fullmatch(r"[^/]+@[0-9a-f]{8}", name) is not None


def tuned_for(
    rates: TunedRates,
    file: str,
    optimizer: str,
    attention: dict[str, Any],
    parameters: float,
    given: Collection[str] = (),
) -> Tuned:
    """What a backend with these options takes of the file at this size.

    The options that the file chose are taken unless one that tuning may choose is among ``given``, those that the user
    names: then the backend stays as it is, and has the rate that was tuned for it so. Either is said.

    Raises:
        UserError: the file has no such backend, or is of another optimizer.
    """
    if rates.optimizer != optimizer:
        raise UserError(f"tuned={file} was tuned with optimizer={rates.optimizer}, not {optimizer}; tune with that.")
    name = str(attention["name"])
    tunable = tunable_options(name)
    default = next((own for own in rates.backends if own.choice and _is_of(own, attention | tunable)), None)
    chosen = {} if default is None or default.choice is None else default.choice.options
    if chosen and attention | chosen != attention:
        words = " ".join(f"attention.{option}={value}" for option, value in chosen.items())
        if by_hand := [option for option in tunable if option in given]:
            warn_once(
                f"{', '.join(f'attention.{option}={attention[option]}' for option in by_hand)} is given, so {words}, "
                f"which tuned={file} chose for attention={name}, is not taken: the rate is that of what is given."
            )
        elif _is_of_defaults(attention, tunable):
            print_once(f"tuned={file}: attention={name} takes {words}, which was chosen for it.")
            attention = attention | chosen
    found = next((own for own in rates.backends if _is_of(own, attention)), None)
    if found is None:
        there = ", ".join(dict.fromkeys(str(backend.attention.get("name")) for backend in rates.backends))
        raise UserError(
            f"tuned={file} has no rate for attention={name} with these options (it has {there}); tune it first, or "
            "leave tuned null."
        )
    x = [math.log(point.parameters) for point in found.points]
    y = [math.log(point.multiplier) for point in found.points]
    multiplier = math.exp(float(np.interp(math.log(parameters), x, y)))
    # By value: options given by hand that are those chosen make the same run.
    takes = chosen if chosen and attention == attention | tunable | chosen else {}
    if default is not None and default.choice is not None and (takes or found is default):
        return Tuned(multiplier, takes, default.choice.trainings, [default.choice.said, *found.notes])
    return Tuned(multiplier, {}, found.trainings, found.notes)


def _is_of(backend: TunedBackend, attention: dict[str, Any]) -> bool:
    """Whether it is the backend with all these options; one that came after the file had its default then."""
    return later_options(str(attention["name"])) | backend.attention == attention


def _is_of_defaults(attention: dict[str, Any], tunable: dict[str, Any]) -> bool:
    return attention | tunable == attention
