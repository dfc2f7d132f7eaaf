"""How the best size and length of training grow with compute, and what they are at a budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dma_lab.messages import UserError
from dma_lab.report.collect import Run
from dma_lab.report.conditions import TUNED, without
from dma_lab.report.document import Block, Notice, Table
from dma_lab.report.laws import Laws, counts_of, points_of
from dma_lab.scaling.cost import Cost
from dma_lab.scaling.envelope import Curve, fit_envelope
from dma_lab.scaling.interval import Interval, percentile_interval
from dma_lab.scaling.isoflop import Parabola, budgets, fit_isoflop, fit_parabola
from dma_lab.scaling.optimum import Optimum
from dma_lab.scaling.power_law import PowerLaw
from dma_lab.scaling.trainings import TrainingsFit, fit_trainings

AHEAD = (1, 10, 100)
"""Budgets that are looked ahead to, in multiples of the largest one run."""


def cost_of(runs: Sequence[Run]) -> Cost:
    """Executed training FLOP per token by size, of one backend's runs."""
    tokens, executed = [run.summary.tokens for run in runs], [run.summary.flops_executed for run in runs]
    return Cost.of_runs([run.params for run in runs], tokens, executed)


def parabolas_of(runs: Sequence[Run]) -> tuple[list[Parabola], list[str]]:
    """Of one backend's runs, by dense-equivalent compute: the parabolas that have a minimum, and why others have none.

    Budgets of one or two sizes are passed over: they were not run to be parabolas.
    """
    found, refused = [], []
    for own in budgets([run.summary.flops for run in runs]):
        group = [runs[index] for index in own]
        if len({run.params for run in group}) < 3:
            continue
        try:
            found.append(
                fit_parabola(
                    [run.summary.flops for run in group],
                    [run.params for run in group],
                    [run.summary.tokens for run in group],
                    [run.loss for run in group],
                )
            )
        except UserError as error:
            refused.append(str(error))
    return found, refused


@dataclass(frozen=True)
class Exponents:
    """Of N* ∝ C^a and D* ∝ C^b of one backend, by one approach."""

    backend: str
    approach: str
    a: float
    b: float
    intervals: tuple[Interval, Interval] | None = None
    """95 %, of a and of b; the law's alone: what moves the minima of the others is bias, too, which no resampling
    shows."""


def exponents_of(runs: Sequence[Run], laws: Laws) -> tuple[list[Exponents], list[str]]:
    """How the best size and tokens grow with compute, by approaches 3, 2 and 1; and why, where there is none."""
    found, refused = [], []
    for backend in dict.fromkeys(run.backend for run in runs):
        own = [run for run in runs if run.backend == backend]
        if isinstance(law := laws.get(backend), TrainingsFit):
            found.append(_by_law(backend, "3, law", law))
            _, tokens, loss, training = points_of(own)
            for count, params in list(counts_of(own).items())[1:]:
                try:
                    other = fit_trainings(params, tokens, loss, training, elsewhere=law.elsewhere)
                    found.append(_by_law(backend, f"3, law, N {count}", other))
                except UserError as error:
                    refused.append(f"{backend}, approach 3, N {count}: {error}")
        parabolas, without = parabolas_of(own)
        refused += [f"{backend}, approach 2: {reason}" for reason in without]
        approaches: tuple[tuple[str, Callable[[], tuple[PowerLaw, PowerLaw]]], ...] = (
            ("2, isoFLOP", partial(_isoflop, parabolas)),
            ("1, envelope", partial(_envelope, own)),
        )
        for name, fit in approaches:
            try:
                of_size, of_tokens = fit()
                found.append(Exponents(backend, name, of_size.exponent, of_tokens.exponent))
            except UserError as error:
                refused.append(f"{backend}, approach {name[0]}: {error}")
    return found, refused


def growth(exponents: Sequence[Exponents], refused: Sequence[str]) -> list[Block]:
    """The exponents as a table, and what is refused."""
    blocks: list[Block] = []
    if exponents:
        blocks.append(
            Table(
                "How the best size and the best number of tokens grow with compute, N* ∝ C^a and D* ∝ C^b: by the law "
                "(at 6 N D), which is to be preferred, N counted without embeddings and otherwise, since the exponents "
                "depend on it; by the minima of isoFLOP parabolas, which miss the exponents "
                "even without noise wherever a loss is no parabola in log N and sizes do not lie evenly about the "
                "minimum (arXiv 2603.22339); by the envelope of each size's losses over its budgets, which knows "
                "handovers between the sizes run alone (both at dense-equivalent compute). The law's 95 % intervals "
                "are over trainings; none is given of the others, whose bias it would leave out.",
                ("attention", "approach", "a (size)", "b (tokens)"),
                [(own.backend, own.approach, *_texts(own)) for own in exponents],
                frozenset(("attention", "approach")),
                title="How the best size and tokens grow",
                unit="trainings, of the law's intervals; none of the other approaches'",
            )
        )
    if refused:
        blocks.append(Notice("Approaches that these runs do not suffice for:", refused))
    return blocks


def _texts(own: Exponents) -> tuple[str, str]:
    if own.intervals is None:
        return f"{own.a:.2f} -", f"{own.b:.2f} -"
    a, b = (
        f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, (low, high) in zip((own.a, own.b), own.intervals, strict=True)
    )
    return a, b


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    """Of one backend's runs: every size's and seed's losses at the ends of its budgets, where it has two or more."""
    curves = []
    trained_alike: dict[Any, list[Run]] = {}
    for run in runs:
        trained_alike.setdefault(without(run.conditions, TUNED | {"tokens"}), []).append(run)
    for own in trained_alike.values():
        own.sort(key=lambda run: run.summary.flops)
        flops = np.array([run.summary.flops for run in own], float)
        if len(own) >= 2 and (np.diff(flops) > 0).all():
            tokens, loss = np.array([run.summary.tokens for run in own], float), np.array([run.loss for run in own])
            curves.append(Curve(own[0].params, flops, tokens, loss))
    return curves


def _envelope(runs: Sequence[Run]) -> tuple[PowerLaw, PowerLaw]:
    curves = curves_of(runs)
    if not curves:
        raise UserError("no size was run at two budgets, which a curve needs.")
    found = fit_envelope(curves)
    return found.params_law, found.tokens_law


def _isoflop(parabolas: Sequence[Parabola]) -> tuple[PowerLaw, PowerLaw]:
    found = fit_isoflop(parabolas)
    return found.params, found.tokens


def _by_law(backend: str, approach: str, law: TrainingsFit) -> Exponents:
    assert law.samples is not None
    alpha, beta = law.samples[:, 3], law.samples[:, 4]
    a, total = law.beta / (law.alpha + law.beta), alpha + beta
    return Exponents(
        backend, approach, a, 1 - a, (percentile_interval(beta / total), percentile_interval(alpha / total))
    )


def optima(found: Mapping[str, Sequence[Optimum]]) -> list[Block]:
    """What every law would train for a budget, at executed compute as the backend's own runs count it."""
    rows: list[tuple[str, ...]] = []
    opens = set()
    for backend, budgets_of in found.items():
        opens.add(len(rows))
        rows += [
            (
                backend,
                f"{best.flops:.2e}",
                _with_interval(best.params, best.params_interval, ".2e"),
                _with_interval(best.tokens, best.tokens_interval, ".2e"),
                _with_interval(best.loss, best.loss_interval, ".3f"),
            )
            for best in budgets_of
        ]
    if not rows:
        return []
    return [
        Table(
            "Compute-optimal size and tokens by each backend's law (approach 3), and the loss they come to, at the "
            "largest executed budget run and, by extrapolation, at 10 and 100 times that; 95 % intervals over "
            "trainings.",
            ("attention", "executed FLOP", "parameters", "tokens", "loss"),
            rows,
            frozenset(("attention",)),
            frozenset(opens),
            title="Best size and tokens",
            unit="trainings",
        )
    ]


def _with_interval(value: float, interval: Interval | None, digits: str) -> str:
    assert interval is not None, "laws of a report have draws"
    return f"{value:{digits}} [{interval[0]:{digits}}, {interval[1]:{digits}}]"
