"""What became of a run, in words."""

import fcntl
from pathlib import Path
from typing import Any


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
        return "running" if _is_held(path / "run.lock") else "killed before its end; the same command continues it"
    if status == "interrupted":
        return f"interrupted at step {summary.get('step', '?')} of {summary['steps']}; the same command continues it"
    return str(status)


def _is_held(lock: Path) -> bool:
    """Whether a process holds the run."""
    try:
        with lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
