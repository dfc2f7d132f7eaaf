"""Smaller micro-batches for a training that runs out of memory: a step is the same sequences, in more parts."""

import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from dma_lab.run_summary import End
from dma_lab.train.memory import out_of_memory
from dma_lab.train.micro_batch_size import divisors
from dma_lab.train.plan import plan_run
from dma_lab.train.training import Training, train_model


def train_within_memory(training: Training, begun_with: int | None, begin_again: Callable[[], object]) -> End:
    """What ``train_model`` returns, with micro-batches halved until memory suffices, where nobody chose their size.

    ``train_model`` raises torch.OutOfMemoryError only while nothing was saved, so that all steps of a process are taken
    alike. Several processes are not tried again, since one that stopped leaves the others within a step.

    Args:
        begun_with: sequences per micro-batch that the run was begun with; None where they were the plan's own choice.
        begin_again: called before every further try.

    Raises:
        UserError: there is no smaller one to try.
    """
    asked, hardware, timing = training.settings.trainer, training.hardware, training.timing
    sequences, seconds = training.plan.sequences_per_step, dict(timing.seconds)
    if asked.micro_batch_sequences is None and begun_with is not None and sequences % begun_with == 0:
        training = _with_micro_batch(training, begun_with)
    while True:
        try:
            return train_model(training)
        except torch.OutOfMemoryError as error:
            tried = sequences // asked.processes // training.plan.accumulate
            smaller = max((size for size in divisors(sequences) if size <= tried / 2), default=None)
            if asked.micro_batch_sequences is not None or not training.alone or smaller is None:
                raise out_of_memory(training.plan, asked.processes, hardware) from error
        # Here, where the error is gone, and with it all that its frames hold.
        print(
            f"dma_lab: {hardware.name} has no memory left for micro-batches of {tried:,} sequences: trained with "
            f"trainer.micro_batch_sequences={smaller}.",
            file=sys.stderr,
            flush=True,
        )
        training = _with_micro_batch(training, smaller)
        timing.seconds = dict(seconds)  # what was tried in vain is forgotten
        begin_again()


def _with_micro_batch(training: Training, micro: int) -> Training:
    settings = training.settings
    settings = replace(settings, trainer=replace(settings.trainer, micro_batch_sequences=micro))
    plan = plan_run(settings, training.plan.shape.vocab_size, training.hardware)
    return replace(training, settings=settings, plan=plan)
