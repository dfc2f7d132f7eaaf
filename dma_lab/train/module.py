"""The one LightningModule that trains every backend."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from dma_lab.model import Transformer


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step showed."""

    loss: float
    """Nats a token, mean over the step's tokens, before the update."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float


class LanguageModel(L.LightningModule):
    """Next-token training with accumulation and clipping.

    Optimization is manual: a step is ``accumulate`` micro-batches and nothing else decides when it ends, so the state
    between two steps is complete in (weights, optimizer, step) and a continued run repeats it to the bit.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        make_optimizer: Callable[[Transformer], torch.optim.Optimizer],
        learning_rate: Callable[[int], float],
        gradient_clip: float,
        accumulate: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.make_optimizer, self.learning_rate = make_optimizer, learning_rate
        self.gradient_clip, self.accumulate = gradient_clip, accumulate
        self._losses: list[Tensor] = []
        self._last: tuple[Tensor, Tensor, float] | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.model)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        last_micro_batch = len(self._losses) == self.accumulate - 1
        with nullcontext() if last_micro_batch else self._gradients_stay_local():
            logits = self.model(batch["tokens"], batch.get("document_ids"))
            loss = F.cross_entropy(logits.flatten(0, 1).float(), batch["targets"].flatten()) / self.accumulate
            self.manual_backward(loss)
        self._losses.append(loss.detach())
        if last_micro_batch:
            self._update()

    def _gradients_stay_local(self) -> AbstractContextManager[None]:
        """Several processes exchange gradients once a step, with its last micro-batch."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _update(self) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        learning_rate = self.learning_rate(self.global_step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = self.trainer.strategy.reduce(torch.stack(self._losses).sum(), reduce_op="mean")
        self._losses.clear()
        # Tensors here, numbers where they are read: reading every step would stall a GPU.
        self._last = (loss, grad_norm, learning_rate)

    def read_last_step(self) -> StepMetrics:
        """Metrics of the last finished step; waits for the device."""
        assert self._last is not None, "no step has finished"
        loss, grad_norm, learning_rate = self._last
        return StepMetrics(loss=float(loss), grad_norm=float(grad_norm), learning_rate=learning_rate)
