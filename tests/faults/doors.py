"""The project's doors, opened in forks of one process that has everything imported: a trial costs its own work alone.

What a fork does is what ``python train.py …`` does from ``open_door`` on, but for Hydra's composition of conf/, which
takes longer than a tiny training: it is done once a kind of command, and what is a trial's own is set in its result.
"""

import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.faults.file_events import Fault

ROOT = Path(__file__).resolve().parents[2]
# Twelve steps: lines at 2, 4, …, validations at 6 and 12, checkpoints at 4, 8 and 12.
TINY = (
    "model.name=tiny",
    "model.n_layers=1",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.head_dim=16",
    "model.d_ff=64",
    "model.vocab_size=320",
    "attention=mha",
    "data=local",
    "data.validation_fraction=0.1",
    "trainer.context=32",
    "trainer.tokens_per_step=128",
    "trainer.validation_tokens=256",
    "trainer.log_every=2",
    "trainer.validate_every=6",
    "trainer.checkpoint_every=4",
    "tokens=1536",
    "data.cache_dir=cache",
    "output_dir=runs",
)
"""Its files lie in the working directory."""

CONTEXT = ("suite=context", "suite.lengths=[16,32]", "checkpoint=???")
EXPORT = ("to=exported", "checkpoint=???")
REPORT = ("runs=runs", "output_dir=report")


@dataclass(frozen=True)
class Command:
    """A door, what its config is composed of, and what is set in that."""

    door: str
    overrides: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def with_(self, **settings: Any) -> "Command":
        """``data__path=…`` sets data.path."""
        own = {name.replace("__", "."): value for name, value in settings.items()}
        return Command(self.door, self.overrides, {**self.settings, **own})


class Opened:
    """A door that was opened."""

    def __init__(self, process: ForkServerProcess, log: Path) -> None:
        self.process, self.log = process, log

    def ended(self, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Its status and what it said, once it has ended; killed after ``seconds``, and then its status says so."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        assert self.process.exitcode is not None
        said = self.log.read_text(encoding="utf-8", errors="replace")
        return subprocess.CompletedProcess([], self.process.exitcode, stdout="", stderr=said)

    @property
    def events(self) -> int:
        """File events that were counted; of a process that came to its end."""
        return int(json.loads(self.log.with_suffix(".events").read_text()))


class Doors:
    """Opens doors in forks of a process of its own, which has no threads and nothing open of this one's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.warm"])
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for it, which imports before it is told of any path

    def start(
        self, command: Command, folder: Path, fault: Fault | None = None, environment: Mapping[str, str] | None = None
    ) -> Opened:
        """Open a door in the working directory ``folder``, below which file events are counted if a fault is given."""
        from tests.faults import warm

        self._number += 1
        log = self.folder / f"{self._number}.log"
        log.touch()
        process = self._context.Process(target=warm.opened, args=(command, folder, log, fault, environment or {}))
        process.start()
        return Opened(process, log)

    def open(self, command: Command, folder: Path, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.start(command, folder, *arguments, **options).ended()


KILLED = -signal.SIGKILL
