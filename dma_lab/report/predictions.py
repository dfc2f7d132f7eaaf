"""What the fits say beyond the runs: best sizes and lengths, compute to match MHA, and the held-out check."""

from collections.abc import Callable, Sequence

from dma_lab.messages import UserError
from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.document import Block, Notice, Table
from dma_lab.report.growth import AHEAD, column, cost_of, growth, optima
from dma_lab.report.laws import BOOTSTRAP, Laws, vagueness
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.held_out import hold_out_largest
from dma_lab.scaling.joint import fit_joint
from dma_lab.scaling.optimum import compute_multiplier

_POINT = ("params_non_embedding", "tokens", "val_loss")


def predictions(runs: Sequence[Run], laws: Laws, progress: Callable[[str], None]) -> list[Block]:
    """Tables of what the runs of a cohort allow to be said, and plain refusals of what they do not."""
    return [*growth(runs, laws), *optima(runs, laws), *_to_match(runs, progress), *_held_out(runs, laws, progress)]


def _of(runs: Sequence[Run], backend: str) -> list[Run]:
    return [run for run in runs if run.backend == backend]


def _to_match(runs: Sequence[Run], progress: Callable[[str], None]) -> list[Block]:
    """How much of MHA's compute every other backend needs to come to MHA's loss."""
    others = [backend for backend in dict.fromkeys(run.backend for run in runs) if backend != BASELINE]
    baseline = _of(runs, BASELINE)
    if not others or not baseline:
        return [Notice(f"Compute multipliers need runs of {BASELINE} and of another backend; there are none of both.")]
    rows, refused = [], []
    for backend in others:
        progress(f"comparing laws of {backend} and {BASELINE}")
        try:
            rows.append(_multipliers(backend, baseline, _of(runs, backend)))
        except UserError as error:
            refused.append(f"{backend}: {error}")
    blocks: list[Block] = []
    if rows:
        blocks.append(
            Table(
                f"How much executed compute a backend needs to match the loss of compute-optimally trained "
                f"{BASELINE.upper()}, as a multiple of MHA's: below 1 × it needs less. At the largest budget run and, "
                "by extrapolation, at 10 and 100 times that. Both laws are fitted together to the points that both "
                "backends have, with one E, the text's; the bootstrap resamples the points of both alike.",
                ("attention", "points", "shared E", "at the largest", "at 10 ×", "at 100 ×"),
                rows,
                frozenset(("attention",)),
            )
        )
    if refused:
        blocks.append(
            Notice(f"Where the runs leave it open, no compute multiplier against {BASELINE} is given.", refused)
        )
    return blocks


def _multipliers(backend: str, baseline: Sequence[Run], own: Sequence[Run]) -> tuple[str, ...]:
    theirs, ours = ({run.tuned_point: run for run in side} for side in (baseline, own))
    shared = [point for point in theirs if point in ours]
    pair = {BASELINE: [theirs[point] for point in shared], backend: [ours[point] for point in shared]}
    params, tokens, loss = ({name: column(side, key) for name, side in pair.items()} for key in _POINT)
    joint = fit_joint({name: (params[name], tokens[name], loss[name]) for name in pair}, ("E",), bootstrap=BOOTSTRAP)
    for name, law in joint.laws.items():
        if vague := vagueness(law):
            raise UserError(f"of {name}, {vague}.")
    costs = {name: cost_of(side) for name, side in pair.items()}
    largest = max(column(pair[BASELINE], "flops_executed"))
    cells = []
    for ahead in AHEAD:
        found = compute_multiplier(
            joint.laws[backend], joint.laws[BASELINE], ahead * largest, costs[backend], costs[BASELINE]
        )
        cells.append(found.text)
    law = joint.laws[backend]
    assert law.intervals is not None
    low, high = law.intervals["E"]
    return backend, f"{len(shared)}", f"{law.E:.3g} [{low:.3g}, {high:.3g}]", *cells


def _held_out(runs: Sequence[Run], laws: Laws, progress: Callable[[str], None]) -> list[Block]:
    """The law of all sizes but the largest, held against the largest: where there is a law at all."""
    rows, refused = [], []
    for backend, law in laws.items():
        if not isinstance(law, ParametricFit):
            continue
        progress(f"holding out the largest size of {backend}")
        try:
            found = hold_out_largest(*(column(_of(runs, backend), name) for name in _POINT), bootstrap=BOOTSTRAP)
        except UserError as error:
            refused.append(f"{backend}: {error}")
            continue
        assert found.mean_error_interval is not None
        low, high = found.mean_error_interval
        rows.append(
            (
                backend,
                f"{found.params:,.0f}",
                f"{len(found.loss)}",
                f"{found.nats:.4f}",
                f"{found.relative:.1%}",
                f"{found.errors.mean():+.4f} [{low:+.4f}, {high:+.4f}]",
            )
        )
    blocks: list[Block] = []
    if rows:
        blocks.append(
            Table(
                "Held-out check: the law fitted to all sizes but the largest predicts the runs of the largest. Errors "
                "in nats a token; the interval is what the bootstrap of the smaller sizes leaves open.",
                ("attention", "largest size", "runs", "mean |error|", "relative", "mean error [95 %]"),
                rows,
                frozenset(("attention",)),
            )
        )
    if refused:
        blocks.append(Notice("No held-out check: too few runs below the largest size.", refused))
    return blocks
