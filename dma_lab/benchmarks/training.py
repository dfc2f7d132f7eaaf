"""Every backend through the pipeline that trains it: does the loss fall, on what kernels, how fast, in how much memory.

Blocks are compiled whole wherever training compiles (``fullgraph=True``), so a backend that would break the graph fails
here instead of training slowly. A backend that fails does not stop the others: its reason is recorded in its place.
"""

import dataclasses
import json
import math
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from torch._dynamo.utils import counters

from dma_lab.benchmarks.record import write_record
from dma_lab.benchmarks.settings import TrainingSettings
from dma_lab.benchmarks.stock import NAME, require_transformers, train_stock
from dma_lab.benchmarks.training_table import print_training
from dma_lab.messages import UserError
from dma_lab.train.fit_run import fit_run
from dma_lab.train.hardware import Hardware, resolve_hardware
from dma_lab.train.plan import RunPlan, build_model, plan_run
from dma_lab.train.reading import read_settings
from dma_lab.train.settings import TrainSettings

Point = dict[str, Any]

_CPU_FLOPS = 1e14
"""Half an hour on a CPU that sustains 5e10 FLOP/s."""
_UNITS = {
    "loss": "nats per token, by step",
    "not_finite": "steps whose loss or gradient norm is not finite",
    "tokens_per_second": "median over the steps once compiled; every step is waited for",
    "peak_memory_bytes": "largest allocation on the GPU, or of the process on a CPU",
    "mfu_executed": "of the peak of dense bf16 products: forward and backward passes, causal pairs alone, the head too",
    "seconds": "the whole point: model, compilation, steps, validation, checkpoint",
    "kernels": "what one layer's attention runs on",
}


def bench_training(bench: TrainingSettings) -> Path:
    """Train each of ``bench.backends`` at each of ``bench.contexts``, and beside them transformers' Llama where that is
    asked for; prints a table, writes a record.

    Raises:
        UserError: for settings that no point could be trained with, or on a CPU only in hours.
        SystemExit: status 1, after all is recorded, when a point failed, its loss did not fall or was not finite.
    """
    if bench.stock:
        require_transformers()
    points = []
    for context in bench.contexts:
        for backend in [*bench.backends, *([NAME] if bench.stock else [])]:
            settings = _settings(bench, "mha" if backend == NAME else backend, context)
            hardware = resolve_hardware(settings.trainer)
            points.append((backend, context, settings, plan_run(settings, settings.model.vocab_size, hardware)))
    _refuse_hours([plan for *_, plan in points], hardware)
    measured: list[Point] = []
    started = datetime.now(UTC)
    for backend, context, settings, plan in points:
        print(f"[{len(measured) + 1}/{len(points)}] {_said(backend)}, {context:,} tokens", file=sys.stderr)
        point = {"backend": backend, "context": context, "tokens_per_step": plan.tokens_per_step}
        measured.append(point | _measure(backend, settings, plan, hardware))
        record = {"settings": dataclasses.asdict(bench), "units": _UNITS, "runs": measured}
        path = write_record(bench.results_dir, "training", record, started)
    sizes = " or ".join(f"{size:,}" for size in sorted({plan.tokens_per_step for *_, plan in points}))
    print_training(measured, f"{bench.rung}: {bench.steps} steps of {sizes} tokens")
    print(f"recorded in {path}")
    wrong = [run for run in measured if run["wrong"]]
    for run in wrong:
        print(f"failed: {_said(run['backend'])}, {run['context']:,} tokens: {run['wrong']}", file=sys.stderr)
    if wrong:
        raise SystemExit(1)
    return path


def _said(backend: str) -> str:
    return backend if backend == NAME else f"attention={backend}"


def _refuse_hours(plans: list[RunPlan], hardware: Hardware) -> None:
    flops = sum(plan.flops.executed for plan in plans)
    if hardware.device.type == "cpu" and flops > _CPU_FLOPS:
        raise UserError(
            f"{len(plans)} points of {flops:.1g} executed FLOP in all are hours on a CPU, where at most "
            f"{_CPU_FLOPS:.0e} are measured: give a smaller rung, fewer steps and tokens, as in rung=14k steps=20 "
            "contexts=[128] tokens_per_step=1024."
        )


def _settings(bench: TrainingSettings, backend: str, context: int) -> TrainSettings:
    rung = [f"attention={backend}", f"model={bench.rung}", f"trainer.context={context}"]
    tokens_per_step = bench.tokens_per_step
    if tokens_per_step is None:
        tokens_per_step = read_settings(compose("train", [*rung, *bench.overrides])).trainer.tokens_per_step
    overrides = [
        *rung,
        f"trainer.tokens_per_step={tokens_per_step}",
        f"tokens={bench.steps * tokens_per_step}",
        "trainer.log_every=1",
        f"trainer.validate_every={bench.steps}",
        f"trainer.checkpoint_every={bench.steps}",
        "data.allow_repeat=true",
        *bench.overrides,
    ]
    return read_settings(compose("train", overrides))


def _measure(backend: str, settings: TrainSettings, plan: RunPlan, hardware: Hardware) -> Point:
    """One point; ``wrong`` says what is not as it should be, and is None where all is."""
    torch.compiler.reset()
    counters.clear()
    begun = time.perf_counter()
    point: Point = {"params_non_embedding": plan.parameters.non_embedding, "d_ff": plan.shape.d_ff}
    try:
        if backend == NAME:
            point |= train_stock(settings, hardware)
        else:
            point["kernels"] = _kernels(settings, plan, hardware)
            with tempfile.TemporaryDirectory() as runs:
                point |= _train(dataclasses.replace(settings, output_dir=runs))
    except Exception as error:
        traceback.print_exc()
        return point | {"wrong": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    point |= {
        "compiled": hardware.compile,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": counters["graph_break"].total(),
        "seconds": time.perf_counter() - begun,
    }
    return point | {"wrong": _what_is_wrong(point, ours=backend != NAME)}


def _train(settings: TrainSettings) -> Point:
    summary = fit_run(settings)
    lines = _lines(Path(summary.run) / "metrics.jsonl")
    kept = ("hardware", "precision", "tokens_per_second", "peak_memory_bytes", "val_loss", "flops", "flops_executed")
    written = summary.written()
    return {
        **{name: written[name] for name in (*kept, "mfu_executed", "mfu_dense_equivalent") if name in written},
        "loss": {line["step"]: math.nan if line["loss"] is None else line["loss"] for line in lines},
        "not_finite": summary.steps_skipped,
    }


def _what_is_wrong(point: Point, *, ours: bool) -> str | None:
    losses = list(point["loss"].values())
    if point["not_finite"]:
        return f"{point['not_finite']} of {len(losses)} steps are not finite"
    if ours and point["graph_breaks"]:
        return f"{point['graph_breaks']} graph breaks"
    if losses[-1] >= losses[0]:
        return f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"
    return None


def _kernels(settings: TrainSettings, plan: RunPlan, hardware: Hardware) -> str:
    """What a layer of the run attends with, on its device, at its context and in its precision."""
    attention = build_model(settings, dataclasses.replace(plan.shape, n_layers=1)).blocks[0].attention
    bf16 = hardware.precision == "bf16"
    return attention.to(hardware.device).kernels(plan.shape.max_seq_len, packed=settings.data.mask_documents, bf16=bf16)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
