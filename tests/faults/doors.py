"""The commands that trials give, and how one is opened with a fault.

Hydra's composition of conf/ takes longer than a tiny training: it is done once a kind of command, before the fork, and
what is a trial's own is set in its result.
"""

import functools
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.doors import KILLED as KILLED
from tests.doors import Doors, Opened
from tests.faults.file_events import Fault

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

    @property
    def arguments(self) -> list[str]:
        return [*self.overrides, *(f"{name}={value}" for name, value in self.settings.items())]


class FaultyDoors:
    """Opens doors with a fault."""

    def __init__(self, doors: Doors) -> None:
        self.doors = doors

    def start(
        self, command: Command, folder: Path, fault: Fault | None = None, environment: Mapping[str, str] | None = None
    ) -> Opened:
        """Open a door in the working directory ``folder``, below which file events are counted if a fault is given.

        Args:
            environment: what is set there beside what is set here.
        """
        before = functools.partial(_prepare, command, folder, fault, self._counted(folder))
        env = {**os.environ, **(environment or {})}
        return self.doors.start(f"{command.door}.py", command.arguments, folder=folder, env=env, before=before)

    def open(self, command: Command, folder: Path, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.start(command, folder, *arguments, **options).ended()

    def events(self, folder: Path) -> int:
        """File events that the last door counted there that came to its end."""
        return int(json.loads(self._counted(folder).read_text()))

    def _counted(self, folder: Path) -> Path:
        return folder.with_name(f"{folder.name}.events")


def _prepare(*arguments: Any) -> None:
    from tests.faults import warm  # which is in the process that this one is a fork of, and in no other

    warm.prepare(*arguments)
