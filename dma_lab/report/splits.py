"""What the mean over tokens hides: the difference to MHA by kind of target, at one rung and budget, over trainings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dma_lab.evaluation.splits import RARITIES
from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.comparison import OverTrainings, compare, compare_parts
from dma_lab.report.conditions import without
from dma_lab.report.document import Figure, Section, Series, Table
from dma_lab.report.pairs import Part, Scores, baselines_of, whole
from dma_lab.report.rates import precedence
from dma_lab.report.split_sizes import by_size, told
from dma_lab.scaling.replicates import MeanDifference

_SEED = frozenset({"seed"})
_TERMS = (
    "Mean difference to MHA over the trainings that share a point, by what is predicted. Units are trainings (seeds) "
    "and documents, as in the table over trainings; *: these few documents alone. A target repeats a bigram when it and"
    " the token before it stood side by side earlier in its document, within its window: what can be recalled from the "
    "context; how rare that bigram is, the number of scored documents that it stands in says. The tokens that it is "
    "predicted from are those of its own document in the window, where documents are "
    "masked. Of so many intervals per backend one in twenty misses by chance."
)
_KINDS = ("all targets", "that repeat a bigram", "all other")


@dataclass(frozen=True)
class Split:
    """A kind of target."""

    name: str
    part: Part
    tokens_seen: float | None = None
    """The middle of the band of tokens that it is predicted from, if it is one."""


def hidden_by_the_mean(finished: Sequence[Run]) -> Section | None:
    """The section of a cohort's finished runs; None where no run with split losses is paired with one of MHA's."""
    scored = [run for run in finished if run.scores is not None and "split_nats" in run.scores]
    cells = compare(scored).cells
    if not cells:
        return None
    shown, setting = _fullest(cells)
    point = without(shown[0].run.conditions, _SEED)
    context = shown[0].run.summary.context
    by_kind = [Split(name, part) for name, part in zip(_KINDS, (whole, _repeats, _others), strict=True)]
    bands, of_repeats = (_bands(shown[0].run, repeating) for repeating in (False, True))
    tabled = [*by_kind, *_rarities(), *_lengths(context), *bands]
    near_and_far = _near_and_far(context)
    splits = [*tabled, *of_repeats, *near_and_far]
    compared = compare_parts(scored, [split.part for split in splits])
    of_sizes = by_size(
        [
            (split.name, own)
            for split, own in zip(splits, compared, strict=True)
            if split in by_kind or split in near_and_far
        ]
    )
    found = {split.name: _at(own.cells, point) for split, own in zip(splits, compared, strict=True)}
    pairs = [(cell.run.backend, cell.beside) for cell in shown]
    baseline = baselines_of(shown[0].run, scored)[0]
    assert isinstance(baseline, Run)  # or it would have no cell
    rows = [_row(split, found[split.name], pairs, baseline) for split in tabled]
    columns = (
        "targets",
        "tokens",
        "share",
        "documents",
        "MHA's loss",
        *(f"{backend} − {'MHA' if beside == BASELINE else beside} [95 %]" for backend, beside in pairs),
    )
    about = (
        f"Rung {shown[0].run.rung}, {shown[0].run.summary.tokens:,} tokens{setting}, {_seeds(shown)}, contexts of "
        f"{context:,}"
    )
    return Section(
        "What the mean hides",
        [
            _TERMS,
            Table(
                f"{about}. Loss in nats per token.",
                columns,
                [row for row in rows if row],
                frozenset(("targets",)),
                title="Difference to MHA by kind of target",
                unit="trainings (seeds), crossed with documents; counts and MHA's loss are of one training",
            ),
            *([of_sizes] if of_sizes else []),
            _figure("gap", "Loss − MHA's by the tokens that a target is predicted from", about, bands, found),
            _figure("gap-repeats", "The same, of targets that repeat a bigram", about, of_repeats, found),
        ],
    )


def _fullest(cells: Sequence[OverTrainings]) -> tuple[list[OverTrainings], str]:
    """Of all points (rung and budget) that which most backends share; of several that of most compute, and of several
    rates there the one that precedes (``precedence``). And which one, where there are several."""
    points: dict[Any, list[OverTrainings]] = {}
    for cell in cells:
        points.setdefault(without(cell.run.conditions, _SEED), []).append(cell)
    fullness = {point: (len(own), max(cell.run.summary.flops for cell in own)) for point, own in points.items()}
    as_full = [points[point] for point, own in fullness.items() if own == max(fullness.values())]
    best = max(as_full, key=lambda own: max(precedence(cell.run) for cell in own))
    return best, f", {best[0].run.setting}" if len(as_full) > 1 else ""


def _at(cells: Sequence[OverTrainings], point: frozenset[tuple[str, Any]]) -> dict[tuple[str, str], MeanDifference]:
    return {
        (cell.run.backend, cell.beside): cell.difference
        for cell in cells
        if without(cell.run.conditions, _SEED) == point
    }


def _repeats(scores: Scores) -> tuple[NDArray[Any], NDArray[Any]]:
    return scores["split_nats"][..., 1].sum(1), scores["split_tokens"][..., 1].sum(1)


def _others(scores: Scores) -> tuple[NDArray[Any], NDArray[Any]]:
    return scores["split_nats"][..., 0].sum(1), scores["split_tokens"][..., 0].sum(1)


def _bands_summed(bands: slice, scores: Scores) -> tuple[NDArray[Any], NDArray[Any]]:
    # Nothing where another run's contexts are too short for it.
    return scores["split_nats"][:, bands].sum((1, 2)), scores["split_tokens"][:, bands].sum((1, 2))


def _repeats_summed(bands: slice, scores: Scores) -> tuple[NDArray[Any], NDArray[Any]]:
    return scores["split_nats"][:, bands, 1].sum(1), scores["split_tokens"][:, bands, 1].sum(1)


def _length(low: int, high: float, scores: Scores) -> tuple[NDArray[Any], NDArray[Any]]:
    nats, tokens = whole(scores)
    within = (tokens >= low) & (tokens <= high)
    return nats * within, tokens * within


def _of_rarity(rarity: int, scores: Scores) -> tuple[NDArray[Any], NDArray[Any]]:
    if "repeat_nats" not in scores:  # a run from before these were kept
        return np.zeros(1), np.zeros(1, dtype=np.int64)
    return scores["repeat_nats"][:, rarity], scores["repeat_tokens"][:, rarity]


def _rarities() -> list[Split]:
    return [
        Split(f"that repeat a bigram of {count} document{'' if count == '1' else 's'}", partial(_of_rarity, rarity))
        for rarity, count in enumerate(RARITIES)
    ]


def _bands(run: Run, repeating: bool) -> list[Split]:
    """Powers of two; the whole context, alone in its band where it is one, goes with the band before."""
    assert run.scores is not None
    context, count = run.summary.context, run.scores["split_tokens"].shape[1]
    part, kind = (_repeats_summed, ", repeating") if repeating else (_bands_summed, "")
    if count > 1 and 2 ** (count - 1) == context:
        count -= 1
    found = []
    for band in range(count):
        last = band == count - 1
        low, high = 2**band, context if last else 2 ** (band + 1) - 1
        name = f"predicted from {low:,}{f' to {high:,} tokens' if high > low else ' token'}{kind}"
        bands = slice(band, None if last else band + 1)
        found.append(Split(name, partial(part, bands), float(np.sqrt(low * high))))
    return found


def _near_and_far(context: int) -> list[Split]:
    """Targets predicted from few tokens and from many: under a quarter of the context, and half of it or more."""
    near, far = (max(1, context // part).bit_length() - 1 for part in (4, 2))
    return [
        Split(f"from fewer than {2**near:,} tokens", partial(_bands_summed, slice(0, near))),
        Split(f"from {2**far:,} tokens or more", partial(_bands_summed, slice(far, None))),
    ]


def _lengths(context: int) -> list[Split]:
    edges = [0, context // 4, context // 2, context]
    named = [
        Split(f"in documents of {low + 1:,} to {high:,} tokens", partial(_length, low + 1, high))
        for low, high in pairwise(edges)
    ]
    return [*named, Split(f"in documents of more than {context:,} tokens", partial(_length, context + 1, np.inf))]


def _row(
    split: Split, found: dict[tuple[str, str], MeanDifference], pairs: Sequence[tuple[str, str]], baseline: Run
) -> tuple[str, ...] | None:
    """None of a kind without a target."""
    assert baseline.scores is not None
    nats, tokens = split.part(baseline.scores)
    if not tokens.sum():
        return None
    share = tokens.sum() / whole(baseline.scores)[1].sum()
    differences = (told(found[pair]) if pair in found else "-" for pair in pairs)
    documents = f"{(tokens > 0).sum():,}"
    return split.name, f"{tokens.sum():,}", f"{share:.1%}", documents, f"{nats.sum() / tokens.sum():.4f}", *differences


def _figure(
    slug: str, title: str, about: str, bands: Sequence[Split], found: dict[str, dict[tuple[str, str], MeanDifference]]
) -> Figure:
    """To plain MHA, where a backend is paired with that."""
    series = []
    first: dict[str, str] = {}
    for split in bands:
        for backend, beside in found[split.name]:
            first.setdefault(backend, beside)
    for backend, beside in first.items():
        own = [(split, found[split.name][backend, beside]) for split in bands if (backend, beside) in found[split.name]]
        x = [split.tokens_seen or 0.0 for split, _ in own]
        y = [difference.difference for _, difference in own]
        hover = [f"{backend}, {split.name}: {told(difference)}" for split, difference in own]
        intervals = [difference.interval for _, difference in own]
        if all(interval is not None for interval in intervals):
            low, high = zip(*(interval for interval in intervals if interval is not None), strict=True)
            series.append(Series(backend, "band", x, list(low), list(high)))
        series += [Series(backend, "line", x, y), Series(backend, "points", x, y, hover=hover)]
    return Figure(
        slug,
        title,
        f"{about}. Bands: 95 % over trainings and documents, where there are seeds. At 0 a backend loses as MHA does.",
        "tokens that a target is predicted from",
        "loss − MHA's (nats per token)",
        series,
        x_log=True,
        unit="trainings (seeds), crossed with documents",
    )


def _seeds(cells: Sequence[OverTrainings]) -> str:
    counts = sorted({cell.difference.seeds for cell in cells})
    return "1 seed" if counts == [1] else f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"
