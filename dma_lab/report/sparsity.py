"""Whether contexts are long enough for sparsity to act: how many windows they are, how many queries lie past one."""

from collections.abc import Sequence

from dma_lab.attention.dma import DynamicMaskAttention
from dma_lab.attention.dsa import DeepSeekSparseAttention
from dma_lab.attention.moba import MixtureOfBlockAttention
from dma_lab.attention.nsa import NativeSparseAttention
from dma_lab.attention.swa import SlidingWindowAttention
from dma_lab.model.accounting import keys_per_query
from dma_lab.report.collect import Run
from dma_lab.report.document import Notice
from dma_lab.report.layers import attention_layers

_MATCHED = 0.05
"""By how much keys per query may differ and be called as many."""
_WINDOWS = 4.0
"""Contexts below so many windows say little of what dropping keys costs."""


def window_of(run: Run) -> int | None:
    """Keys from which on a query of a sparse layer drops some: of NSA and MoBA those of its selected blocks; None of a
    run that drops none, or whose layers are not known."""
    for layer in attention_layers(run):
        match layer:
            case SlidingWindowAttention() | DynamicMaskAttention():
                return layer.window + layer.sinks
            case NativeSparseAttention():
                return layer.selected_blocks * layer.selected_block
            case DeepSeekSparseAttention():
                return layer.top_k
            case MixtureOfBlockAttention():
                return layer.selected_blocks * layer.block
    return None


def mean_keys_per_query(run: Run) -> float | None:
    """That a query attends to, the mean over a full context and all layers; None where the layers are not known, or
    read no keys.
    """
    layers = attention_layers(run)
    return keys_per_query(layers, run.summary.context) if layers else None


def keys_said(finished: Sequence[Run]) -> str | None:
    """Whether what is compared reads as many keys; None of fewer than two backends that drop any."""
    said: dict[str, dict[str, float]] = {}
    for run in finished:
        if window_of(run) is not None and (keys := mean_keys_per_query(run)) is not None:
            said.setdefault(run.rung, {})[run.backend] = keys
    rungs = {rung: own for rung, own in said.items() if len(own) > 1}
    if not rungs:
        return None
    matched = all(max(own.values()) <= (1 + _MATCHED) * min(own.values()) for own in rungs.values())
    listed = "; ".join(
        f"at {rung} {', '.join(f'{backend} {keys:.1f}' for backend, keys in own.items())}"
        for rung, own in rungs.items()
    )
    start = (
        "Those that drop keys read as many per query"
        if matched
        else "Those that drop keys do not read as many per query, so that a difference between them is of that, too"
    )
    return f"{start}, in the mean over a full context and all layers: {listed}."


def context_in_windows(finished: Sequence[Run]) -> str | Notice | None:
    """What a cohort's finished runs can say of dropping keys; None where none of them drops any."""
    said: dict[str, float] = {}
    for run in finished:
        window, context = window_of(run), run.summary.context
        if window is not None:
            windows, past = context / window, max(0.0, 1 - window / context)
            line = (
                f"{run.backend} at {run.rung}: a context of {context:,} is {windows:.3g} windows of {window:,}, and "
                f"{past:.0%} of queries have more keys before them than that"
            )
            said[line] = windows
    if not said:
        return None
    if min(said.values()) >= _WINDOWS:
        return f"Contexts are at least {_WINDOWS:.0f} windows long. {'; '.join(said)}."
    few = sum(windows < _WINDOWS for windows in said.values())
    return Notice(
        f"Sparsity hardly acts: in {few} of {len(said)} combinations of backend and rung the context is fewer than "
        f"{_WINDOWS:.0f} windows long, so what they say of dropping keys is of few queries, and of none in documents "
        "shorter than a window; trainer.context and attention.window set it.",
        list(said),
    )
