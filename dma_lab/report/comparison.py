"""Runs beside MHA: by how much they differ, and what other trainings say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from dma_lab.evaluation.pairing import PairedDifference
from dma_lab.report.cohorts import name_runs
from dma_lab.report.collect import BASELINE, Run
from dma_lab.report.conditions import WARMUP, without
from dma_lab.report.pairs import Difference, Part, baselines_of, difference_of, whole
from dma_lab.scaling.replicates import Cell, MeanDifference, mean_differences

NO_SPREAD = (
    "No backend has two seeds at one rung, so nothing tells what other trainings would have given: no difference to "
    "MHA has an interval that holds beyond these very models."
)


@dataclass(frozen=True)
class OverTrainings:
    """A backend's difference to MHA at one rung and budget, over its seeds."""

    run: Run
    """The first of them, which has their names."""
    beside: str
    """What of MHA it is the difference to: ``mha``, or with the options that tell it from plain MHA."""
    difference: MeanDifference


@dataclass(frozen=True)
class Comparison:
    """The finished runs of a cohort beside MHA."""

    pairs: list[tuple[Run, Difference]]
    """Every run once: to plain MHA, where it is paired with that."""
    cells: list[OverTrainings]
    """Empty without a paired run; those to plain MHA come before those to MHA with options of its own."""

    @property
    def has_spread(self) -> bool:
        """Whether seeds tell what other trainings would have given, of any backend."""
        return any(cell.difference.interval is not None for cell in self.cells)

    def besides(self, backend: str) -> list[str]:
        """What of MHA a backend is held against, plain MHA first."""
        return list(dict.fromkeys(cell.beside for cell in self.cells if cell.run.backend == backend))

    def first_cells(self, backend: str) -> list[OverTrainings]:
        """Those of a backend to one MHA alone: to plain MHA, where it has such."""
        return self.cells_of(backend, self.besides(backend)[:1])

    def cells_of(self, backend: str, besides: Sequence[str]) -> list[OverTrainings]:
        """Those of a backend to some MHA."""
        return [cell for cell in self.cells if cell.run.backend == backend and cell.beside in besides]


def compare(runs: Sequence[Run], baseline: str = BASELINE) -> Comparison:
    """All of ``runs``, which are finished, beside MHA or another attention."""
    return compare_parts(runs, [whole], baseline)[0]


def compare_parts(runs: Sequence[Run], parts: Sequence[Part], baseline: str = BASELINE) -> list[Comparison]:
    """The same in each of ``parts`` of the tokens."""
    beside = [(run, baselines_of(run, runs, baseline)) for run in runs]
    return [_compare(beside, part) for part in parts]


def _compare(beside: Sequence[tuple[Run, list[Run] | str]], part: Part) -> Comparison:
    pairs: list[tuple[Run, Difference]] = []
    alike: dict[tuple[str, str], dict[Any, list[tuple[Run, PairedDifference]]]] = {}
    for run, others in beside:
        if isinstance(others, str):
            pairs.append((run, others))
            continue
        differences = [difference_of(run, other, part) for other in others]
        pairs.append((run, differences[0]))
        for other, difference in zip(others, differences, strict=True):
            if isinstance(difference, PairedDifference):
                key = without(run.conditions, frozenset({"seed"})), difference.tokens.tobytes()
                by_point = alike.setdefault((run.backend, other.backend), {})
                by_point.setdefault(key, []).append((run, difference))
    found: list[OverTrainings] = []
    cells = [list(by_point.values()) for by_point in alike.values()]
    means = mean_differences([[cell_of(members) for members in own] for own in cells])
    for (_, named), own, values in zip(alike, cells, means, strict=True):
        found += [OverTrainings(members[0][0], named, value) for members, value in zip(own, values, strict=True)]
    order = {run.path: number for number, (run, _) in enumerate(pairs)}
    return Comparison(pairs, sorted(found, key=lambda cell: (" " in cell.beside, order[cell.run.path])))


def cell_of(members: Sequence[tuple[Run, PairedDifference]]) -> Cell:
    """Of runs that their seeds alone tell apart, each with its difference to another's."""
    by_seed: dict[int, list[np.ndarray]] = {}
    for run, difference in members:
        by_seed.setdefault(run.summary.seed, []).append(difference.nats)
    run, difference = members[0]
    # A seed that was run twice is one training that was run twice.
    nats = np.stack([np.mean(repeated, axis=0) for repeated in by_seed.values()])
    rung = without(run.conditions, frozenset({"seed", "tokens", WARMUP}))
    return Cell(nats, difference.tokens, rung, float(run.params))


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
    recall = any(run.summary.val_accuracy is not None for run, _ in pairs)
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
            f"{summary.tokens:,}",
            str(summary.seed),
            f"{summary.params_non_embedding:,}",
            f"{summary.flops_executed:.3g}",
            f"{summary.flops:.3g}",
            f"{run.loss:.4f}",
            f"{summary.val_perplexity:.2f}",
            _number(summary.val_accuracy if recall else summary.val_bits_per_byte),
            difference_cell(difference),
            documents_cell(difference),
        )
    return table


def _cells_table(cells: Sequence[OverTrainings]) -> Table:
    table = Table(title="over trainings", title_justify="left", caption=CELL_TERMS, caption_justify="left")
    columns, rows = cell_rows(cells)
    for column in columns:
        table.add_column(column, justify="left" if column in CELL_LEFT else "right")
    for row in rows:
        table.add_row(*row)
    return table


CELL_LEFT = frozenset(("attention", "beside", "rung", "setting"))
"""Columns of text."""
_COLUMNS = ("tokens", "seeds", "mean loss − MHA [95 %]", "std. over seeds", "p")
CELL_TERMS = (
    "Loss minus that of MHA with the same seed (or of the variant of MHA under beside): the mean over seeds, and a "
    "95 % interval of the mean over all seeds and all documents of the kind (*: over all seeds, on these few "
    "documents). Its units are trainings; branches of one training are no more of them. Standard deviation over "
    "seeds: of the rung's own where it has five or more, else (~) by all rungs of the backend that have two, as a "
    "power of size that all backends have in common."
)


def cell_rows(cells: Sequence[OverTrainings]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of a table of them; what all have alike has no column."""
    beside, settings = any(cell.beside != BASELINE for cell in cells), any(cell.run.setting for cell in cells)
    columns = ("attention", *(["beside"] if beside else []), "rung", *(["setting"] if settings else []), *_COLUMNS)
    rows = []
    for cell in cells:
        run = cell.run
        of_cell = run.backend, *([cell.beside] if beside else []), run.rung, *([run.setting] if settings else [])
        rows.append((*of_cell, *_texts(cell)))
    return columns, rows


def _texts(cell: OverTrainings) -> tuple[str, ...]:
    own = cell.difference
    tokens, seeds, mean = f"{cell.run.summary.tokens:,}", f"{own.seeds}", f"{own.difference:+.4f}"
    if own.interval is None or own.spread is None or own.p_value is None:
        return tokens, seeds, f"{mean} no interval", "unknown", "-"
    low, high = own.interval
    return (
        *(tokens, seeds, f"{mean} [{low:+.4f}, {high:+.4f}]{'' if own.over_documents else '*'}"),
        *(f"{'~' if own.pooled else ''}{own.spread:.4f}", f"{own.p_value:.2g}"),
    )


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
