"""The device a run gets, and the precision it computes in there."""

from dataclasses import dataclass

import torch

from dma_lab.messages import UserError, warn_once
from dma_lab.processor import processor
from dma_lab.run_summary import Known
from dma_lab.train.ranks import local_rank
from dma_lab.train.settings import TrainerSettings

MACHINE = ("hardware", "cpu_capability", "precision", "compiled", "torch")
"""What summary.json says of the machine. It decides how sums are rounded, which a short training carries to a tenth of
a nat: runs are compared where all of it is equal."""


@dataclass(frozen=True)
class Hardware:
    """What ``trainer.device``, ``precision`` and ``compile`` came to on this machine."""

    device: torch.device
    name: str
    precision: str
    """``fp32`` or ``bf16`` (mixed: float32 weights, bfloat16 products)."""
    compile: bool

    @property
    def activation_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def resolve_hardware(trainer: TrainerSettings) -> Hardware:
    """Raises UserError when the machine lacks what the settings ask for."""
    has_cuda = torch.cuda.is_available()
    if trainer.device == "cuda" and not has_cuda:
        raise UserError("trainer.device=cuda: PyTorch finds no CUDA device here; use trainer.device=cpu.")
    on_gpu = has_cuda and trainer.device != "cpu"
    if on_gpu and trainer.devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={trainer.devices}: this machine has {torch.cuda.device_count()} GPU(s).")
    gpu = torch.device("cuda", _gpu_index()) if on_gpu and trainer.devices == 1 else torch.device("cuda")
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return Hardware(
        device=gpu if on_gpu else torch.device("cpu"),
        name=torch.cuda.get_device_name(gpu) if on_gpu else f"CPU ({processor()}, {torch.get_num_threads()} threads)",
        precision=("bf16" if has_bf16 else "fp32") if trainer.precision == "auto" else trainer.precision,
        compile=on_gpu if trainer.compile == "auto" else trainer.compile,
    )


def machine_in_words(known: Known) -> str:
    """``MACHINE`` as text for the reader, and for checkpoints, which record the machines that took steps."""
    how = f"{known.precision}, compiled" if known.compiled else known.precision
    return f"{known.hardware}, {known.cpu_capability}, {how}, PyTorch {known.torch}"


def _gpu_index() -> int:
    """The GPU of a process that trains alone: of several that a launcher started on one machine, each has its own."""
    place, gpus = local_rank(), torch.cuda.device_count()
    if place == 0 or gpus == 1:  # also where the launcher shows each process one GPU
        return 0
    if place >= gpus:
        raise UserError(
            f"This is process {place} (counted from 0) of those that a launcher started on a machine with {gpus} GPUs, "
            f"each of which trains on one (trainer.devices=1): start at most {gpus}."
        )
    warn_once(f"this process trains on GPU {place} of {gpus}, as its launcher numbers it")
    torch.cuda.set_device(place)  # for whatever is made on `cuda`
    return place
