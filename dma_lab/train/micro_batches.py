"""Smaller micro-batches for a training that runs out of memory: a step is the same sequences, in more parts."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from dma_lab.train.hardware import Hardware
from dma_lab.train.memory import out_of_memory
from dma_lab.train.micro_batch_size import divisors
from dma_lab.train.plan import RunPlan, plan_run
from dma_lab.train.ranks import Ranks
from dma_lab.train.settings import TrainSettings
from dma_lab.train.timing import Timing


def train_within_memory(
    train: Callable[[TrainSettings, RunPlan], dict[str, Any]],
    settings: TrainSettings,
    plan: RunPlan,
    begun_with: int | None,
    hardware: Hardware,
    ranks: Ranks,
    timing: Timing,
    begin_again: Callable[[], object],
) -> dict[str, Any]:
    """What ``train`` returns, with micro-batches halved until memory suffices, where nobody chose their size.

    Args:
        train: trains by the settings and the plan that it is given, which say how large micro-batches are. It raises
            torch.OutOfMemoryError only while nothing was saved, so that all steps of a process are taken alike.
        settings, plan: of the run.
        begun_with: sequences a micro-batch that the run was begun with; None where they were the plan's own choice.
        ranks: several processes are not tried again, since one that stopped leaves the others within a step.
        timing: forgets what was tried in vain.
        begin_again: called before every further try.

    Raises:
        UserError: there is no smaller one to try.
    """
    chosen, sequences, seconds = settings.trainer.micro_batch_sequences, plan.sequences_per_step, dict(timing.seconds)
    used = settings
    if chosen is None and begun_with is not None and sequences % begun_with == 0:
        used, plan = _with_micro_batch(settings, plan, begun_with, hardware)
    while True:
        try:
            return train(used, plan)
        except torch.OutOfMemoryError as error:
            tried = sequences // settings.trainer.processes // plan.accumulate
            smaller = max((size for size in divisors(sequences) if size <= tried / 2), default=None)
            if chosen is not None or ranks.count > 1 or smaller is None:
                raise out_of_memory(plan, settings.trainer.processes, hardware) from error
        # Here, where the error is gone, and with it all that its frames hold.
        print(
            f"dma_lab: {hardware.name} has no memory left for micro-batches of {tried:,} sequences: trained with "
            f"trainer.micro_batch_sequences={smaller}.",
            file=sys.stderr,
            flush=True,
        )
        used, plan = _with_micro_batch(settings, plan, smaller, hardware)
        timing.seconds = dict(seconds)
        begin_again()


def _with_micro_batch(
    settings: TrainSettings, plan: RunPlan, micro: int, hardware: Hardware
) -> tuple[TrainSettings, RunPlan]:
    used = replace(settings, trainer=replace(settings.trainer, micro_batch_sequences=micro))
    return used, plan_run(used, plan.shape.vocab_size, hardware)
