"""Run directories: one per run, named by what defines its result, readable without this code.

``config.yaml`` (resolved), ``metrics.jsonl`` (what training computed, one line per logging step; the same bits in a
resumed run), ``speed.jsonl`` (how fast, which no run repeats), ``validation.npz``, ``summary.json``, ``checkpoints/``
(``last.ckpt`` and the one before it, ``previous.ckpt``; of a branch also ``stable.ckpt``, the state in which its decay
begins and longer branches go on). The summary of a run that ended vouches for itself and for the files beside it, a
checkpoint for itself.

Checkpoints hold the lines that were written before them, so lines need not be on the disk before a checkpoint is, and
one that is lost is not lost for good.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dma_lab.data.build import NO_ROOM
from dma_lab.files import copy_whole, make_directory, remove_partials, sync, write_whole
from dma_lab.locks import hold
from dma_lab.messages import MishapError, RunHeldError, UserError
from dma_lab.run_summary import SUMMARY, Summary
from dma_lab.seals import finite


class RunDirectory:
    """Files of one run. Write ``claimed`` ones alone: a run is written by one process at a time.

    Of several processes that train one run together, all but the first are not its ``writer``: for them every method
    that would write does nothing.
    """

    def __init__(self, path: Path, *, writer: bool = True) -> None:
        self.path = path
        self.writer = writer
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self.previous = path / "checkpoints" / "previous.ckpt"
        self.stable = path / "checkpoints" / "stable.ckpt"
        self.metrics = path / "metrics.jsonl"
        self.speed = path / "speed.jsonl"
        self.validation = path / "validation.npz"
        self.lines: dict[str, list[str]] = {self.metrics.name: [], self.speed.name: []}
        """Of the two files, as they were written."""

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run within the context, and no longer than this process lives, however it ends.

        Raises:
            RunHeldError: another process holds it.
            UserError: the directory cannot be written.
            MishapError: it cannot be locked, or reading or writing failed within the context.
        """
        if not self.writer:
            yield
            return
        try:
            make_directory(self.checkpoint.parent)
            lock = (self.path / "run.lock").open("w")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): set output_dir={self.path.parent} to a directory "
                "that can."
            ) from error
        with lock:
            try:
                hold(lock)
            except BlockingIOError:
                raise RunHeldError(self.path) from None
            except OSError as error:
                raise MishapError(
                    f"{lock.name} cannot be locked ({error.strerror}), so another process might train this run too; "
                    "set output_dir to a file system that has locks."
                ) from error
            try:
                for directory in (self.path, self.checkpoint.parent):
                    remove_partials(directory)
                yield
            except OSError as error:
                if error.errno is None:
                    raise
                raise self._mishap(error) from error

    def _mishap(self, error: OSError) -> MishapError:
        what, advice = "Reading or writing failed", "fix that"
        if error.errno in NO_ROOM:
            what, advice = "No room left", "free some space there"
        return MishapError(
            f"{what} for {error.filename or self.path} ({error.strerror}); what was saved before is whole: {advice} "
            "and give the same command to continue, or set another output_dir."
        )

    def summary(self) -> Summary | None:
        """What ``write_summary`` last wrote; None before that, and where that is damaged, which is said.

        Raises:
            MishapError: the system does not let it be read.
        """
        try:
            return Summary.read(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            self.say(f"{self.path / SUMMARY} is damaged ({error}); what is missing is made again")
            return None
        except OSError as error:
            raise self._mishap(error) from error

    def write_summary(self, summary: Summary) -> None:
        if self.writer:
            summary.write(self.path)

    def write_config(self, config: dict[str, Any]) -> None:
        if self.writer:
            write_whole(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))

    def keep(self, checkpoint: Path) -> None:
        """Make a copy of ``checkpoint`` the stable one."""
        copy_whole(checkpoint, self.stable)

    def advance(self, checkpoint: Path) -> None:
        """Make ``checkpoint``, a whole file beside it, the last one, and the last one the previous."""
        for file in (self.metrics, self.speed):
            if file.exists():
                sync(file)
        with contextlib.suppress(FileNotFoundError):
            self.checkpoint.replace(self.previous)
        checkpoint.replace(self.checkpoint)
        sync(self.checkpoint.parent)

    def restore(self, lines: dict[str, str]) -> bool:
        """Make metrics and speed what they were when their ``lines`` were taken: those that came later are dropped.

        Returns:
            Whether both began with these lines; those that were lost or changed are there again.
        """
        if not self.writer:
            return True
        intact = True
        for file in (self.metrics, self.speed):
            text = lines.get(file.name, "")
            self.lines[file.name] = text.splitlines(keepends=True)
            found = file.read_bytes() if file.exists() else b""
            intact &= found.startswith(text.encode())
            if found != text.encode():
                write_whole(file, text)
        return intact

    def append(self, file: Path, line: dict[str, Any]) -> None:
        """Add one JSON line to ``metrics`` or ``speed``. It is on the disk for good with the next checkpoint."""
        if not self.writer:
            return
        text = json.dumps(finite(line), allow_nan=False) + "\n"
        with file.open("a", encoding="utf-8") as stream:
            stream.write(text)
        self.lines[file.name].append(text)

    def say(self, message: str) -> None:
        """Tell the user what befell the run; one process speaks for all that train it."""
        if self.writer:
            print(f"dma_lab: {message}.", file=sys.stderr, flush=True)


def git_commit() -> str:
    """Commit of the running code, ``-dirty`` when tracked files differ from it; outside a checkout its version, as
    ``v0.1.0``.

    A package that is installed below somebody else's repository is of no commit of theirs.
    """
    root = Path(__file__).resolve().parents[2]
    try:
        git = ["git", "-C", str(root)]
        asked = [*git, "rev-parse", "--show-toplevel", "HEAD"]
        top, commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
        if Path(top).resolve() == root:
            status = [*git, "status", "--porcelain", "--untracked-files=no"]
            changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
            return f"{commit}-dirty" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        return f"v{version('dma-lab')}"
    except PackageNotFoundError:
        return "unknown"
