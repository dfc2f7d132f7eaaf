"""The LightningDataModule: hands every rank its share of the step's batch, from any step on."""

import signal
from collections.abc import Iterator
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dma_lab.kernels import Documents
from dma_lab.messages import UserError


class DrawSequences(Protocol):
    """The endless row of training sequences, of which every optimizer step takes the next ones."""

    def __call__(self, *, first: int, count: int) -> dict[str, Tensor | None]:
        """Sequences ``first`` … ``first + count - 1``: a pure function of the two (``batches.sequences_from``)."""


class MicroBatches(IterableDataset[dict[str, Tensor | None]]):
    """Endless micro-batches of one rank from optimizer step ``first_step`` on, whatever the number of workers.

    Micro-batch m of rank r holds rows [(m·ranks + r)·b, (m·ranks + r + 1)·b) of the step's batch, b = sequences /
    (ranks · accumulate): ranks and accumulation together cover every row once.
    """

    def __init__(
        self,
        draw: DrawSequences,
        *,
        sequences_per_step: int,
        accumulate: int,
        first_step: int,
        rank: int,
        ranks: int,
    ) -> None:
        if sequences_per_step % (accumulate * ranks):
            raise UserError(
                f"{sequences_per_step} sequences per step cannot be shared by {ranks} devices x {accumulate} "
                "micro-batches: choose trainer.tokens_per_step or trainer.micro_batch_sequences so that they divide."
            )
        self.draw = draw
        self.sequences_per_step = sequences_per_step
        self.accumulate = accumulate
        self.first_step = first_step
        self.rank = rank
        self.ranks = ranks

    def __iter__(self) -> Iterator[dict[str, Tensor | None]]:
        # A DataLoader takes from its workers in turn: worker w of W makes micro-batches w, w + W, w + 2W, …
        worker = get_worker_info()
        index, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while True:
            yield self.micro_batch(index)
            index += stride

    def micro_batch(self, index: int) -> dict[str, Tensor | None]:
        """The ``index``-th micro-batch after ``first_step`` began."""
        step, micro = divmod(index, self.accumulate)
        rows = self.sequences_per_step // (self.accumulate * self.ranks)
        first = (self.first_step + step) * self.sequences_per_step + (micro * self.ranks + self.rank) * rows
        return self.draw(first=first, count=rows)


class TokenDataModule(lightning.LightningDataModule):
    """Batches of what ``draw`` gives: the union over ranks and micro-batches of optimizer step s is its s-th share."""

    def __init__(
        self,
        draw: DrawSequences,
        *,
        sequences_per_step: int,
        accumulate: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.draw = draw
        self.sequences_per_step = sequences_per_step
        self.accumulate = accumulate
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[dict[str, Tensor | None]]:
        """Micro-batches from the trainer's step on, so that a continued run sees what it would have seen.

        Raises:
            UserError: the step's sequences do not divide among devices and micro-batches.
        """
        assert self.trainer is not None
        batches = MicroBatches(
            self.draw,
            sequences_per_step=self.sequences_per_step,
            accumulate=self.accumulate,
            first_step=self.trainer.global_step,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
        )
        return DataLoader(batches, batch_size=None, num_workers=self.num_workers, worker_init_fn=_end_with_parent)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Find the documents while their ids lie in the host's memory: no layer then waits for a GPU to find them."""
        ids = batch.get("document_ids")
        return batch if ids is None else batch | {"document_ids": Documents.of(ids)}

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, dataloader_idx: int) -> Any:
        """Without waiting: a copy from memory that may be paged begins only when a GPU has done all it was given."""
        if device.type == "cuda":
            batch = {name: None if value is None else value.pin_memory() for name, value in batch.items()}
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def _end_with_parent(worker: int) -> None:
    """A worker whose process is killed would wait for ever for someone to take its batches (Linux)."""
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
