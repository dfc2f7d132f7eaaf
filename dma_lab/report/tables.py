"""The report's tables, and the same numbers as points.csv."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dma_lab.report.collect import Run, Unreadable
from dma_lab.report.command import command_of
from dma_lab.report.comparison import (
    CELL_LEFT,
    CELL_TERMS,
    OverTrainings,
    cell_rows,
    difference_cell,
    documents_cell,
)
from dma_lab.report.document import Table
from dma_lab.report.pairs import Difference
from dma_lab.run_summary import OUTCOME
from dma_lab.scaling.documents import LEAST_DOCUMENTS
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.trainings import TrainingsFit

_IDENTITY = (
    *("study", "model", "attention", "match", "data_fingerprint"),
    *("precision", "hardware", "cpu_capability", "torch", "git_commit"),
)
_COSTS = ("seed", "context", "params_total", "params_non_embedding", "tokens", "steps", "flops", "flops_executed")
_DIFFERENCE = (
    *("difference", "document_interval_low", "document_interval_high", "documents", "effective_documents"),
    "no_difference_because",
)

_BY_TASK = {
    "val_bits_per_byte": "bits/byte",
    "val_text_bits_per_byte": "bits/byte of text",
    "val_accuracy": "accuracy",
}


def comparison(compared: Sequence[tuple[Run, Difference]]) -> Table:
    """Backend by rung, budget and seed: cost, loss, difference to MHA, speed and memory."""
    by_task = [name for name in _BY_TASK if any(getattr(run.summary, name) is not None for run, _ in compared)]
    settings = any(run.setting for run, _ in compared)
    rows = []
    for run, difference in compared:
        summary = run.summary
        assert summary.peak_memory_bytes is not None, "it is finished"
        rows.append(
            (
                run.backend,
                run.rung,
                *([run.setting] if settings else []),
                f"{summary.tokens:,}",
                f"{summary.seed}",
                f"{run.loss:.4f}",
                difference_cell(difference),
                documents_cell(difference),
                f"{summary.val_perplexity:.2f}",
                *("" if (score := getattr(summary, name)) is None else f"{score:.4f}" for name in by_task),
                f"{run.params:,}",
                f"{summary.flops_executed:.2e}",
                f"{summary.flops:.2e}",
                "–" if summary.tokens_per_second is None else f"{summary.tokens_per_second:,.0f}",
                f"{summary.peak_memory_bytes / 2**20:,.0f}",
            )
        )
    points = [run.point for run, _ in compared]
    return Table(
        "Loss in nats per token, and its difference to that of the MHA run that equals it in everything but the "
        "attention (model, budget, seed, data, settings and machine, by value), on the same documents; of a variant, "
        "to plain MHA's, or where no run of that equals it to that of MHA with the same options. In brackets the "
        "document interval: 95 %, Student's t over documents, of these two models on other text of the kind. What "
        "another seed would have given is not in it, and is often several times as much, so it makes no difference "
        "significant. Documents: scored, and in brackets how many of equal length they are worth, (Σw)² / Σw² over "
        f"their tokens w; of fewer than {LEAST_DOCUMENTS} such there is no interval. A dash: no such MHA run, so no "
        "difference. Bits a byte count what says where documents end; those of the text do not. Parameters are "
        "non-embedding. FLOP are of the whole training, executed (what the backend computes) and dense-equivalent (as "
        "if every query saw all keys before it). Tokens/s: of steps alone, once compiled, the median over the run.",
        (
            "attention",
            "rung",
            *(["setting"] if settings else []),
            "tokens",
            "seed",
            "loss",
            "loss − MHA [document interval]",
            "documents",
            "perplexity",
            *(_BY_TASK[name] for name in by_task),
            "parameters",
            "FLOP exec.",
            "FLOP dense",
            "tokens/s",
            "MiB",
        ),
        rows,
        frozenset(("attention", "rung", "setting")),
        frozenset(row for row, point in enumerate(points) if row and point != points[row - 1]),
        title="Every run beside MHA's",
        unit="a row is one training, or a branch of one; intervals are over documents",
    )


def over_trainings(cells: Sequence[OverTrainings]) -> Table:
    """Differences to MHA over seeds, with what other trainings on other documents would have given."""
    return Table(
        CELL_TERMS,
        *cell_rows(cells),
        CELL_LEFT,
        title="Difference to MHA over trainings",
        unit="trainings (seeds), crossed with documents",
    )


def law_parameters(laws: Mapping[str, TrainingsFit], published: Mapping[str, ParametricFit]) -> Table:
    """E, A, B, α, β of every backend that has a law, and the noise of its trainings; beside it the literature's fit."""
    rows: list[tuple[str, ...]] = []
    opens = set()
    for backend, law in laws.items():
        assert law.intervals is not None
        cells = (f"{getattr(law, name):.4g} [{low:.3g}, {high:.3g}]" for name, (low, high) in law.intervals.items())
        of_training, of_branch = np.median(law.noise, axis=0)
        noise = f"{of_branch:.4f}" if not law.noise[:, 0].any() else f"{of_training:.4f} + {of_branch:.4f}"
        opens.add(len(rows))
        rows.append((backend, "least squares", *cells, f"{law.trainings}", noise))
        if other := published.get(backend):
            rows.append((backend, "Huber, log", *(f"{getattr(other, name):.4g}" for name in law.intervals), "-", "-"))
    return Table(
        "L(N, D) = E + A/N^α + B/D^β, nats per token: by least squares, with 95 % intervals over trainings, for "
        "branches of one training share its noise; and as in the literature (Huber loss on log L, δ = 1e-3), which "
        "keeps outliers down and takes every run for a training. Noise: standard deviation of a training's and, after "
        "a +, of what each branch adds, nats, at the size in the middle of the runs; where two sizes have several "
        "seeds, each is a power of size, the first much the same in all attentions, and runs weigh by both.",
        ("attention", "fit", "E", "A", "B", "α", "β", "trainings", "noise"),
        rows,
        frozenset(("attention", "fit")),
        frozenset(opens),
        title="The laws",
        unit="trainings; branches of one share its noise",
    )


def identities(runs: Sequence[Run]) -> Table:
    """Where each run comes from."""
    rows = [
        (
            run.name,
            run.status,
            short_commit(run.summary.git_commit),
            run.summary.data_fingerprint[:8],
            run.summary.hardware,
            run.summary.cpu_capability,
            run.summary.precision + (", compiled" if run.summary.compiled else ""),
            run.summary.torch,
            run.summary.kernels or "",
        )
        for run in runs
    ]
    columns = ("run", "status", "commit", "data", "hardware", "CPU", "precision", "PyTorch", "attention ran")
    caption = (
        "Every run directory that could be read. For each that is finished points.csv has the command that trains it "
        "again, by itself; the commit is another column. $DATA there is the folder of its text."
    )
    return Table(caption, columns, rows, frozenset(columns), title="Where each run comes from", unit="a row is one run")


def short_commit(commit: str) -> str:
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def unreadable(problems: Sequence[Unreadable]) -> Table:
    rows = [(problem.name, problem.reason) for problem in problems]
    caption, columns = "Run directories that could not be read.", ("run", "why")
    return Table(caption, columns, rows, frozenset(columns), title="Unreadable", unit="a row is one directory")


def write_points(path: Path, compared: Sequence[tuple[Run, Difference]]) -> None:
    """One line a finished run, numbers unrounded."""
    columns = ("run", "backend", "rung", "setting", *_IDENTITY, "compiled", "kernels", *_COSTS, *OUTCOME, *_BY_TASK)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, (*columns, *_DIFFERENCE, "command"), extrasaction="ignore")
        writer.writeheader()
        for run, difference in compared:
            if isinstance(difference, str):
                cells: tuple[object, ...] = ("", "", "", "", "", difference)
            else:
                own = difference
                cells = (own.difference, *(own.interval or ("", "")), own.documents, own.effective_documents, "")
            names = {"run": run.name, "backend": run.backend, "rung": run.rung, "setting": run.setting}
            row = run.summary.written() | dict(zip(_DIFFERENCE, cells, strict=True)) | names
            writer.writerow(row | {"command": command_of(run)})
