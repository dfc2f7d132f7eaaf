"""The report's tables, and the same numbers as points.csv."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import ttest_1samp

from dma_lab.report.collect import BY_TASK, COSTS, IDENTITY, OUTCOME, Run, Unreadable
from dma_lab.report.comparison import BASELINE, baseline_of, difference_to_baseline
from dma_lab.report.document import Table
from dma_lab.report.laws import Laws
from dma_lab.scaling.fit import ParametricFit
from dma_lab.scaling.paired import PairedDifference

Difference = PairedDifference | str
"""Of a run to MHA, or why there is none (empty for MHA itself)."""
_DIFFERENCE = ("difference", "difference_low", "difference_high", "no_difference_because")

_BY_TASK_HEADINGS = {
    "val_bits_per_byte": "bits/byte",
    "val_text_bits_per_byte": "bits/byte of text",
    "val_accuracy": "accuracy",
}


def pair_runs(runs: Sequence[Run]) -> list[tuple[Run, Difference]]:
    """Every finished run of a cohort with its paired difference to MHA."""
    unscored = {run.summary["run"] for run in runs if run.scores is None}
    return [(run, _pair(run, [other.summary for other in runs], unscored)) for run in runs]


def _pair(run: Run, summaries: Sequence[dict], unscored: set[str]) -> Difference:
    if run.attention == BASELINE:
        return ""
    baseline = baseline_of(run.summary, summaries)
    if baseline is None:
        return f"no {BASELINE} run of the same rung, budget, seed, data and settings"
    if unscored & {run.summary["run"], baseline["run"]}:
        return "validation.npz of one of the two is missing or unreadable"
    try:
        return difference_to_baseline(run.summary, summaries) or ""
    except ValueError as error:
        return str(error)


def comparison(compared: Sequence[tuple[Run, Difference]]) -> Table:
    """Backend by rung, budget and seed: cost, loss, difference to MHA, speed and memory."""
    by_task = [name for name in BY_TASK if any(name in run.summary for run, _ in compared)]
    rows = []
    for run, difference in compared:
        summary = run.summary
        rows.append(
            (
                run.backend,
                summary["model"],
                f"{summary['tokens']:,}",
                f"{summary['seed']}",
                f"{summary['val_loss']:.4f}",
                _difference(difference),
                f"{summary['val_perplexity']:.2f}",
                *(f"{summary[name]:.4f}" if name in summary else "" for name in by_task),
                f"{run.params:,}",
                f"{summary['flops_executed']:.2e}",
                f"{summary['flops']:.2e}",
                f"{summary['tokens_per_second']:,.0f}",
                f"{summary['peak_memory_bytes'] / 2**20:,.0f}",
            )
        )
    points = [run.point for run, _ in compared]
    return Table(
        "Loss in nats a token, and its difference to that of the MHA run with the same rung, budget, seed, data and "
        "settings, on the same documents, with its 95 % paired bootstrap interval; a star marks intervals that leave "
        "out 0. A dash: no such run, so no difference. Bits a byte count what says where documents end; those of the text "
        "do not. Parameters are non-embedding. FLOP are of the whole training, "
        "executed (what the backend computes) and dense-equivalent (as if every query saw all keys before it).",
        (
            "attention",
            "rung",
            "tokens",
            "seed",
            "loss",
            "loss − MHA [95 %]",
            "perplexity",
            *(_BY_TASK_HEADINGS[name] for name in by_task),
            "parameters",
            "FLOP exec.",
            "FLOP dense",
            "tokens/s",
            "MiB",
        ),
        rows,
        frozenset(("attention", "rung")),
        frozenset(row for row, point in enumerate(points) if row and point != points[row - 1]),
    )


def _difference(difference: Difference) -> str:
    if isinstance(difference, str):
        return "-" if difference else ""
    star = " *" if difference.is_clear else ""
    return f"{difference.difference:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]{star}"


def over_seeds(compared: Sequence[tuple[Run, Difference]]) -> Table | None:
    """Differences to MHA over the seeds of a backend, rung and budget; None where none was run with two."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for run, difference in compared:
        if isinstance(difference, PairedDifference):
            key = run.backend, run.summary["model"], run.summary["tokens"]
            found.setdefault(key, []).append(difference.difference)
    rows = []
    for (backend, model, tokens), values in found.items():
        if len(values) < 2:
            continue
        spread = float(np.std(values, ddof=1))
        p = f"{ttest_1samp(values, 0).pvalue:.2g}" if spread > 0 else "-"
        rows.append((backend, model, f"{tokens:,}", f"{len(values)}", f"{np.mean(values):+.4f}", f"{spread:.4f}", p))
    if not rows:
        return None
    return Table(
        "Loss minus that of MHA with the same seed, over the seeds: mean, standard deviation and the two-sided p-value "
        "of Student's t-test that the mean is 0. With two or three seeds only a large difference can be told from 0.",
        ("attention", "rung", "tokens", "seeds", "mean loss − MHA", "std.", "p"),
        rows,
        frozenset(("attention", "rung")),
    )


def law_parameters(laws: Laws) -> Table:
    """E, A, B, α, β of every backend that has a law."""
    rows = []
    for backend, law in laws.items():
        if isinstance(law, ParametricFit):
            assert law.intervals is not None
            cells = (f"{getattr(law, name):.4g} [{low:.3g}, {high:.3g}]" for name, (low, high) in law.intervals.items())
            rows.append((backend, *cells, f"{law.objective:.3g}"))
    return Table(
        "L(N, D) = E + A/N^α + B/D^β, nats a token, with 95 % bootstrap intervals; Huber loss on log L (δ = 1e-3).",
        ("attention", "E", "A", "B", "α", "β", "objective"),
        rows,
        frozenset(("attention",)),
    )


def identities(runs: Sequence[Run]) -> Table:
    """Where each run comes from."""
    rows = [
        (
            run.name,
            run.status,
            short_commit(run.summary["git_commit"]),
            run.summary["data_fingerprint"][:8],
            run.summary["hardware"],
            run.summary["precision"],
            run.summary["torch"],
        )
        for run in runs
    ]
    columns = ("run", "status", "commit", "data", "hardware", "precision", "PyTorch")
    return Table("Every run directory that could be read.", columns, rows, frozenset(columns))


def short_commit(commit: str) -> str:
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def unreadable(problems: Sequence[Unreadable]) -> Table:
    rows = [(problem.name, problem.reason) for problem in problems]
    return Table("Run directories that could not be read.", ("run", "why"), rows, frozenset(("run", "why")))


def missing_points(runs: Sequence[Run]) -> list[str]:
    """Points (rung, tokens, seed) at which some backend of the cohort has a run and another has no finished one."""
    finished = {(run.backend, run.point) for run in runs if run.finished}
    state = {(run.backend, run.point): run.status for run in runs if not run.finished}
    lines = []
    for point in dict.fromkeys(run.point for run in runs):
        for backend in dict.fromkeys(run.backend for run in runs):
            if (backend, point) not in finished:
                rung, tokens, seed = point
                why = state.get((backend, point), "not run")
                lines.append(f"{backend} at rung {rung}, {tokens:,} tokens, seed {seed}: {why}")
    return lines


def write_points(path: Path, compared: Sequence[tuple[Run, Difference]]) -> None:
    """One line a finished run, numbers unrounded."""
    columns = ("run", "backend", *IDENTITY, *COSTS, *OUTCOME, *BY_TASK, *_DIFFERENCE)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        for run, difference in compared:
            if isinstance(difference, str):
                further = dict(zip(_DIFFERENCE, ("", "", "", difference), strict=True))
            else:
                further = dict(zip(_DIFFERENCE, (*vars(difference).values(), ""), strict=True))
            writer.writerow(run.summary | further | {"run": run.name, "backend": run.backend})
