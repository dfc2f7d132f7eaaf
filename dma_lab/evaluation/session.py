"""What all suites share: the machine that the model runs on, the model itself, progress, and tables at the end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.messages import UserError, warn_once
from dma_lab.model import Transformer
from dma_lab.processor import processor
from dma_lab.progress import WorkProgress
from dma_lab.threads import flops_of, use_threads


@dataclass(frozen=True)
class Machine:
    """Where and how the model is run."""

    device: torch.device
    precision: str
    """``fp32`` or ``bf16`` (mixed, as in training)."""
    batch_tokens: int

    def facts(self) -> dict[str, str]:
        """What rounds the scores."""
        on_gpu = self.device.type == "cuda"
        cpu = f"CPU ({processor()}, {torch.backends.cpu.get_cpu_capability()})"
        name = torch.cuda.get_device_name(self.device) if on_gpu else cpu
        return {"hardware": name, "precision": self.precision, "torch": torch.__version__}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def machine_of(device: str, precision: str, batch_tokens: int) -> Machine:
    """The machine that the settings of these names give. Raises UserError when it is not here."""
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError("device=cuda: PyTorch finds no CUDA device here; use device=cpu.")
    on_gpu = has_cuda and device != "cpu"
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return Machine(torch.device("cuda" if on_gpu else "cpu"), precision, batch_tokens)


def open_model(run: TrainedRun, length: int, rope_base: float | None, machine: Machine) -> Transformer:
    """The model for sequences of ``length`` tokens, on the device, and the threads for batches of it."""
    if length > run.context:
        warn_once(f"{length} tokens are more than the {run.context} that {run.path.name} was trained on.")
    model = run.model(max(length, run.context), rope_base).to(machine.device)
    use_threads(flops_of(model, machine.batch_tokens), machine.device)
    return model


def show(title: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Print a table; numbers stand on the right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(_spelled, row))
    Console().print(table)


def _spelled(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


@contextmanager
def progress_of(title: str, total: float) -> Iterator[Any]:
    """A progress bar with its ETA; yields a function to call with how much of ``total`` is done."""
    with WorkProgress(title) as progress:
        yield lambda done: progress.update(done / total, f"{done:.4g} of {total:.4g}")
