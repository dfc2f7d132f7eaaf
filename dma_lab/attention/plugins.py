"""Backends by name: those of this folder, and those of other packages, loaded when they are first asked for."""

import functools
import inspect
import json
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import EntryPoint
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter

from dma_lab.attention.base import AttentionBackend, AttentionOptions, registered_backends
from dma_lab.messages import UserError
from dma_lab.plugins import offered_by, plugins
from dma_lab.settings import shown

_RESERVED = {"name", "package"}
"""What a config's attention node holds beside options."""


def backend_names() -> list[str]:
    """Every name that ``find_backend`` knows, whether or not it can load it."""
    return sorted({*registered_backends(), *plugins()})


def find_backend(name: str) -> type[AttentionBackend]:
    """The backend's class.

    Raises:
        UserError: there is none of that name or more than one, or the package it is of does not keep to the contract.
    """
    points, own = plugins().get(name, ()), registered_backends().get(name)
    if not points:
        if own is None:
            raise UserError(f"attention={shown(name)} is not known; choose one of: {', '.join(backend_names())}.")
        return own
    offered = [*(["dma_lab"] if own and own.__module__.startswith("dma_lab.") else []), *map(offered_by, points)]
    if len(offered) > 1:
        raise UserError(
            f"attention={name} is a backend of {' and of '.join(offered)}: give it another name in the latter, or "
            "uninstall that."
        )
    return _load(points[0])


@functools.cache
def _load(point: EntryPoint) -> type[AttentionBackend]:
    found: Any = None
    reason = None
    try:
        found = point.load()
    except Exception as error:  # whatever the package's import comes to
        reason = f"{point.value} cannot be imported ({type(error).__name__}: {shown(error, 200)})"
    reason = reason or _fault(found, point.value)
    if reason is not None:
        raise UserError(f"attention={point.name} of {offered_by(point)}: {reason}; mend or uninstall that package.")
    backend: type[AttentionBackend] = found
    return backend


def _fault(found: object, value: str) -> str | None:
    """Why what an entry point leads to is no backend."""
    if not (inspect.isclass(found) and issubclass(found, AttentionBackend)):
        return f"{value} is no subclass of dma_lab.attention.AttentionBackend"
    if missing := sorted(found.__abstractmethods__):
        return f"{value} lacks {', '.join(missing)}"
    options = getattr(found, "Options", None)
    if not (inspect.isclass(options) and issubclass(options, AttentionOptions) and is_dataclass(options)):
        return f"{value}.Options is no dataclass that extends dma_lab.attention.AttentionOptions"
    for option in fields(options):
        if option.name in _RESERVED:
            return f"its option {option.name} has a name that is taken"
        if option.default is MISSING and option.default_factory is MISSING:
            return f"its option {option.name} has no default"
    try:
        kinds, defaults = get_type_hints(options, include_extras=True), vars(options())
    except Exception as error:
        return f"{value}.Options cannot be read ({type(error).__name__}: {shown(error, 200)})"
    for name, default in defaults.items():
        try:  # as a config file would give it
            TypeAdapter(kinds[name]).validate_python(json.loads(json.dumps(default)), strict=True)
        except (TypeError, ValueError, PydanticUserError):
            return f"its option {name}={shown(default)} is not what it declares, or nothing that a config file can hold"
    return None
