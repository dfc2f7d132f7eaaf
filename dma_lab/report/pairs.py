"""Which runs of MHA a run is held against, and by how much two runs differ on the same documents."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dma_lab.attention.controls import telling
from dma_lab.evaluation.pairing import PairedDifference, paired_difference
from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.conditions import differing

Difference = PairedDifference | str
"""Of a run to MHA, or why there is none (empty for MHA itself)."""
Scores = dict[str, NDArray[Any]]
"""A run's validation.npz."""
Part = Callable[[Scores], tuple[NDArray[Any], NDArray[Any]]]
"""Of a run's scores the nats and the tokens of every document, (documents,), that are compared."""


def whole(scores: Scores) -> tuple[NDArray[Any], NDArray[Any]]:
    """Nats and tokens of every document, all of its tokens."""
    return scores["document_nats"], scores["document_tokens"]


def baselines_of(run: Run, runs: Sequence[Run], baseline: str = BASELINE) -> list[Run] | str:
    """The runs among ``runs`` that a run is held against, each of which equals it in everything but the attention, by
    value; or why there is none (empty for the baseline itself).

    First plain MHA, where what sets the run's options apart from it is in the run's name (``mha recency=slope``); then
    MHA with the run's own options, where that is another: their difference is the backend's alone.
    """
    if run.attention == baseline:
        plain = _plain(run, runs, baseline) if run.backend != baseline else None
        return "" if plain is None or run.summary.earlier_machines else [plain]
    like = baseline_of(run, runs, baseline)
    plain = None if run.summary.earlier_machines else _plain(run, runs, baseline)
    if plain is None:
        return like if isinstance(like, str) else [like]
    return [plain] if isinstance(like, str) or like.backend == plain.backend else [plain, like]


def _plain(run: Run, runs: Sequence[Run], baseline: str) -> Run | None:
    found = [
        other
        for other in runs
        if other.backend == baseline
        and not differing(run.conditions, other.conditions)
        and run.options.issuperset(_options_apart(run, other))
    ]
    return min(found, key=lambda other: _of_another_commit(run, other), default=None)


def baseline_of(run: Run, runs: Sequence[Run], baseline: str = BASELINE) -> Run | str:
    """The MHA run among ``runs`` that equals a run in everything but the attention, by value; or why there is none.

    Options that both attentions have (QK-norm, say) are equal too: else the difference could be theirs. Of several such
    runs the one of the run's own commit.
    """
    if run.summary.earlier_machines:
        return "several machines took its steps"
    candidates = [other for other in runs if other.attention == baseline]
    if not candidates:
        return f"no finished {baseline} run stands beside it"
    nearest = min(
        candidates,
        key=lambda other: (len(_apart(run, other)), other.backend != baseline, _of_another_commit(run, other)),
    )
    if apart := _apart(run, nearest):
        return f"no {baseline} run equals it in all but the attention: the nearest differs in {', '.join(apart)}"
    return nearest


def _apart(run: Run, baseline: Run) -> list[str]:
    options = [f"attention.{name}" for name in _options_apart(run, baseline)]
    return [*differing(run.conditions, baseline.conditions), *options]


def _options_apart(run: Run, baseline: Run) -> list[str]:
    """Options that both have and that differ, but for those that make a control of either; and those that make a
    variant of the baseline and that the run's backend does not have.
    """
    ours, theirs = run.config.attention, baseline.config.attention
    shared = (ours.keys() & theirs.keys()) - {"name", "package"} - telling(run.attention) - telling(baseline.attention)
    unlike = {str(name) for name in shared if ours[name] != theirs[name]}
    return sorted(unlike | (baseline.options - ours.keys()))


def _of_another_commit(run: Run, other: Run) -> bool:
    return other.summary.git_commit != run.summary.git_commit


def difference_of(run: Run, beside: Run, part: Part = whole) -> Difference:
    """The run's loss minus that of ``beside`` on a part of the tokens, document by document."""
    ours, theirs = run.scores, beside.scores
    if ours is None or theirs is None:
        return "validation.npz of one of the two is missing or unreadable"
    try:
        (nats, tokens), (baseline_nats, baseline_tokens) = part(ours), part(theirs)
        if not np.array_equal(tokens, baseline_tokens):
            return f"it and the {beside.attention.upper()} run scored different tokens"
        return paired_difference(nats, baseline_nats, tokens)
    except ValueError as error:  # a validation.npz whose arrays do not fit each other
        return str(error)
