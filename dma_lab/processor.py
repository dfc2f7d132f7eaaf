"""What this machine's CPU is, as far as it decides how sums are rounded."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor(cpuinfo: Path = CPUINFO) -> str:
    """Architecture of this machine's CPU and, where ``cpuinfo`` has them, its maker and whether it has AVX-512.

    MKL and oneDNN choose the kernels of matrix products by these; ``ATEN_CPU_CAPABILITY`` limits PyTorch's own alone.
    """
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    said = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    known = {name.strip(): value.split() for name, value in said.items()}
    wide = ["AVX-512"] if "avx512f" in known.get("flags", []) else []
    return ", ".join([platform.machine(), *known.get("vendor_id", []), *wide])
