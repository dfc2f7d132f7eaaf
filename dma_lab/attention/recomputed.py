"""Attention a chunk of queries at a time, so that the logits of one chunk exist at a time, both ways."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, computed again in the backward pass, which keeps the arguments alone."""
    if torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
    return function(*arguments)
