"""Records of measurements: what was run, on what, from which commit, and every number, in one JSON file."""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dma_lab.files import write_whole
from dma_lab.train.runs import git_commit

_PACKAGES = ("torch", "triton", "lightning", "flash-attn", "flash-attn-4", "fla-core", "flash-dmattn", "transformers")


def machine() -> dict[str, Any]:
    """The hardware and the versions that a figure depends on."""
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})",
        "cuda": torch.version.cuda if on_gpu else None,
        "driver": _driver() if on_gpu else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def write_record(
    results_dir: str | Path, suite: str, measured: dict[str, Any], started: datetime | None = None
) -> Path:
    """Write ``<suite>-<device>-<time>.json`` whole or not at all; returns its path.

    A suite that gives the time it ``started`` writes one record again and again, so that what it measured survives it.
    """
    now = started or datetime.now(UTC)
    record = {
        "suite": suite,
        "command": " ".join([_program(), suite, *sys.argv[1:]]),
        "utc": now.isoformat(timespec="seconds"),
        "commit": git_commit(),
        **machine(),
        **measured,
    }
    device = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    path = Path(results_dir) / f"{suite}-{device}-{now:%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return path


def _program() -> str:
    return "python bench.py" if Path(sys.argv[0]).name == "bench.py" else "dma-lab bench"


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
