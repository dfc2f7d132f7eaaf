"""What the fits say beyond the runs: best sizes and lengths, compute to match MHA, and the held-out check."""

from dma_lab.report.collect import BASELINE
from dma_lab.report.document import Block, Notice, Table
from dma_lab.report.growth import growth, optima
from dma_lab.report.statistics import Statistics

_NEAR = 1.1
"""Beyond what was run is what exceeds it by more than this factor: less, no law tells."""


def predictions(found: Statistics) -> list[Block]:
    """Tables of what the runs of a cohort allow to be said, and plain refusals of what they do not."""
    best = [*optima(found.optima), *_beyond_the_runs(found)]
    return [*growth(found.exponents, found.no_exponents), *best, *_to_match(found), *_held_out(found)]


def _beyond_the_runs(found: Statistics) -> list[Block]:
    """Of which backends the best size or tokens at the largest budget are such as none of their runs has."""
    said = []
    for backend, (best, *_) in found.optima.items():
        own = [run.summary for run, _ in found.comparison.pairs if run.backend == backend]
        trained = {
            "parameters": (best.params, [summary.params_non_embedding for summary in own]),
            "tokens": (best.tokens, [summary.tokens for summary in own]),
        }
        beyond = [
            f"{value:.2e} {what}, where {min(values):.2e} to {max(values):.2e} were run"
            for what, (value, values) in trained.items()
            if value > _NEAR * max(values) or value < min(values) / _NEAR
        ]
        if beyond:
            said.append(f"{backend}: {'; '.join(beyond)}")
    if not said:
        return []
    return [
        Notice(
            "Even at the largest budget run the best size or number of tokens is one that was not trained: losses "
            "there, and compute to match MHA, rest on the form of the law.",
            said,
        )
    ]


def _to_match(found: Statistics) -> list[Block]:
    """How much of MHA's compute every other backend needs to come to MHA's loss."""
    if BASELINE not in found.laws or len(found.laws) < 2:
        return [Notice(f"Compute multipliers need runs of {BASELINE} and of another backend; there are none of both.")]
    trainings = found.trainings
    rows = []
    plain = {(backend, BASELINE): match for backend, match in found.to_match.items()}
    named = bool(found.beside_variants)
    for (backend, beside), match in sorted((plain | found.beside_variants).items()):
        assert match.law.intervals is not None
        low, high = match.law.intervals["E"]
        cells = [multiplier.text for multiplier in (match.over[len(match.over) // 2], *match.multipliers)]
        of_both = f"{trainings[backend]} / {trainings[beside]}", f"[{low:.3g}, {high:.3g}]"
        rows.append((backend, *([beside] if named else []), *of_both, *cells))
    blocks: list[Block] = []
    if rows:
        blocks.append(
            Table(
                f"How much executed compute a backend needs to match the loss of compute-optimally trained "
                f"{BASELINE.upper()}, as a multiple of MHA's: below 1 × it needs less. In the (geometric) middle "
                "of MHA's budgets, at the largest and, by extrapolation, at 10 and 100 times that. Both laws share one "
                "E, the text's. The middle and 95 % of "
                "what the trainings of both leave open, whose luck is taken to be independent."
                + (" Beside: what stands for MHA there." if named else ""),
                (
                    *("attention", *(["beside"] if named else []), "trainings / MHA's", "shared E"),
                    *("in the middle", "at the largest", "at 10 ×", "at 100 ×"),
                ),
                rows,
                frozenset(("attention", "beside")),
                title="Compute to match MHA",
                unit="trainings of both backends",
            )
        )
    if found.no_match:
        blocks.append(
            Notice(f"Where the runs leave it open, no compute multiplier against {BASELINE} is given.", found.no_match)
        )
    return blocks


def _held_out(found: Statistics) -> list[Block]:
    """The law of all sizes but the largest, held against the largest: where there is a law at all."""
    rows = []
    for backend, held in found.held_out.items():
        low, high = held.mean_error_interval
        rows.append(
            (
                backend,
                f"{held.params:,.0f}",
                f"{len(held.loss)}",
                f"{held.nats:.4f}",
                f"{held.relative:.1%}",
                f"{held.errors.mean():+.4f} [{low:+.4f}, {high:+.4f}]",
            )
        )
    blocks: list[Block] = []
    if rows:
        blocks.append(
            Table(
                "Held-out check: the law fitted to all sizes but the largest predicts the runs of the largest. Errors "
                "in nats per token; a 95 % interval without 0 says that the law does not go on to the largest size.",
                ("attention", "largest size", "runs", "mean |error|", "relative", "mean error [95 %]"),
                rows,
                frozenset(("attention",)),
                title="The largest size, held out",
                unit="trainings; errors are means over the largest size's runs",
            )
        )
    if found.no_held_out:
        blocks.append(Notice("No held-out check: too few runs below the largest size.", found.no_held_out))
    return blocks
