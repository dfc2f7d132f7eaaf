"""Say what a run will be and cost, before anything is spent: ``python plan.py experiment=chinchilla_dma``."""

from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from dma_lab.entry_point import run_entry_point
from dma_lab.messages import UserError
from dma_lab.phases import phase

if TYPE_CHECKING:
    from dma_lab.train.branches import Branch


def main(config: DictConfig) -> None:
    with phase("importing PyTorch"):  # seconds, for which --help and a mistaken setting need not wait
        import torch

        from dma_lab.threads import use_threads
        from dma_lab.train.hardware import resolve_hardware
        from dma_lab.train.memory import refuse_beyond_memory
        from dma_lab.train.plan import padded_vocabulary, plan_run
        from dma_lab.train.plan_table import print_plan, probed_time, stated_time, unknown_time
        from dma_lab.train.reading import read_plan_settings, say_unused_window
        from dma_lab.train.vocabulary import planned_vocabulary
    settings = read_plan_settings(config, HydraConfig.get().overrides.task)
    say_unused_window(config)
    hardware = resolve_hardware(settings.trainer)
    plan = plan_run(settings, padded_vocabulary(planned_vocabulary(settings)), hardware)
    branches: list[Branch] = []
    if settings.schedule.branches:
        from dma_lab.train.branches import plan_branches, print_branches  # with Lightning: seconds more

        branches = plan_branches(settings, plan.shape.vocab_size, hardware)
    if settings.flops_per_second is None:
        try:
            refuse_beyond_memory(plan, settings.model.name, settings.trainer, hardware)
        except UserError as error:
            said = str(error).rstrip(".")
            raise UserError(f"{said}, or state another machine's executed FLOP/s by flops_per_second.") from None
        use_threads(plan.micro_batch_flops, hardware.device)
        with phase("importing Lightning"):
            from dma_lab.train.probe import probe_run
        with phase("taking some steps to time them"):
            try:
                time = probed_time(probe_run(settings, plan, hardware))
            except torch.OutOfMemoryError:
                time = unknown_time(settings, plan, hardware)
    else:
        time = stated_time(plan, settings.flops_per_second, settings.trainer.processes)
    print_plan(settings, plan, hardware, time)
    if branches:
        print_branches(branches, Console())


def run() -> None:
    run_entry_point(main, "plan")
