"""Run directories: one a run, named by what defines its result, readable without this code.

``config.yaml`` (resolved), ``metrics.jsonl`` (what training computed, a line a logging step: a continued run repeats it
to the bit), ``speed.jsonl`` (how fast, which no run repeats), ``validation.npz``, ``summary.json``, ``checkpoints/``
(``last.ckpt``; of a branch also ``stable.ckpt``, the state in which its decay begins and longer branches go on).
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dma_lab.data.build import NO_ROOM
from dma_lab.messages import UserError


class RunHeldError(UserError):
    """Another process trains the run in ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is being trained by another process; wait for it or stop it.")
        self.path = path


def identity(defining: dict[str, Any]) -> str:
    """Eight hex digits that change with anything in ``defining`` (JSON-able) and with nothing else."""
    return hashlib.blake2b(json.dumps(defining, sort_keys=True).encode(), digest_size=4).hexdigest()


def to_json(values: dict[str, Any], indent: int | None = None) -> str:
    """JSON as its standard has it: a number that is not finite becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [finite(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(values), indent=indent, allow_nan=False)


class RunDirectory:
    """Files of one run. Write ``claimed`` ones alone: a run is written by one process at a time.

    Of several processes that train one run together, all but the first are not its ``writer``: for them every method
    that would write does nothing.
    """

    def __init__(self, path: Path, *, writer: bool = True) -> None:
        self.path = path
        self.writer = writer
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self.stable = path / "checkpoints" / "stable.ckpt"
        self.metrics = path / "metrics.jsonl"
        self.speed = path / "speed.jsonl"
        self.validation = path / "validation.npz"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run within the context, and no longer than this process lives, however it ends.

        Holds among all machines that share the directory, where its file system passes ``flock`` on (NFS does).

        Raises:
            RunHeldError: another process holds it.
            UserError: the directory cannot be written, or its disk is full.
        """
        if not self.writer:
            yield
            return
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "run.lock").open("w")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): set output_dir={self.path.parent} to a directory "
                "that can."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunHeldError(self.path) from None
            try:
                yield
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise UserError(
                    f"No room left for {self.path} ({error.strerror}); what was saved before is whole. Free some space "
                    "there and give the same command to continue, or set another output_dir."
                ) from error

    def summary(self) -> dict[str, Any] | None:
        """What ``write_summary`` last wrote; None before that."""
        path = self.path / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        self._write("summary.json", to_json(summary, indent=2) + "\n")

    def write_config(self, config: dict[str, Any]) -> None:
        self._write("config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))

    def keep(self, checkpoint: Path) -> None:
        """Make a copy of ``checkpoint`` the stable one."""
        partial = self.stable.with_suffix(".partial")
        shutil.copyfile(checkpoint, partial)
        partial.replace(self.stable)

    def begin_from(self, runs: Sequence[tuple[Path, int]]) -> None:
        """Take the first steps from the first of ``runs`` that has a stable checkpoint, which is of the step beside it.

        Lines after that step go where training continues. The own checkpoint comes last, and whole: cut before that,
        the run has not begun.
        """
        kept = [(RunDirectory(path), step) for path, step in runs if RunDirectory(path).stable.exists()]
        if not kept or not self.writer:
            return
        other, step = kept[0]
        for file in (other.metrics, other.speed):
            self._write(file.name, file.read_text())
        self._write("branched_from.json", json.dumps({"run": other.path.name, "step": step}) + "\n")
        partial = self.checkpoint.with_suffix(".partial")
        shutil.copyfile(other.stable, partial)
        partial.replace(self.checkpoint)

    def steps_shared(self) -> int:
        """Steps that another run took for this one; 0 for a run that took all its own."""
        path = self.path / "branched_from.json"
        return json.loads(path.read_text())["step"] if path.exists() and self.checkpoint.exists() else 0

    def taken_over(self) -> list[dict[str, Any]]:
        """Summaries of the runs that took the steps behind the checkpoint: this one, and the one it branched from."""
        if not self.checkpoint.exists():
            return []
        branched = self.path / "branched_from.json"
        other = RunDirectory(self.path.parent / json.loads(branched.read_text())["run"]) if branched.exists() else None
        return [summary for run in (other, self) if run is not None and (summary := run.summary()) is not None]

    def rewind(self, step: int) -> None:
        """Drop the lines written after ``step``, and a last line that was cut off while being written."""
        for file in (self.metrics, self.speed):
            if self.writer and file.exists():
                kept = [line for line in file.read_text().splitlines(keepends=True) if _step_of(line) <= step]
                self._write(file.name, "".join(kept))

    def append(self, file: Path, line: dict[str, Any]) -> None:
        """Add one JSON line to ``metrics`` or ``speed``."""
        if not self.writer:
            return
        with file.open("a") as stream:
            stream.write(to_json(line) + "\n")

    def _write(self, name: str, text: str) -> None:
        """Replace a file as a whole, so that no reader and no power cut finds half of it."""
        if not self.writer:
            return
        partial = self.path / f"{name}.partial"
        with partial.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.path / name)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")


def git_commit() -> str:
    """Commit of the running code, ``-dirty`` when tracked files differ from it; ``unknown`` outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit
