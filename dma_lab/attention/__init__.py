"""Attention backends behind one contract (``base.AttentionBackend``), one file each.

A file in this folder that subclasses ``AttentionBackend`` with ``name="..."`` is a backend: nothing else needs to know.
Other packages offer theirs as entry points (``dma_lab/plugins.py``).

Dimension letters: B batch, N sequence, H query heads, K key/value heads, D head dim, M model dim, W window.
"""

import importlib
import pkgutil
from typing import Any

from dma_lab.attention.base import (
    AttentionBackend,
    AttentionFlops,
    AttentionOptions,
    AttentionShape,
    causal_pairs,
    registered_backends,
)
from dma_lab.attention.config import AttentionConfig, attention_options, later_options, tunable_options
from dma_lab.attention.heads import HeadProjections, KeyValueCache
from dma_lab.attention.plugins import backend_names, find_backend
from dma_lab.attention.position_lifetimes import PositionLifetimes
from dma_lab.attention.rope import RopeBase

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "AttentionBackend",
    "AttentionConfig",
    "AttentionFlops",
    "AttentionOptions",
    "AttentionShape",
    "HeadProjections",
    "KeyValueCache",
    "PositionLifetimes",
    "RopeBase",
    "attention_options",
    "backend_names",
    "build_attention",
    "causal_pairs",
    "find_backend",
    "later_options",
    "registered_backends",
    "tunable_options",
]


def build_attention(
    name: str, *, d_model: int, n_heads: int, n_kv_heads: int, head_dim: int, max_seq_len: int, **options: Any
) -> AttentionBackend:
    """Build the attention backend ``name``.

    Args:
        name: one of ``backend_names()``.
        d_model, n_heads, n_kv_heads, head_dim, max_seq_len: as in ``AttentionShape``.
        **options: what the backend's own config file lists.

    Raises:
        UserError: when there is no such backend or option, an option is of another type than the backend declares, or
            the backend cannot do this shape.
    """
    config = AttentionConfig.of(name, options)
    return config.build(AttentionShape(d_model, n_heads, n_kv_heads, head_dim, max_seq_len))
