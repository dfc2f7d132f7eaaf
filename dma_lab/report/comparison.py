"""A run beside MHA: which run it is compared with, by how much they differ, and what other trainings say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from dma_lab.attention.controls import telling
from dma_lab.evaluation.pairing import PairedDifference, paired_difference
from dma_lab.report.cohorts import name_runs
from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.conditions import WARMUP, differing, without
from dma_lab.scaling.replicates import Cell, MeanDifference, mean_differences

Difference = PairedDifference | str
"""Of a run to MHA, or why there is none (empty for MHA itself)."""
Scores = dict[str, NDArray[Any]]
"""A run's validation.npz."""
Part = Callable[[Scores], tuple[NDArray[Any], NDArray[Any]]]
"""Of a run's scores the nats and the tokens of every document, (documents,), that are compared."""
NO_SPREAD = (
    "No backend has two seeds at one rung, so nothing tells what other trainings would have given: no difference to "
    "MHA has an interval that holds beyond these very models."
)


@dataclass(frozen=True)
class OverTrainings:
    """A backend's difference to MHA at one rung and budget, over its seeds."""

    run: Run
    """The first of them, which has their names."""
    difference: MeanDifference


@dataclass(frozen=True)
class Comparison:
    """The finished runs of a cohort beside MHA."""

    pairs: list[tuple[Run, Difference]]
    cells: list[OverTrainings]
    """Empty without a paired run."""

    @property
    def has_spread(self) -> bool:
        """Whether seeds tell what other trainings would have given, of any backend."""
        return any(cell.difference.interval is not None for cell in self.cells)


def whole(scores: Scores) -> tuple[NDArray[Any], NDArray[Any]]:
    """Nats and tokens of every document, all of its tokens."""
    return scores["document_nats"], scores["document_tokens"]


def compare(runs: Sequence[Run], baseline: str = BASELINE) -> Comparison:
    """All of ``runs``, which are finished, beside MHA or another attention."""
    return _over_trainings(pair_runs(runs, baseline))


def compare_parts(runs: Sequence[Run], parts: Sequence[Part]) -> list[Comparison]:
    """The same beside MHA, in each of ``parts`` of the tokens."""
    beside = [(run, _beside(run, runs, BASELINE)) for run in runs]
    return [_over_trainings([(run, _difference(run, other, part)) for run, other in beside]) for part in parts]


def _over_trainings(pairs: list[tuple[Run, Difference]]) -> Comparison:
    found: list[OverTrainings] = []
    for backend in dict.fromkeys(run.backend for run, _ in pairs):
        alike: dict[tuple[frozenset[tuple[str, Any]], bytes], list[tuple[Run, PairedDifference]]] = {}
        for run, difference in pairs:
            if run.backend == backend and isinstance(difference, PairedDifference):
                key = without(run.conditions, frozenset({"seed"})), difference.tokens.tobytes()
                alike.setdefault(key, []).append((run, difference))
        members = list(alike.values())
        differences = mean_differences([_cell(own) for own in members])
        found += [OverTrainings(own[0][0], value) for own, value in zip(members, differences, strict=True)]
    order = {run.path: number for number, (run, _) in enumerate(pairs)}
    return Comparison(pairs, sorted(found, key=lambda cell: order[cell.run.path]))


def _cell(members: Sequence[tuple[Run, PairedDifference]]) -> Cell:
    by_seed: dict[int, list[np.ndarray]] = {}
    for run, difference in members:
        by_seed.setdefault(run.summary["seed"], []).append(difference.nats)
    run, difference = members[0]
    # A seed that was run twice is one training that was run twice.
    nats = np.stack([np.mean(repeated, axis=0) for repeated in by_seed.values()])
    return Cell(nats, difference.tokens, without(run.conditions, frozenset({"seed", "tokens", WARMUP})))


def comparison_table(runs: Sequence[Run]) -> Group:
    """What a sweep ends with: its finished runs, each one's difference to the MHA run it is paired with, and, where
    there are seeds, the mean differences over trainings.

    Without a run to be paired with the cell is a dash: unpaired losses are not subtracted.
    """
    runs = name_runs(runs)
    compared = compare(runs)
    return Group(_runs_table(compared.pairs), *([_cells_table(compared.cells)] if compared.has_spread else []))


def _runs_table(pairs: Sequence[tuple[Run, Difference]]) -> Table:
    table = Table(
        title="comparison",
        title_justify="left",
        caption="Intervals are of these two models, over documents: what other seeds would have given is not in them.",
        caption_justify="left",
    )
    recall = any("val_accuracy" in run.summary for run, _ in pairs)
    left = ("attention", "rung", *(["setting"] if any(run.setting for run, _ in pairs) else []))
    costs = ("tokens", "seed", "parameters", "FLOP executed", "FLOP dense-eq.", "loss", "perplexity")
    for column in (*left, *costs, "accuracy" if recall else "bits/byte", "loss minus MHA's [95 %]", "documents"):
        table.add_column(column, justify="left" if column in left else "right")
    for run, difference in pairs:
        summary = run.summary
        table.add_row(
            run.backend,
            run.rung,
            *([run.setting] if "setting" in left else []),
            f"{summary['tokens']:,}",
            str(summary["seed"]),
            f"{summary['params_non_embedding']:,}",
            f"{summary['flops_executed']:.3g}",
            f"{summary['flops']:.3g}",
            f"{summary['val_loss']:.4f}",
            f"{summary['val_perplexity']:.2f}",
            _number(summary.get("val_accuracy" if recall else "val_bits_per_byte")),
            difference_cell(difference),
            documents_cell(difference),
        )
    return table


def _cells_table(cells: Sequence[OverTrainings]) -> Table:
    table = Table(title="over trainings", title_justify="left", caption=CELL_TERMS, caption_justify="left")
    left = ("attention", "rung", *(["setting"] if any(cell.run.setting for cell in cells) else []))
    for column in (*left, *CELL_COLUMNS):
        table.add_column(column, justify="left" if column in left else "right")
    for cell in cells:
        run = cell.run
        table.add_row(run.backend, run.rung, *([run.setting] if "setting" in left else []), *cell_texts(cell))
    return table


CELL_COLUMNS = ("tokens", "seeds", "mean loss − MHA [95 %]", "std. over seeds", "p")
CELL_TERMS = (
    "Loss minus that of MHA with the same seed: the mean over seeds, and a 95 % interval of the mean over all seeds "
    "and all documents of the kind (*: over all seeds, on these few documents). Its units are trainings; branches of "
    "one training are no more of them. Standard deviation over seeds: of the rung's own where it has five "
    "or more, else (~) pooled over all rungs of the backend that have two, which takes noise to be alike there."
)


def cell_texts(cell: OverTrainings) -> tuple[str, ...]:
    """Cells of ``CELL_COLUMNS``."""
    own = cell.difference
    tokens, seeds, mean = f"{cell.run.summary['tokens']:,}", f"{own.seeds}", f"{own.difference:+.4f}"
    if own.interval is None or own.spread is None or own.p_value is None:
        return tokens, seeds, f"{mean} no interval", "unknown", "-"
    low, high = own.interval
    return (
        *(tokens, seeds, f"{mean} [{low:+.4f}, {high:+.4f}]{'' if own.over_documents else '*'}"),
        *(f"{'~' if own.pooled else ''}{own.spread:.4f}", f"{own.p_value:.2g}"),
    )


def pair_runs(runs: Sequence[Run], baseline: str = BASELINE) -> list[tuple[Run, Difference]]:
    """Every run of ``runs``, which are finished, with its paired difference to MHA or another ``baseline``."""
    return [(run, _difference(run, _beside(run, runs, baseline), whole)) for run in runs]


def _beside(run: Run, runs: Sequence[Run], baseline: str) -> Run | str:
    """What a run is compared with, or why with nothing (empty for the baseline itself)."""
    return "" if run.attention == baseline else baseline_of(run, runs, baseline)


def baseline_of(run: Run, runs: Sequence[Run], baseline: str = BASELINE) -> Run | str:
    """The MHA run among ``runs`` that equals a run in everything but the attention, by value; or why there is none.

    Options that both attentions have (QK-norm, say) are equal too: else the difference could be theirs. Of several such
    runs the one of the run's own commit.
    """
    if run.summary["earlier_machines"]:
        return "several machines took its steps"
    candidates = [other for other in runs if other.attention == baseline]
    if not candidates:
        return f"no finished {baseline} run stands beside it"
    commit = run.summary["git_commit"]
    nearest = min(candidates, key=lambda other: (len(_apart(run, other)), other.summary["git_commit"] != commit))
    if apart := _apart(run, nearest):
        return f"no {baseline} run equals it in all but the attention: the nearest differs in {', '.join(apart)}"
    return nearest


def _apart(run: Run, baseline: Run) -> list[str]:
    ours, theirs = run.config.attention, baseline.config.attention
    shared = (ours.keys() & theirs.keys()) - {"name", "package"} - telling(run.attention) - telling(baseline.attention)
    options = [f"attention.{name}" for name in sorted(shared) if ours[name] != theirs[name]]
    return [*differing(run.conditions, baseline.conditions), *options]


def _difference(run: Run, beside: Run | str, part: Part) -> Difference:
    if isinstance(beside, str):
        return beside
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


def difference_cell(difference: Difference) -> str:
    """The difference and its interval over documents; a dash where there is none, nothing for MHA."""
    if isinstance(difference, str):
        return "-" if difference else ""
    if difference.interval is None:
        return f"{difference.difference:+.4f}"
    low, high = difference.interval
    return f"{difference.difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def documents_cell(difference: Difference) -> str:
    """Documents scored, and how many equally long ones they are worth."""
    return "" if isinstance(difference, str) else f"{difference.documents:,} ({difference.effective_documents:,.1f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
