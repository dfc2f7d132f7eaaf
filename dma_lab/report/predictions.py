"""What the fits say beyond the runs: best sizes by three approaches, compute to match MHA, and the held-out check."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dma_lab.messages import UserError
from dma_lab.report.collect import Run
from dma_lab.report.comparison import BASELINE
from dma_lab.report.document import Block, Notice, Table
from dma_lab.report.laws import BOOTSTRAP, Laws, vagueness
from dma_lab.scaling.cost import Cost
from dma_lab.scaling.envelope import Curve, fit_envelope
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.held_out import hold_out_largest
from dma_lab.scaling.interval import percentile_interval
from dma_lab.scaling.isoflop import Parabola, budgets, fit_isoflop, fit_parabola
from dma_lab.scaling.joint import fit_joint
from dma_lab.scaling.optimum import compute_multiplier
from dma_lab.scaling.power_law import PowerLaw

_AHEAD = (1, 10, 100)
"""Budgets that multipliers are given at, in multiples of the largest one run."""

_POINT = ("params_non_embedding", "tokens", "val_loss")


def predictions(runs: Sequence[Run], laws: Laws, progress: Callable[[str], None]) -> list[Block]:
    """Tables of what the runs of a cohort allow to be said, and plain refusals of what they do not."""
    return [*_growth(runs, laws), *_to_match(runs, progress), *_held_out(runs, laws, progress)]


def parabolas_of(runs: Sequence[Run]) -> tuple[list[Parabola], list[str]]:
    """Of one backend's runs, by dense-equivalent compute: the parabolas that have a minimum, and why others have none.

    Budgets of one or two sizes are passed over: they were not run to be parabolas.
    """
    found, refused = [], []
    for own in budgets(_column(runs, "flops")):
        group = [runs[index] for index in own]
        if len({run.params for run in group}) < 3:
            continue
        try:
            found.append(fit_parabola(*(_column(group, name) for name in ("flops", *_POINT))))
        except UserError as error:
            refused.append(str(error))
    return found, refused


def _column(runs: Sequence[Run], name: str) -> list[Any]:
    return [run.summary[name] for run in runs]


def _of(runs: Sequence[Run], backend: str) -> list[Run]:
    return [run for run in runs if run.backend == backend]


def _growth(runs: Sequence[Run], laws: Laws) -> list[Block]:
    """How the best size and tokens grow with compute, by approaches 1, 2 and 3."""
    rows, refused = [], []
    for backend in dict.fromkeys(run.backend for run in runs):
        own = _of(runs, backend)
        parabolas, without = parabolas_of(own)
        refused += [f"{backend}, approach 2: {reason}" for reason in without]
        approaches = (("1, envelope", lambda own=own: _envelope(own)), ("2, isoFLOP", lambda p=parabolas: _isoflop(p)))
        for name, fit in approaches:
            try:
                rows.append((backend, name, *(_exponent(law) for law in fit())))
            except UserError as error:
                refused.append(f"{backend}, approach {name[0]}: {error}")
        if isinstance(law := laws.get(backend), ParametricFit):
            rows.append((backend, "3, law", *_by_law(law)))
    blocks: list[Block] = []
    if rows:
        blocks.append(
            Table(
                "How the best size and the best number of tokens grow with compute, N* ∝ C^a and D* ∝ C^b, by the "
                "envelope of each size's losses over its budgets, by the minima of isoFLOP parabolas (both at "
                "dense-equivalent compute) and by the law (at 6 N D); 95 % bootstrap intervals, a dash where the runs "
                "leave none.",
                ("attention", "approach", "a (size)", "b (tokens)"),
                rows,
                frozenset(("attention", "approach")),
            )
        )
    if refused:
        blocks.append(Notice("Approaches that these runs do not suffice for:", refused))
    return blocks


def _envelope(runs: Sequence[Run]) -> tuple[PowerLaw, PowerLaw]:
    """Every size and seed is a curve of the losses at the ends of its budgets."""
    curves = []
    for model, seed in dict.fromkeys((run.summary["model"], run.summary["seed"]) for run in runs):
        own = [run for run in runs if (run.summary["model"], run.summary["seed"]) == (model, seed)]
        own.sort(key=lambda run: run.summary["flops"])
        flops = np.array(_column(own, "flops"), float)
        if len(own) >= 2 and (np.diff(flops) > 0).all():
            tokens, loss = (np.array(_column(own, name), float) for name in ("tokens", "val_loss"))
            curves.append(Curve(own[0].params, flops, tokens, loss))
    if not curves:
        raise UserError("no size was run at two budgets, which a curve needs.")
    found = fit_envelope(curves, bootstrap=BOOTSTRAP)
    return found.params_law, found.tokens_law


def _isoflop(parabolas: Sequence[Parabola]) -> tuple[PowerLaw, PowerLaw]:
    found = fit_isoflop(parabolas, bootstrap=BOOTSTRAP)
    return found.params, found.tokens


def _exponent(law: PowerLaw) -> str:
    if law.exponent_interval is None or not np.isfinite(law.exponent_interval).all():
        return f"{law.exponent:.2f} -"
    return f"{law.exponent:.2f} [{law.exponent_interval[0]:.2f}, {law.exponent_interval[1]:.2f}]"


def _by_law(law: ParametricFit) -> tuple[str, str]:
    assert law.samples is not None
    alpha, beta = law.samples[:, 3], law.samples[:, 4]
    a, total = law.beta / (law.alpha + law.beta), alpha + beta
    cells = []
    for value, drawn in ((a, beta / total), (1 - a, alpha / total)):
        low, high = percentile_interval(drawn)
        cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]")
    return cells[0], cells[1]


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
    theirs, ours = ({run.point: run for run in side} for side in (baseline, own))
    shared = [point for point in theirs if point in ours]
    pair = {BASELINE: [theirs[point] for point in shared], backend: [ours[point] for point in shared]}
    params, tokens, loss = ({name: _column(side, key) for name, side in pair.items()} for key in _POINT)
    joint = fit_joint({name: (params[name], tokens[name], loss[name]) for name in pair}, ("E",), bootstrap=BOOTSTRAP)
    for name, law in joint.laws.items():
        if vague := vagueness(law):
            raise UserError(f"of {name}, {vague}.")
    costs = {
        name: Cost.of_runs(*(_column(side, key) for key in ("params_non_embedding", "tokens", "flops_executed")))
        for name, side in pair.items()
    }
    largest = max(_column(pair[BASELINE], "flops_executed"))
    cells = []
    for ahead in _AHEAD:
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
            found = hold_out_largest(*(_column(_of(runs, backend), name) for name in _POINT), bootstrap=BOOTSTRAP)
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
