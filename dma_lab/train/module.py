"""The one LightningModule that trains every backend."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from dma_lab.messages import warn_once
from dma_lab.model import Transformer
from dma_lab.train.divergence import DivergenceWatch
from dma_lab.train.parts import own_part, whole
from dma_lab.train.replicated import average
from dma_lab.train.sharded import ShardedStrategy
from dma_lab.train.step_graph import MicroBatch, StepGraph


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step showed."""

    loss: float
    """Nats per token, mean over the step's tokens, before the update."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    steps_skipped: int
    """Steps of the run so far that were not taken, their loss or gradient not being finite."""
    auxiliary_loss: float | None
    """Of attention, which is minimised beside ``loss``: summed over layers, mean over the step's tokens; None where it
    has none."""


class LanguageModel(L.LightningModule):
    """Next-token training with accumulation and clipping.

    On GPUs a step is captured as a CUDA graph once it has been taken a few times (``StepGraph``), unless it is sharded.

    Optimization is manual: a step is ``accumulate`` micro-batches and nothing else decides when it ends, so the state
    between two steps is complete in (weights, optimizers, step, ``watch``) and a resumed run repeats it bit for bit.

    A step whose loss or gradient is not finite, on any rank, changes no weight and no state of an optimizer. That is
    decided on the device; ``watch`` learns of it when ``read_last_step`` is called, and must before a checkpoint.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        make_optimizers: Callable[[Transformer], list[torch.optim.Optimizer]],
        learning_rate: Callable[[int], float],
        gradient_clip: float,
        accumulate: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.make_optimizers, self.learning_rate = make_optimizers, learning_rate
        self.gradient_clip, self.accumulate = gradient_clip, accumulate
        self.watch = DivergenceWatch()
        self._micro_batches: list[MicroBatch] = []
        """Of the step to come."""
        self._unread: list[Tensor] = []
        """(loss, gradient's norm, 1 if skipped, and the auxiliary loss, if there is one) of every step since the last
        reading."""

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            strategy.shard(self.model)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.make_optimizers(self.model)

    def on_train_start(self) -> None:
        self._take_step: Callable[[Sequence[MicroBatch]], Tensor] = self.take_step
        on_gpu = self.device.type == "cuda"
        for group in self._groups():
            # A tensor there, so that a captured step reads the rate of the step that it is replayed for.
            group["lr"], group["capturable"] = torch.zeros((), device=self.device) if on_gpu else 0.0, on_gpu
        if on_gpu and not self._sharded:
            self._take_step = StepGraph(self.take_step, self._any_process)
        elif on_gpu and self.trainer.is_global_zero:
            warn_once(
                "steps of a sharded run (trainer.strategy=fsdp) are not captured as a CUDA graph; their kernels are "
                "launched one by one instead, slowly for a small model."
            )

    def on_train_end(self) -> None:
        del self._take_step  # NCCL leaves a group of processes only when no graph holds its sums

    def training_step(self, batch: MicroBatch, batch_idx: int) -> None:
        self._micro_batches.append(batch)
        if len(self._micro_batches) < self.accumulate:
            return
        self._learning_rate = self.learning_rate(self.global_step)
        for group in self._groups():
            rate = self._learning_rate * group.get("rate_multiplier", 1.0)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        # Lightning counts the steps of every optimizer: of the first alone they are the run's.
        counted = self.optimizers()
        counted = counted[0] if isinstance(counted, list) else counted
        assert isinstance(counted, LightningOptimizer)
        counted._on_before_step()
        # Tensors here, numbers where they are read: reading every step would stall a GPU.
        self._unread.append(self._take_step(self._micro_batches))
        counted._on_after_step()
        self._micro_batches.clear()

    def take_step(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """One optimizer step; its loss, its gradient's norm, 1 if it was skipped, and the auxiliary loss of attention
        that has one. Never waits for the device."""
        optimizers = self._optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)  # of a step that was captured half-way: never computed
        losses, auxiliary = [], []
        for batch in micro_batches:
            own, more = self.model.losses(batch["tokens"], batch["targets"], batch.get("document_ids"))
            own, more = own / self.accumulate, None if more is None else more / self.accumulate
            self.manual_backward(own if more is None else own + more)
            losses.append(own.detach())
            if more is not None:
                auxiliary.append(more.detach())
        if self.trainer.world_size > 1 and not self._sharded:
            average(weight.grad for weight in self.model.parameters() if weight.grad is not None)
        grad_norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip))
        loss = torch.stack(losses).sum()
        not_finite = ~(loss.isfinite() & grad_norm.isfinite())
        # One exchange: ranks that decided differently would train different models from here on.
        shown = torch.stack((loss, not_finite.float(), *([torch.stack(auxiliary).sum()] if auxiliary else [])))
        if self.trainer.world_size > 1:
            dist.all_reduce(shown)  # Lightning's waits for everyone before it, and so for the device
            shown /= self.trainer.world_size
        loss, share, *of_attention = shown
        skipped = (share > 0).float()
        for optimizer in optimizers:
            # As GradScaler tells fused AdamW to leave everything as it is.
            optimizer.found_inf = skipped  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack((loss, grad_norm, skipped, *of_attention))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = self.optimizers(use_pl_optimizer=False)
        return cast(list[torch.optim.Optimizer], optimizers if isinstance(optimizers, list) else [optimizers])

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers() for group in optimizer.param_groups]

    @property
    def _sharded(self) -> bool:
        return isinstance(self.trainer.strategy, ShardedStrategy)

    def _any_process(self, yes: bool) -> bool:
        """Whether it is so in any process of the run. All of them call this; the device has no part in it."""
        if self.trainer.world_size == 1:
            return yes
        found = torch.tensor(yes, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def read_last_step(self) -> StepMetrics:
        """Metrics of the last finished step; waits for the device."""
        assert self._unread, "no step has finished since the last reading"
        steps = torch.stack(self._unread).tolist()
        self._unread.clear()
        for step, (loss, _, skipped, *_) in enumerate(steps, start=self.global_step - len(steps) + 1):
            self.watch.add(step, loss, skipped > 0)
        loss, grad_norm, _, *auxiliary = steps[-1]
        return StepMetrics(loss, grad_norm, self._learning_rate, self.watch.steps_skipped, next(iter(auxiliary), None))

    def state_is_finite(self) -> bool:
        """Whether every weight and every number of the optimizers is finite, on all ranks; waits for the device."""
        states = [state for optimizer in self._optimizers() for state in optimizer.state.values()]
        numbers = [value for state in states for value in state.values()]
        parts = [own_part(tensor) for tensor in (*self.model.parameters(), *numbers)]
        finite = [part.isfinite().all().to(self.device) for part in parts]
        return self.trainer.strategy.reduce_boolean_decision(bool(torch.stack(finite).all()), all=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert not self._unread, "steps were not read before the checkpoint"
        checkpoint["divergence_watch"] = self.watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.watch.load_state_dict(checkpoint["divergence_watch"])
