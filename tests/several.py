"""Small trainings by processes together: several on CPUs or GPUs, or one that has all of the state."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.tensor import DTensor

from dma_lab.data.module import TokenDataModule
from dma_lab.model import ModelShape, Transformer
from dma_lab.train.module import LanguageModel
from dma_lab.train.optim import build_optimizers
from dma_lab.train.peers import OneRun
from dma_lab.train.ranks import Ranks
from dma_lab.train.replicated import ReplicatedStrategy
from dma_lab.train.settings import MuonSettings
from dma_lab.train.sharded import ShardedStrategy
from dma_lab.train.step_graph import StepGraph

# One key/value head: one process has all of DMA's A, and the others none. The head is the embedding.
SHAPE = ModelShape(2, 32, 2, 1, 16, 96, vocab_size=96, max_seq_len=16)
OPTIMIZER = MuonSettings("muon", 0.01, 0.5, 0.95, 0.1, [0.9, 0.95], 1e-8, 0.5)  # and AdamW of all but layers' matrices

STRATEGIES = {"ddp": ReplicatedStrategy, "fsdp": ShardedStrategy}
Figures = list[list[float]]
"""Of every step its loss, its gradient's norm, and 1 if it was skipped."""


class Noted(LanguageModel):
    """Keeps figures; in step 2 the last process's loss is infinite."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.figures: Figures = []
        self.sharded = all(isinstance(weight, DTensor) for weight in self.model.parameters())
        self.captures = 0
        take_step, graph = self._take_step, None

        def noted(micro_batches: Any) -> torch.Tensor:
            nonlocal graph
            result = take_step(micro_batches)
            self.figures.append(result.tolist())
            if isinstance(take_step, StepGraph) and take_step.graph is not graph:
                graph = take_step.graph
                self.captures += 1
            return result

        self._take_step = noted

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        super().manual_backward(loss, *args, **kwargs)
        if self.global_rank == self.trainer.world_size - 1 and self.global_step == 1:
            loss.data.fill_(math.inf)

    def on_train_end(self) -> None:
        self.read_last_step()
        assert self.state_is_finite()
        super().on_train_end()


def draw(*, first: int, count: int) -> dict[str, torch.Tensor | None]:
    """From the fifth step on, sequences that the last of two processes gets are of many documents."""
    rows, documents = [], []
    for row in range(first, first + count):
        generator = torch.Generator().manual_seed(row)
        rows.append(torch.randint(96, (17,), generator=generator))
        often = 0.9 if row >= 32 and row % 8 >= 6 else 0.1
        documents.append((torch.rand(16, generator=generator) < often).cumsum(0))
    tokens = torch.stack(rows)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "document_ids": torch.stack(documents)}


def train(
    ranks: Ranks, device: str, backend: str, dtype: torch.dtype,
    steps: int, checkpoint: Path | None, saved: Path, strategy: str = "fsdp",
) -> Figures:  # fmt: skip
    """Train to the step ``steps``; by several processes with ``strategy``, where it is fsdp with layers computed anew.
    Leaves the state behind."""
    sharded = ranks.count > 1 and strategy == "fsdp"
    rank_zero_only.rank = ranks.rank  # type: ignore[attr-defined]
    module = Noted(
        Transformer(SHAPE, backend).to(dtype),
        make_optimizers=lambda model: build_optimizers(model, OPTIMIZER),
        learning_rate=lambda step: 0.01 / (step + 1),
        gradient_clip=OPTIMIZER.gradient_clip,
        accumulate=2,
    )
    module.model.activation_checkpointing = sharded
    trainer = L.Trainer(
        accelerator=device, devices=ranks.count, strategy=STRATEGIES[strategy]() if ranks.count > 1 else "auto",
        plugins=[OneRun(ranks)], max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, TokenDataModule(draw, sequences_per_step=8, accumulate=2), ckpt_path=checkpoint)
    assert module.sharded == sharded
    if device == "cuda" and not sharded and checkpoint is None and steps > 4:
        assert module.captures == 2, "the second for documents that had no room"
    trainer.save_checkpoint(saved)
    return module.figures


def train_together(
    folder: Path, count: int, device: str, backend: str, dtype: torch.dtype, *trainings: tuple[Any, ...]
) -> list[Figures]:
    """``train`` by ``count`` processes, one training after the other; all of them saw the same.

    Args:
        trainings: of each what ``train`` is given from ``steps`` on.
    """
    context = torch.multiprocessing.get_context("fork" if device == "cpu" else "spawn")
    (folder / "store").unlink(missing_ok=True)
    processes = [
        context.Process(target=_one, args=(folder, ranks, device, backend, dtype, trainings))
        for ranks in (Ranks(rank, count, launched=True) for rank in range(count))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * count
    first, *others = (torch.load(folder / f"{rank}.pt") for rank in range(count))
    assert all(other == first for other in others)
    found: list[Figures] = first
    return found


def _one(folder: Path, ranks: Ranks, device: str, backend: str, dtype: torch.dtype, trainings: Any) -> None:
    store = dist.FileStore(str(folder / "store"), ranks.count)
    if device == "cpu":
        dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=ranks.count)
    else:
        torch.cuda.set_device(ranks.rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl", store=store, rank=ranks.rank, world_size=ranks.count,
            device_id=torch.device("cuda", ranks.rank),
        )  # fmt: skip
    figures = [train(ranks, device, backend, dtype, *training) for training in trainings]
    torch.save(figures, folder / f"{ranks.rank}.pt")
    dist.destroy_process_group()


def assert_close(ours: Any, theirs: Any, atol: float) -> None:
    """Of nested checkpoints: equal but for rounding, and plain tensors all."""
    if isinstance(theirs, torch.Tensor):
        assert type(ours) is torch.Tensor
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_close(ours[key], theirs[key], atol)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_close(mine, other, atol)
    elif isinstance(theirs, float):
        assert abs(ours - theirs) <= atol
    else:
        assert ours == theirs
