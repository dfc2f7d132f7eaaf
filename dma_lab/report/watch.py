"""``report.py watch=true``: the page written anew as runs begin and end."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dma_lab.messages import UserError


def watch(roots: Sequence[Path], write: Callable[[], None], seconds: float) -> None:
    """Call ``write`` now, and whenever a summary under ``roots`` has changed, until Ctrl-C.

    Args:
        roots: where runs are, or will be.
        write: writes the page. A UserError that it raises (no run yet) is printed, and the next look waited for.
        seconds: between two looks.
    """
    shown: dict[Path, int] | None = None
    try:
        while True:
            found = _summaries(roots)
            if found != shown:
                shown = found
                try:
                    write()
                except UserError as error:
                    print(f"waiting: {error}", flush=True)
            time.sleep(seconds)
    except KeyboardInterrupt:
        print("stopped watching; the page stays as it was written last.")


def _summaries(roots: Sequence[Path]) -> dict[Path, int]:
    """Every summary and when it was written."""
    found = {}
    for file in (file for root in roots for file in root.rglob("summary.json")):
        try:
            found[file] = file.stat().st_mtime_ns
        except FileNotFoundError:  # deleted just now
            continue
    return found
