"""A run that lies in several folders is one run: of its copies one is read, and the others are counted."""

import hashlib
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from dma_lab.run_summary import Summary
from dma_lab.seals import digest_of

_Held = TypeVar("_Held")


def content_of(path: Path, summary: Summary) -> str:
    """Names what the run in ``path`` is and what it came to: the same of its copies and of an archive's, wherever they
    lie, and another of the same command given once more, whose seconds are others.
    """
    known = {name: value for name, value in summary.written().items() if name != "run"}
    digest = hashlib.blake2b(digest_of(known).encode(), digest_size=16)
    # A finished run's summary says all that it computed; an archive thins its metrics.
    for name in ("config.yaml", *(() if summary.status == "finished" else ("metrics.jsonl",))):
        if (path / name).exists():
            digest.update((path / name).read_bytes())
    return digest.hexdigest()


def without_copies(
    runs: Iterable[_Held], content: Callable[[_Held], Hashable], worth: Callable[[_Held], Any]
) -> list[tuple[_Held, list[_Held]]]:
    """Of runs of equal ``content`` the first of most ``worth``, in the place of the first, and the others of it."""
    found: dict[Hashable, list[_Held]] = {}
    for run in runs:
        found.setdefault(content(run), []).append(run)
    single = []
    for copies in found.values():
        kept = max(copies, key=worth)
        single.append((kept, [other for other in copies if other is not kept]))
    return single
