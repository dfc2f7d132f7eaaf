"""A run at Weights & Biases: every run directory is a wandb run of its own, however many a process trains.

Its id is the directory's name, and a continued run goes on in it: a step is logged once. Under a sweep's agent the
first run that the process trains is the agent's; further ones (branches) stand beside it, in the same group, outside
the sweep: an agent expects one result of a command.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import wandb

from dma_lab.files import write_whole
from dma_lab.train.run_log import RunLog, group_of
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import TrainSettings

_AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
"""What an agent says to the process that it starts."""


@contextmanager
def wandb_log(settings: TrainSettings, run: RunDirectory, logged: int) -> Iterator[RunLog]:
    """Online with an API key, offline without: never a question.

    Args:
        settings, run, logged: as ``run_log`` takes them.
    """
    noted = run.path / "wandb.json"
    id_before = json.loads(noted.read_text(encoding="utf-8"))["id"] if noted.exists() else None
    agents = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    identity = agents or id_before or run.path.name
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online" and not wandb.login(prompt=False):
        mode = "offline"
    wandb_run = wandb.init(
        name=run.path.name,
        group=group_of(run),
        id=None if agents else identity,  # wandb takes the agent's by itself
        project=settings.logger.project or "dma_lab",
        entity=settings.logger.entity,
        dir=str(run.path),
        mode=mode,  # type: ignore[arg-type]  # and says so itself when it knows no such mode
        config=settings.written(),
        resume="allow" if mode == "online" else None,
        reinit="finish_previous",
    )
    log = RunLog(lambda line, step: wandb_run.log(line, step=step), logged if identity == id_before else 0)
    write_whole(noted, json.dumps({"id": identity}) + "\n")
    try:
        yield log
    finally:
        wandb_run.finish(exit_code=log.exit_code)
        if agents:
            for name in _AGENTS:
                os.environ.pop(name, None)
            wandb.teardown()  # which read them once for the whole process
