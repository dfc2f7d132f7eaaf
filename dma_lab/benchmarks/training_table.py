"""What ``bench.py training`` measured, for a reader."""

from typing import Any

from rich.console import Console
from rich.table import Table

_RIGHT = (
    "parameters",
    "loss, first",
    "last",
    "not finite",
    "graph breaks",
    "memory, GiB",
    "tokens/s",
    "MFU",
    "seconds",
)


def print_training(measured: list[dict[str, Any]], title: str) -> None:
    """One line per point; one that failed has its figures up to there."""
    table = Table(title=title, title_justify="left")
    for column in ("attention", "context", "runs on", *_RIGHT):
        table.add_column(column, justify="right" if column in ("context", *_RIGHT) else "left")
    for run in measured:
        table.add_row(run["backend"], f"{run['context']:,}", *_figures(run))
    Console(width=160).print(table)
    if any("mfu_executed" in run for run in measured):
        print("MFU: forward and backward passes, causal pairs alone, the head too, of the peak of dense bf16 products.")


def _figures(run: dict[str, Any]) -> list[str]:
    figures = [run.get("kernels", ""), f"{run['params_non_embedding']:,}"]
    if "loss" not in run:
        return [*figures, "failed"]
    losses = list(run["loss"].values())
    return [
        *figures,
        f"{losses[0]:.3f}",
        f"{losses[-1]:.3f}",
        f"{run['not_finite']}",
        f"{run['graph_breaks']}" if run["compiled"] else "not compiled",
        f"{run['peak_memory_bytes'] / 2**30:.2f}",
        "–" if run["tokens_per_second"] is None else f"{run['tokens_per_second']:,.0f}",
        f"{run['mfu_executed']:.1%}" if "mfu_executed" in run else "–",
        f"{run['seconds']:.0f}",
    ]
