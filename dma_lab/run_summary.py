"""``summary.json``: a run's results, with a digest of itself and, once the run has ended, of the files beside it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dma_lab.files import write_whole
from dma_lab.seals import sealed, unsealed

SUMMARY = "summary.json"
BESIDE = ("config.yaml", "metrics.jsonl", "speed.jsonl", "validation.npz")
"""Files that no longer change once a run has ended. Checkpoints vouch for themselves."""
LIFETIMES = "lifetimes.npz"
"""How long DMA's keys live, once that was measured (dma_lab/evaluation/lifetimes.py)."""
_FILES = "files"


def write_summary(run: Path, summary: dict[str, Any]) -> None:
    """Write the summary of the run in the directory ``run``.

    Raises:
        OSError: as the system reports it.
    """
    if summary["status"] in ("finished", "diverged"):
        summary = summary | {_FILES: {name: _digest(run / name) for name in BESIDE if (run / name).exists()}}
    write_whole(run / SUMMARY, sealed(summary))


def read_summary(run: Path, *, beside: Sequence[str] = BESIDE) -> dict[str, Any]:
    """What was written last for the run in the directory ``run``.

    Args:
        beside: the files that have to be what they were when the run ended.

    Raises:
        ValueError: the summary, or one of these files, is not what was written.
        OSError: as the system reports it.
    """
    summary = unsealed((run / SUMMARY).read_text(encoding="utf-8"))
    for name, digest in summary.pop(_FILES, {}).items():
        if name not in beside:
            continue
        if not (run / name).exists():
            raise ValueError(f"{name} beside it is missing")
        if _digest(run / name) != digest:
            raise ValueError(f"{name} beside it is not what was written")
    return summary


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
