"""Loss by the length of contexts, of every run that was evaluated: a figure shows those of one point."""

from collections.abc import Sequence
from math import log

from dma_lab.report.collect import Run
from dma_lab.report.document import Table


def loss_by_length(scored: Sequence[tuple[Run, int, float]], settings: str) -> Table | None:
    """Of runs, contexts (tokens) and perplexities there, all evaluated with ``settings``; None where the runs are of
    one point, whose figure has it all.
    """
    if len({run.point for run, _, _ in scored}) < 2:
        return None
    lengths = sorted({length for _, length, _ in scored})
    found: dict[object, tuple[Run, dict[int, str]]] = {}
    for run, length, perplexity in scored:
        found.setdefault(run.path, (run, {}))[1][length] = f"{log(perplexity):.4f}"
    several = any(run.setting for run, _, _ in scored)
    rows = [
        (
            *(run.backend, run.rung, *([run.setting] if several else [])),
            *(f"{run.summary.tokens:,}", f"{run.summary.seed}", f"{run.summary.context:,}"),
            *(losses.get(length, "") for length in lengths),
        )
        for run, losses in found.values()
    ]
    return Table(
        "The same validation targets at every length, each scored once: nats per token. An empty cell was not "
        f"evaluated. Settings: {settings}.",
        (
            *("attention", "rung", *(["setting"] if several else [])),
            *("tokens", "seed", "trained on", *(f"{length:,}" for length in lengths)),
        ),
        rows,
        frozenset(("attention", "rung", "setting")),
        title="Loss by context length",
        unit="one training per row; over its validation tokens",
    )
