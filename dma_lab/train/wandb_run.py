"""A run at Weights & Biases: every run directory is a wandb run of its own, however many a process trains.

Its id is the directory's name, and a continued run goes on in it: a step is logged once. Under a sweep's agent the
first run that the process trains is the agent's; further ones (branches) stand beside it, in the same group, outside
the sweep: an agent expects one result of a command.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dma_lab.files import write_whole
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import TrainSettings

_AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
"""What an agent says to the process that it starts."""


class WandbLog:
    """Takes a run's lines. Of a run whose ``logger`` is another, nothing."""

    def __init__(self, run: Any = None, logged: int = 0) -> None:
        self._run, self._logged = run, logged
        self.exit_code = 1
        """0 once the run is finished."""

    def add(self, line: dict[str, Any], step: int) -> None:
        """Log the line of step ``step``, unless that one was logged before."""
        if self._run is not None and step > self._logged:
            self._run.log(line, step=step)
            self._logged = step


@contextmanager
def wandb_log(settings: TrainSettings, run: RunDirectory, logged: int) -> Iterator[WandbLog]:
    """The log of a run that is about to train. Online with an API key, offline without: never a question.

    Lines that ``run`` holds already and wandb does not (a branch's, from the shorter one) are logged first.

    Args:
        settings, run: of the run; its lines are those that training goes on from.
        logged: ``last_step`` of the run, taken before lines were dropped that training will repeat.
    """
    if settings.logger.name != "wandb" or not run.writer:
        yield WandbLog()
        return
    import wandb

    noted = run.path / "wandb.json"
    id_before = json.loads(noted.read_text(encoding="utf-8"))["id"] if noted.exists() else None
    agents = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    identity = agents or id_before or run.path.name
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online" and not wandb.login(prompt=False):
        mode = "offline"
    wandb_run = wandb.init(
        name=run.path.name,
        group=run.path.name.rpartition("-")[0],  # all but what tells budgets apart
        id=None if agents else identity,  # wandb takes the agent's by itself
        project=settings.logger.project or "dma_lab",
        entity=settings.logger.entity,
        dir=str(run.path),
        mode=mode,  # type: ignore[arg-type]  # and says so itself when it knows no such mode
        config=settings.written(),
        resume="allow" if mode == "online" else None,
        reinit="finish_previous",
    )
    log = WandbLog(wandb_run, logged if identity == id_before else 0)
    write_whole(noted, json.dumps({"id": identity}) + "\n")
    try:
        speeds = {line["step"]: line for line in _parsed(run.lines[run.speed.name])}
        for line in _parsed(run.lines[run.metrics.name]):
            log.add(line | speeds.get(line["step"], {}), line["step"])
        yield log
    finally:
        wandb_run.finish(exit_code=log.exit_code)
        if agents:
            for name in _AGENTS:
                os.environ.pop(name, None)
            wandb.teardown()  # which read them once for the whole process


def last_step(run: RunDirectory) -> int:
    """Of the last line in the run's metrics that can be read; 0 without one."""
    lines = run.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if run.metrics.exists() else []
    return max((line["step"] for line in _parsed(lines)), default=0)


def _parsed(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Of the lines, those that are whole."""
    parsed = []
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            parsed.append(line)
    return parsed
