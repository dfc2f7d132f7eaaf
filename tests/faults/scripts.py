"""The commands that trials give, and how one is run with a fault.

Hydra's composition of conf/ takes longer than a tiny training: it is done once a kind of command, before the fork, and
what is a trial's own is set in its result.
"""

import functools
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.file_events import Fault
from tests.made_up import TINY_MODEL
from tests.scripts import KILLED as KILLED
from tests.scripts import Scripts, Started

# Twelve steps: lines at 2, 4, …, validations at 6 and 12, checkpoints at 4, 8 and 12.
TINY = (
    *TINY_MODEL,
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
HANGS = 1000
"""Stands for the status of a process that does not end; none has it."""


@dataclass(frozen=True)
class Command:
    """A script, what its config is composed of, and what is set in that."""

    script: str
    """Without its suffix: ``train``."""
    overrides: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def with_(self, **settings: Any) -> "Command":
        """``data__path=…`` sets data.path."""
        own = {name.replace("__", "."): value for name, value in settings.items()}
        return Command(self.script, self.overrides, {**self.settings, **own})

    @property
    def arguments(self) -> list[str]:
        return [*self.overrides, *(f"{name}={value}" for name, value in self.settings.items())]


class FaultyStarted(Started):
    """A script that was started, and whose file events are counted."""

    def __init__(self, started: Started, counted: Path) -> None:
        super().__init__(started.process, started.said)
        self._counted = counted

    def ended(self, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Its status and what it said; ``HANGS`` for a process that had to be killed after ``seconds``."""
        try:
            return super().ended(seconds)
        except subprocess.TimeoutExpired as late:
            return subprocess.CompletedProcess([], HANGS, stdout=str(late.stdout), stderr=str(late.stderr))

    @property
    def events(self) -> int:
        """File events that were counted; of a process that came to its end."""
        return int(json.loads(self._counted.read_text()))


class FaultyScripts:
    """Runs scripts with a fault."""

    def __init__(self, scripts: Scripts) -> None:
        self.scripts = scripts

    def start(
        self,
        command: Command,
        folder: Path,
        fault: Fault | None = None,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> FaultyStarted:
        """Start a script in the working directory ``folder``, below which file events are counted if a fault is given.

        Args:
            environment: what is set there beside what is set here.
            before: called there before the script is run; it gets there pickled.
        """
        counted = folder.with_name(f"{folder.name}.events")
        prepare = functools.partial(_prepare, before, command, folder, fault, counted)
        env = {**os.environ, **(environment or {})}
        started = self.scripts.start(f"{command.script}.py", command.arguments, folder=folder, env=env, before=prepare)
        return FaultyStarted(started, counted)

    def run(self, command: Command, folder: Path, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.start(command, folder, *arguments, **options).ended()


def _prepare(before: Callable[[], object] | None, *arguments: Any) -> None:
    from tests.faults import warm  # which is in the process that this one is a fork of, and in no other

    if before is not None:
        before()
    warm.prepare(*arguments)
