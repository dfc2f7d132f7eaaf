"""Runs in the process that trials are forks of: imports what a door imports, composes what it would, opens it."""

import atexit
import functools
import gc
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import hydra
import matplotlib.pyplot  # noqa: F401
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

import evaluate
import export
import report
import train
from dma_lab.door import open_door
from tests.faults.doors import CONTEXT, EXPORT, REPORT, ROOT, TINY, Command
from tests.faults.file_events import Fault, FileEvents

MAINS = {"train": train.main, "evaluate": evaluate.main, "export": export.main, "report": report.main}


@functools.cache
def composed(door: str, overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(door, [*overrides, "hydra.mode=RUN"], return_hydra_config=True)


def opened(command: Command, folder: Path, log: Path, fault: Fault | None, environment: Mapping[str, str]) -> None:
    """``python DOOR.py OVERRIDES…`` in ``folder``, which says what it says into ``log``."""
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.environ.update(environment)
    os.chdir(folder)
    config = composed(command.door, command.overrides)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    for setting, value in command.settings.items():
        OmegaConf.update(config, setting, value)
    sys.argv = [f"{command.door}.py", *command.overrides]
    hydra.main = lambda **_: lambda main: lambda: main(config)
    events = FileEvents(folder, fault) if fault else None
    try:
        open_door(MAINS[command.door], command.door)
    finally:
        if events:
            events.fault = Fault()
            log.with_suffix(".events").write_text(json.dumps(events.count))
        sys.stdout.flush()


for _door, _overrides in (("train", TINY), ("evaluate", CONTEXT), ("export", EXPORT), ("report", REPORT)):
    composed(_door, _overrides)
gc.collect()
gc.freeze()  # or every fork would touch all of it
atexit.register(os._exit, 0)  # of this process alone: libraries that it froze would complain at its end
