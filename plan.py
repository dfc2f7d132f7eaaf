"""Say what a run will be and cost, before anything is spent: ``python plan.py experiment=chinchilla_dma``."""

from omegaconf import DictConfig, open_dict
from rich.console import Console

from dma_lab.door import open_door
from dma_lab.messages import UserError
from dma_lab.train.branches import plan_branches, print_branches
from dma_lab.train.fit_run import padded_vocabulary
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import plan_run
from dma_lab.train.plan_table import print_plan
from dma_lab.train.probe import probe_step_seconds
from dma_lab.train.settings import read_settings


def main(config: DictConfig) -> None:
    with open_dict(config):
        flops_per_second = config.pop("flops_per_second")
    if flops_per_second is not None and not (isinstance(flops_per_second, int | float) and flops_per_second > 0):
        raise UserError(
            f"flops_per_second={flops_per_second}: give what one device sustains, as in 3e14, or null to measure."
        )
    settings = read_settings(config)
    hardware = resolve_hardware(settings.trainer)
    plan = plan_run(settings, padded_vocabulary(settings.model.vocab_size), hardware)
    branches = plan_branches(settings, plan.shape.vocab_size, hardware) if settings.schedule.branches else None
    if flops_per_second is None:
        seconds = plan.steps * probe_step_seconds(settings, plan, hardware)
        source = "from a probe of 3 micro-batches here; validation and compilation not included"
        if hardware.compile:
            source += "; the probe's blocks are not compiled, those of training are"
    else:
        seconds = plan.flops.executed / (flops_per_second * settings.trainer.devices)
        source = f"at {flops_per_second:.3g} executed FLOP/s a device, as stated"
    print_plan(settings, plan, hardware, seconds, source)
    if branches is not None:
        print_branches(branches, Console())


if __name__ == "__main__":
    open_door(main, "plan")
