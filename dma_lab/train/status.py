"""What became of a run, in words."""

from pathlib import Path

from dma_lab.locks import is_held
from dma_lab.run_summary import Summary


def status_in_words(path: Path, summary: Summary) -> str:
    """``finished``, or what became of the run in ``path`` instead: on one line, as rows of tables and lists are."""
    status, step = summary.status, summary.step
    reason = " ".join((summary.reason or "no reason given").split())  # of an error, which may be several lines
    reached = "?" if step is None else step
    if status == "finished":
        return status
    if status == "diverged":
        return f"diverged at step {reached}: {reason}"
    if status == "failed":
        return f"failed: {reason}"
    if status == "interrupted":
        return f"interrupted at step {reached} of {summary.steps}; the same command continues it"
    return "running" if _trained_now(path) else "killed before its end; the same command continues it"


def _trained_now(path: Path) -> bool:
    """Whether a process holds the run; not where that cannot be told."""
    try:
        return is_held(path / "run.lock")
    except OSError:
        return False
