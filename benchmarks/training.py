"""Every backend through the pipeline that trains it: does the loss fall, how fast, in how much memory.

Blocks are compiled whole wherever training compiles (``fullgraph=True``), so a backend that would break the graph fails
here instead of training slowly.
"""

import json
import math
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from benchmarks.record import write_record
from dma_lab.messages import UserError
from dma_lab.train.fit_run import fit_run
from dma_lab.train.settings import TrainSettings, read_settings


def bench_training(config: DictConfig) -> Path:
    """Train each of ``config.backends`` at each of ``config.contexts``; prints a table, writes a record."""
    points = [
        (backend, context, _settings(config, backend, context))
        for context in config.contexts
        for backend in config.backends
    ]
    measured, started = [], datetime.now(UTC)
    with tempfile.TemporaryDirectory() as runs:
        for backend, context, settings in points:
            measured.append({"backend": backend, "context": context, **_train(settings, runs)})
            record = {"settings": OmegaConf.to_container(config), "units": _UNITS, "runs": measured}
            path = write_record(config.results_dir, "training", record, started)
    Console(width=120).print(_table(measured, config))
    print(f"recorded in {path}")
    return path


_UNITS = {
    "loss": "nats a token, by step",
    "tokens_per_second": "over the steps after the first ten, which hold the compilation",
    "peak_memory_bytes": "largest allocation on the GPU, or of the process on a CPU",
}


def _settings(config: DictConfig, backend: str, context: int) -> TrainSettings:
    overrides = [
        f"attention={backend}",
        f"model={config.rung}",
        f"trainer.context={context}",
        f"trainer.tokens_per_step={config.tokens_per_step}",
        f"tokens={config.steps * config.tokens_per_step}",
        f"trainer.validate_every={config.steps}",
        f"trainer.checkpoint_every={config.steps}",
        "data.allow_repeat=true",
        *config.overrides,
    ]
    return read_settings(compose("train", overrides))


def _train(settings: TrainSettings, runs: str) -> dict[str, Any]:
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    settings = TrainSettings(**{**vars(settings), "output_dir": runs})
    summary = fit_run(settings)
    lines = _lines(Path(summary["run"]) / "metrics.jsonl")
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise UserError(f"attention={summary['attention']} at context {summary['context']}: the loss is not finite.")
    speeds = _lines(Path(summary["run"]) / "speed.jsonl")
    kept = ("params_non_embedding", "d_ff", "hardware", "precision", "peak_memory_bytes", "val_loss", "flops_executed")
    return {
        **{name: summary[name] for name in kept},
        "compiled": settings.trainer.compile,
        "loss": losses,
        "tokens_per_second": _median([line["tokens_per_second"] for line in speeds[1:]]),
    }


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _table(measured: list[dict[str, Any]], config: DictConfig) -> Table:
    title = f"{config.rung}: {config.steps} steps of {config.tokens_per_step:,} tokens, {measured[0]['precision']}"
    table = Table(title=title, title_justify="left")
    for column in ("attention", "context", "loss, first", "loss, last", "tokens/s", "memory, MiB"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    for run in measured:
        losses = list(run["loss"].values())
        table.add_row(
            run["backend"],
            str(run["context"]),
            f"{losses[0]:.3f}",
            f"{losses[-1]:.3f}",
            "-" if run["tokens_per_second"] is None else f"{run['tokens_per_second']:,.0f}",
            f"{run['peak_memory_bytes'] / 2**20:,.0f}",
        )
    return table
