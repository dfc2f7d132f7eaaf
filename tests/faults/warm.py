"""Runs in the process that scripts are run in forks of: what a trial is spared, and the fault that it gets."""

import atexit
import functools
import gc
import json
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from tests.faults.file_events import Fault, FileEvents
from tests.faults.scripts import CONTEXT, EXPORT, REPORT, TINY, Command
from tests.scripts import ROOT


@functools.cache
def composed(script: str, overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(script, [*overrides, "hydra.mode=RUN"], return_hydra_config=True)


def prepare(command: Command, folder: Path, fault: Fault | None, counted: Path) -> None:
    """Have Hydra take the composed config, and count file events below ``folder`` if a fault is given."""
    config = composed(command.script, command.overrides)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    for setting, value in command.settings.items():
        OmegaConf.update(config, setting, value)
    hydra.main = lambda **_: lambda main: lambda: main(config)
    if fault is None:
        return
    events = FileEvents(folder, fault)

    @atexit.register
    def write() -> None:
        events.fault = Fault()
        counted.write_text(json.dumps(events.count))


for _script, _overrides in (("train", TINY), ("evaluate", CONTEXT), ("export", EXPORT), ("report", REPORT)):
    composed(_script, _overrides)
gc.collect()
gc.freeze()
