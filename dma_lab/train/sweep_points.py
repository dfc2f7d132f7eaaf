"""What became of each point of a multirun, in files: points may run in other processes and on other machines."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dma_lab.files import write_whole
from dma_lab.locks import hold, is_held
from dma_lab.run_summary import Summary

_ALL, _LOCK = "all.json", "lock"


@dataclass(frozen=True)
class FailedPoint:
    """What a failed point of a multirun returns in place of its result. Plain text: it may cross processes."""

    reason: str
    summaries: list[Summary] = field(default_factory=list)
    """Of the runs that it finished before."""


@dataclass(frozen=True)
class HeldPoint:
    """What a point of a multirun returns whose run another process trains."""

    run: str
    """The run's directory."""
    summaries: list[Summary] = field(default_factory=list)
    """Of the runs that it finished before."""


@dataclass(frozen=True)
class Point:
    """One point of a multirun."""

    overrides: str
    """As on a command line."""
    summaries: list[Summary] = field(default_factory=list)
    """Of its finished runs."""
    failure: str | None = None
    """Why it failed."""
    held: str | None = None
    """The run's directory, where another process trains it."""
    ended: bool = True
    """False of a point that runs, or whose process ended before the point did."""
    process: dict[str, Any] | None = None
    """Of one that has not ended: the process that runs it (dma_lab/train/process.py)."""

    @property
    def is_done(self) -> bool:
        """Whether the process that wrote this did it, and well."""
        return self.ended and self.failure is None and self.held is None


class SweepPoints:
    """A folder in the sweep's directory with one file per point that has begun, and the list of all.

    It stays behind where a multirun ends with points left or failed: ``report.py status`` tells them. Pickled, it is
    the folder's path: that is what the processes that run points have of it.
    """

    def __init__(self, sweep_dir: Path, points: Sequence[str] | None = None) -> None:
        """Make the folder, and remove those of ended multiruns that it replaces: of the same ``points``, or all done.

        Args:
            sweep_dir: the multirun's ``output_dir``.
            points: the overrides of all its points; None where nobody knows them before they begin.
        """
        sweep_dir.mkdir(parents=True, exist_ok=True)
        for other in sweep_dir.glob(".sweep-*"):
            if not (record := read_sweep(other)).alive and (record.over or record.all == points):
                shutil.rmtree(other, ignore_errors=True)
        # Locked before it has the name by which another multirun would find it.
        begun = Path(tempfile.mkdtemp(prefix=".begun-", dir=sweep_dir.resolve()))
        write_whole(begun / _ALL, json.dumps(points))
        self._lock = (begun / _LOCK).open("w")
        hold(self._lock)
        self.folder = begun.rename(begun.with_name(begun.name.replace(".begun-", ".sweep-")))

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def write(self, number: int, point: Point) -> None:
        """Say what is known of the multirun's ``number``-th point.

        A launcher's process may outlive its multirun that was killed: where another tidied up after that, nobody reads.
        """
        file = self.folder / f"{number:06}.json"
        with contextlib.suppress(FileNotFoundError):
            write_whole(file, json.dumps(asdict(point) | {"summaries": [own.written() for own in point.summaries]}))

    def read(self) -> list[Point]:
        """All points that have begun, in their order."""
        return _read_points(self.folder)

    def forget(self) -> None:
        """End the multirun as one that never was."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """End the multirun. Its folder stays where it says something: what is left, or what others need not do.

        One that was killed left nothing to be done if those that had its points too did them.
        """
        self._lock.close()
        others = {other: read_sweep(other) for other in self.folder.parent.glob(".sweep-*")}
        if any(record.alive for record in others.values()):
            return
        done = {point.overrides for record in others.values() for point in record.begun if point.is_done}
        for folder, record in others.items():
            if record.over or (record.all is not None and done >= set(record.all)):
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class SweepRecord:
    """A multirun, as its folder tells it."""

    folder: Path
    alive: bool
    all: list[str] | None
    """Overrides of every point; None where nobody knows."""
    begun: list[Point]

    @property
    def over(self) -> bool:
        """Whether it left nothing to be done."""
        done = {point.overrides for point in self.begun if point.is_done or point.held is not None}
        return self.all is not None and done >= set(self.all)


def read_sweep(folder: Path) -> SweepRecord:
    """Of a multirun that lives or has ended. One of which not all can be read (it may be just removed) is empty."""
    try:
        every = json.loads((folder / _ALL).read_text(encoding="utf-8"))
        return SweepRecord(folder, is_held(folder / _LOCK), every, _read_points(folder))
    except (OSError, ValueError):
        return SweepRecord(folder, False, [], [])


def _read_points(folder: Path) -> list[Point]:
    points = (json.loads(file.read_text()) for file in sorted(folder.glob("[0-9]*.json")))
    return [Point(**point | {"summaries": [Summary.of(own) for own in point["summaries"]]}) for point in points]
