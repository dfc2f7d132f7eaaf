"""The memory that there is, and the most that one run took, in a process that may have trained others before it."""

import gc
import os
import resource
import sys
from pathlib import Path

import torch

from dma_lab.messages import UserError
from dma_lab.train.hardware import Hardware
from dma_lab.train.plan import RunPlan
from dma_lab.train.settings import TrainerSettings

_CONTAINER = Path("/sys/fs/cgroup/memory.max")  # of Linux
_PROCESS = Path("/proc/self")  # of Linux


def forget_peak(device: torch.device) -> None:
    """Count from here what ``peak_bytes`` tells; what is no longer needed is given back first.

    Where the system does not let a process do so (no /proc of Linux's), the peak on the CPU stays that of the whole
    process.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        (_PROCESS / "clear_refs").write_text("5")  # of proc(5): the high-water mark becomes what is resident now
    except OSError:
        return


def peak_bytes(device: torch.device) -> int:
    """Largest memory since ``forget_peak``: allocated on the GPU, or resident of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def refuse_beyond_memory(plan: RunPlan, rung: str, trainer: TrainerSettings, hardware: Hardware) -> None:
    """Raises UserError if the run of ``plan`` needs more memory than the device, or the machine, has at all."""
    on_gpu = hardware.device.type == "cuda"
    there = torch.cuda.get_device_properties(hardware.device).total_memory if on_gpu else _machine_bytes()
    needed = plan.memory.total * (1 if on_gpu else trainer.devices)
    if needed > there:
        states = plan.memory.total - plan.memory.activations
        sequences = plan.sequences_per_step // trainer.processes // plan.accumulate
        raise UserError(
            f"model={rung}: training it needs about {needed / 2**30:,.0f} GiB ({states / 2**30:,.0f} for weights "
            f"and their updates, the rest for {sequences:,} sequences of {plan.shape.max_seq_len:,} tokens) "
            f"and {hardware.name} has {there / 2**30:,.0f}; choose a smaller model or trainer.micro_batch_sequences."
        )


def out_of_memory(plan: RunPlan, devices: int, hardware: Hardware) -> UserError:
    """What to say of a training for which the GPU had no memory left."""
    sequences = plan.sequences_per_step // devices // plan.accumulate
    advice = f"set trainer.micro_batch_sequences={sequences // 2}" if sequences > 1 else "choose a smaller model"
    return UserError(
        f"{hardware.name} has no memory left for micro-batches of {sequences:,} sequences of "
        f"{plan.shape.max_seq_len:,} tokens, or another program takes it; {advice} and give the same command again."
    )


def _machine_bytes() -> int:
    """Memory of the machine, or of the container that this process is in."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(there, int(_CONTAINER.read_text()))
    except (OSError, ValueError):  # no such file; "max"
        return there
