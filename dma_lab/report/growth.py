"""How the best size and length of training grow with compute, and what they are at a budget."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dma_lab.messages import UserError
from dma_lab.report.collect import Run
from dma_lab.report.conditions import TUNED, without
from dma_lab.report.document import Block, Notice, Table
from dma_lab.report.laws import BOOTSTRAP, Laws
from dma_lab.scaling.cost import Cost
from dma_lab.scaling.envelope import Curve, fit_envelope
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.interval import Interval, percentile_interval
from dma_lab.scaling.isoflop import Parabola, budgets, fit_isoflop, fit_parabola
from dma_lab.scaling.optimum import compute_optimal
from dma_lab.scaling.power_law import PowerLaw

AHEAD = (1, 10, 100)
"""Budgets that are looked ahead to, in multiples of the largest one run."""


def column(runs: Sequence[Run], name: str) -> list[Any]:
    """One entry of every run's summary."""
    return [run.summary[name] for run in runs]


def cost_of(runs: Sequence[Run]) -> Cost:
    """Executed training FLOP a token by size, of one backend's runs."""
    return Cost.of_runs(*(column(runs, key) for key in ("params_non_embedding", "tokens", "flops_executed")))


def parabolas_of(runs: Sequence[Run]) -> tuple[list[Parabola], list[str]]:
    """Of one backend's runs, by dense-equivalent compute: the parabolas that have a minimum, and why others have none.

    Budgets of one or two sizes are passed over: they were not run to be parabolas.
    """
    found, refused = [], []
    for own in budgets(column(runs, "flops")):
        group = [runs[index] for index in own]
        if len({run.params for run in group}) < 3:
            continue
        try:
            found.append(
                fit_parabola(*(column(group, name) for name in ("flops", "params_non_embedding", "tokens", "val_loss")))
            )
        except UserError as error:
            refused.append(str(error))
    return found, refused


def growth(runs: Sequence[Run], laws: Laws) -> list[Block]:
    """How the best size and tokens grow with compute, by approaches 1, 2 and 3."""
    rows, refused = [], []
    for backend in dict.fromkeys(run.backend for run in runs):
        own = [run for run in runs if run.backend == backend]
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


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    """Of one backend's runs: every size's and seed's losses at the ends of its budgets, where it has two or more."""
    curves = []
    trained_alike: dict[Any, list[Run]] = {}
    for run in runs:
        trained_alike.setdefault(without(run.conditions, TUNED | {"tokens"}), []).append(run)
    for own in trained_alike.values():
        own.sort(key=lambda run: run.summary["flops"])
        flops = np.array(column(own, "flops"), float)
        if len(own) >= 2 and (np.diff(flops) > 0).all():
            tokens, loss = (np.array(column(own, name), float) for name in ("tokens", "val_loss"))
            curves.append(Curve(own[0].params, flops, tokens, loss))
    return curves


def _envelope(runs: Sequence[Run]) -> tuple[PowerLaw, PowerLaw]:
    curves = curves_of(runs)
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


def optima(runs: Sequence[Run], laws: Laws) -> list[Block]:
    """What every law would train for a budget, at executed compute as the backend's own runs count it."""
    largest = max(column(runs, "flops_executed"))
    rows: list[tuple[str, ...]] = []
    opens = set()
    for backend, law in laws.items():
        if not isinstance(law, ParametricFit):
            continue
        cost = cost_of([run for run in runs if run.backend == backend])
        opens.add(len(rows))
        for ahead in AHEAD:
            best = compute_optimal(law, ahead * largest, cost)
            rows.append(
                (
                    backend,
                    f"{best.flops:.2e}",
                    _with_interval(best.params, best.params_interval, ".2e"),
                    _with_interval(best.tokens, best.tokens_interval, ".2e"),
                    _with_interval(best.loss, best.loss_interval, ".3f"),
                )
            )
    if not rows:
        return []
    return [
        Table(
            "Compute-optimal size and tokens by each backend's law (approach 3), and the loss they come to, at the "
            "largest executed budget run and, by extrapolation, at 10 and 100 times that; 95 % bootstrap intervals.",
            ("attention", "executed FLOP", "parameters", "tokens", "loss"),
            rows,
            frozenset(("attention",)),
            frozenset(opens),
        )
    ]


def _with_interval(value: float, interval: Interval | None, digits: str) -> str:
    assert interval is not None, "laws of a report are bootstrapped"
    return f"{value:{digits}} [{interval[0]:{digits}}, {interval[1]:{digits}}]"
