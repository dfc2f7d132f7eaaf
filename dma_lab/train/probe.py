"""How long a run will take on the device at hand, from steps that are taken as a run takes them."""

import math
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import lightning as L
import torch
from torch import Tensor

from dma_lab.data.module import TokenDataModule
from dma_lab.evaluation.perplexity import score_validation
from dma_lab.train.compiling import language_model
from dma_lab.train.hardware import Hardware
from dma_lab.train.module import LanguageModel
from dma_lab.train.peers import OneRun
from dma_lab.train.plan import RunPlan
from dma_lab.train.quiet import hush_lightning
from dma_lab.train.ranks import Ranks
from dma_lab.train.settings import TrainSettings
from dma_lab.train.step_graph import STEPS_UNTIL_REPLAYED

_SECONDS = 15.0
"""Of steps after the first ones: others who use the machine come and go within less."""
_LEAST_INTERVALS = 3
_TOKENS_A_DOCUMENT = 1000
_VALIDATIONS = 3


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run from its first step to its last score."""

    low: float
    """If all were as the quickest tenth of the probed intervals."""
    seconds: float
    high: float
    """As the slowest tenth."""
    compiling: float
    """Part of all three."""
    validation: float
    """Likewise."""
    steps: int
    """That were probed, after those that compile."""


def probe_run(settings: TrainSettings, plan: RunPlan, hardware: Hardware, budget: float = _SECONDS) -> Estimate:
    """Take steps of the run's model on random tokens for ``budget`` seconds, or as many as the run has; score some.

    Of several devices one takes its share of a step alone, without the exchange of gradients.
    """
    module = language_model(settings, plan, hardware)
    warm_up = STEPS_UNTIL_REPLAYED if hardware.compile or hardware.device.type == "cuda" else 1
    timer = _StepTimer(warm_up, settings.trainer.log_every, budget, plan.steps)
    rows = plan.sequences_per_step // settings.trainer.processes
    hush_lightning()
    trainer = L.Trainer(
        accelerator="gpu" if hardware.device.type == "cuda" else "cpu",
        devices=[hardware.device.index or 0] if hardware.device.type == "cuda" else 1,
        precision="bf16-mixed" if hardware.precision == "bf16" else "32-true",
        max_epochs=-1,
        logger=False,
        callbacks=[timer],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[OneRun(Ranks())],
    )
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign] # see signals.py

    def draw(*, first: int, count: int) -> dict[str, Tensor | None]:
        return _random_batch(settings, plan, count)

    trainer.fit(module, TokenDataModule(draw, sequences_per_step=rows, accumulate=plan.accumulate))
    step = median(timer.intervals)
    sequences = rows // plan.accumulate
    first, *others = _seconds_to_score(module, settings, plan, sequences, hardware)
    batches = math.ceil(settings.trainer.validation_tokens / (sequences * plan.shape.max_seq_len))
    validation = math.ceil(plan.steps / settings.trainer.validate_every) * batches * median(others)
    compiling = 0.0
    if warm_up > 1:
        compiling = max(0.0, timer.warm_up_seconds - warm_up * step) + max(0.0, first - median(others))
    tenths = quantiles(timer.intervals, n=10, method="inclusive")
    low, middle, high = (plan.steps * each + validation + compiling for each in (tenths[0], step, tenths[-1]))
    return Estimate(low, middle, high, compiling, validation, timer.steps)


def _seconds_to_score(
    module: LanguageModel, settings: TrainSettings, plan: RunPlan, sequences: int, hardware: Hardware
) -> list[float]:
    """Of one validation batch, several times."""
    module.to(hardware.device)
    batch = {name: value for name, value in _random_batch(settings, plan, sequences).items() if value is not None}
    nothing = torch.zeros_like(batch["targets"])
    of_targets = {"target_documents": nothing, "target_bytes": nothing + 1, "target_ends": nothing.bool()}
    batch = {"document_ids": nothing.int(), **batch, **of_targets}
    seconds = []
    for _ in range(_VALIDATIONS):
        begun = time.perf_counter()
        with torch.autocast(hardware.device.type, torch.bfloat16, enabled=hardware.precision == "bf16"):
            score_validation(
                module.model,
                [batch],
                n_documents=1,
                mask_documents=settings.data.mask_documents,
                device=hardware.device,
            )
        seconds.append(time.perf_counter() - begun)
    return seconds


def _random_batch(settings: TrainSettings, plan: RunPlan, sequences: int) -> dict[str, Tensor | None]:
    tokens = torch.randint(plan.shape.vocab_size, (sequences, plan.shape.max_seq_len + 1))
    begins = torch.rand(sequences, plan.shape.max_seq_len) < 1 / _TOKENS_A_DOCUMENT
    ids = begins.cumsum(1, dtype=torch.int32) if settings.data.mask_documents else None
    return {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous(), "document_ids": ids}


class _StepTimer(L.Callback):
    """Times steps by intervals of ``log_every``, or of a tenth of the budget where steps take long; ends the training.

    At an interval's end the figures are read as a run reads them, which waits for the device.
    """

    def __init__(self, warm_up: int, log_every: int, budget: float, most: int) -> None:
        self.warm_up, self.log_every, self.longest = warm_up, log_every, budget / 10
        self.left, self.most = budget, most
        self.intervals: list[float] = []
        """Seconds per step."""
        self.steps = 0
        self.warm_up_seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step, self._begun = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps, seconds = trainer.global_step - self._step, time.perf_counter() - self._begun
        if trainer.global_step < self.warm_up or steps == 0:
            return
        warming_up = self._step == 0
        if not warming_up and steps < self.log_every and seconds < self.longest:
            return
        assert isinstance(pl_module, LanguageModel)
        pl_module.read_last_step()
        seconds = time.perf_counter() - self._begun
        if warming_up:
            self.warm_up_seconds = seconds
        else:
            self.intervals.append(seconds / steps)
            self.steps += steps
            self.left -= seconds
        enough = self.left <= 0 or self.steps >= self.most
        trainer.should_stop = enough and len(self.intervals) >= _LEAST_INTERVALS
        self._step, self._begun = trainer.global_step, time.perf_counter()
