"""What became of each point of a multirun, in files: points may run in other processes and on other machines."""

import contextlib
import fcntl
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dma_lab.files import write_whole


@dataclass(frozen=True)
class FailedPoint:
    """What a failed point of a multirun returns in place of its result. Plain text: it may cross processes."""

    reason: str
    summaries: list[dict[str, Any]] = field(default_factory=list)
    """Of the runs that it finished before."""


@dataclass(frozen=True)
class HeldPoint:
    """What a point of a multirun returns whose run another process trains."""

    run: str
    """The run's directory."""
    summaries: list[dict[str, Any]] = field(default_factory=list)
    """Of the runs that it finished before."""


@dataclass(frozen=True)
class Point:
    """One point of a multirun."""

    overrides: str
    """As on a command line."""
    summaries: list[dict[str, Any]] = field(default_factory=list)
    """Of its finished runs."""
    failure: str | None = None
    """Why it failed."""
    held: str | None = None
    """The run's directory, where another process trains it."""
    ended: bool = True
    """False of a point that runs, or whose process ended before the point did."""


class SweepPoints:
    """A folder in the sweep's directory with one file per point, for as long as the multirun lasts.

    Pickled, it is the folder's path: that is what the processes that run points have of it.
    """

    def __init__(self, sweep_dir: Path) -> None:
        """Make the folder, and remove those of multiruns that were killed: nobody holds their locks."""
        sweep_dir.mkdir(parents=True, exist_ok=True)
        for other in sweep_dir.glob(".sweep-*"):
            try:
                with (other / "lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(other, ignore_errors=True)
            except OSError:  # held, or just removed by another
                continue
        # Locked before it has the name by which another multirun would find it.
        begun = Path(tempfile.mkdtemp(prefix=".begun-", dir=sweep_dir.resolve()))
        self._lock = (begun / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder = begun.rename(begun.with_name(begun.name.replace(".begun-", ".sweep-")))

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def write(self, number: int, point: Point) -> None:
        """Say what is known of the multirun's ``number``-th point.

        A launcher's process may outlive its multirun that was killed: where another tidied up after that, nobody reads.
        """
        file = self.folder / f"{number:06}.json"
        with contextlib.suppress(FileNotFoundError):
            write_whole(file, json.dumps(asdict(point)))

    def read(self) -> list[Point]:
        """All points that have begun, in their order."""
        return [Point(**json.loads(file.read_text())) for file in sorted(self.folder.glob("*.json"))]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
