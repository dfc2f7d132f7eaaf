"""The most memory that one run took, in a process that may have trained others before it."""

import gc
import resource
import sys
from pathlib import Path

import torch

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
