"""Attention backends behind one contract (``base.AttentionBackend``), one file each.

A file in this folder that subclasses ``AttentionBackend`` with ``name="..."`` is a backend: nothing else needs to know.

Dimension letters: B batch, N sequence, H query heads, K key/value heads, D head dim, M model dim, W window.
"""

import functools
import importlib
import inspect
import pkgutil
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dma_lab.attention.base import AttentionBackend, AttentionFlops, registered_backends
from dma_lab.attention.rope import RopeBase
from dma_lab.messages import UserError
from dma_lab.settings import shown

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "AttentionBackend",
    "AttentionFlops",
    "RopeBase",
    "attention_options",
    "build_attention",
    "check_options",
    "registered_backends",
]

_SHAPE_ARGUMENTS = ("d_model", "n_heads", "n_kv_heads", "head_dim", "max_seq_len")


def build_attention(
    name: str, *, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int, max_seq_len: int, **options: Any
) -> AttentionBackend:
    """Build the attention backend ``name``.

    Args:
        name: one of ``registered_backends()``.
        d_model, n_heads, n_kv_heads, head_dim: the rung's shape.
        max_seq_len: longest sequence, in tokens, that ``forward`` and ``step`` will see.
        **options: what the backend's own config file lists.

    Raises:
        UserError: when there is no such backend or option, an option is of another type than the backend declares, or
            the backend cannot do this shape.
    """
    check_options(name, options)
    return registered_backends()[name](
        d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, max_seq_len=max_seq_len, **options
    )


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises UserError unless the backend ``name`` takes every one of ``options``, and each its value."""
    known = _checks(name)
    for option, value in options.items():
        if option not in known:
            raise UserError(f"attention.{shown(option)} is no option of attention={name}; it has: {', '.join(known)}.")
        try:
            known[option].validate_python(value, strict=True)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise UserError(f"attention.{option}={shown(value)}: {said[0].lower()}{said[1:]}.") from error


@functools.cache  # a model asks for every layer
def _checks(name: str) -> dict[str, TypeAdapter[Any]]:
    return {option: TypeAdapter(kind) for option, kind in attention_options(name).items()}


def attention_options(name: str) -> dict[str, Any]:
    """Options that the backend ``name`` takes, and their types. Raises UserError when there is no such backend."""
    backends = registered_backends()
    if name not in backends:
        raise UserError(f"attention={shown(name)} is not known; choose one of: {', '.join(sorted(backends))}.")
    parameters = inspect.signature(backends[name].__init__).parameters.values()
    return {option.name: option.annotation for option in parameters if option.name not in ("self", *_SHAPE_ARGUMENTS)}
