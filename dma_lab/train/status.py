"""What became of a run, in words."""

from pathlib import Path
from typing import Any

from dma_lab.locks import is_held


def status_in_words(path: Path, summary: dict[str, Any]) -> str:
    """``finished``, or what became of the run in ``path`` instead."""
    status: str = summary["status"]
    if status == "finished":
        return status
    if status == "diverged":
        return f"diverged at step {summary.get('step', '?')}: {summary.get('reason', 'no reason given')}"
    if status == "failed":
        return f"failed: {summary.get('reason', 'no reason given')}"
    if status == "running":
        return "running" if _trained_now(path) else "killed before its end; the same command continues it"
    if status == "interrupted":
        return f"interrupted at step {summary.get('step', '?')} of {summary['steps']}; the same command continues it"
    return str(status)


def _trained_now(path: Path) -> bool:
    """Whether a process holds the run; not where that cannot be told."""
    try:
        return is_held(path / "run.lock")
    except OSError:
        return False
