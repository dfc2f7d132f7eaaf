"""The LightningDataModule: hands every rank its share of the step's batch, from any step on."""

from collections.abc import Iterator

import lightning
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dma_lab.data.batches import sequences_from
from dma_lab.data.store import TokenData
from dma_lab.messages import UserError


class MicroBatches(IterableDataset):
    """Endless micro-batches of one rank from optimizer step ``first_step`` on, whatever the number of workers.

    Micro-batch m of rank r holds rows [(m·ranks + r)·b, (m·ranks + r + 1)·b) of the step's batch, b = sequences /
    (ranks · accumulate): ranks and accumulation together cover every row once.
    """

    def __init__(
        self,
        data: TokenData,
        *,
        seed: int,
        context: int,
        sequences_per_step: int,
        accumulate: int,
        mask_documents: bool,
        first_step: int,
        rank: int,
        ranks: int,
    ) -> None:
        if sequences_per_step % (accumulate * ranks):
            raise UserError(
                f"{sequences_per_step} sequences a step cannot be shared by {ranks} devices x {accumulate} "
                "micro-batches: choose trainer.tokens_per_step or trainer.micro_batch_sequences so that they divide."
            )
        self.data = data
        self.seed = seed
        self.context = context
        self.sequences_per_step = sequences_per_step
        self.accumulate = accumulate
        self.mask_documents = mask_documents
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
        return sequences_from(
            self.data,
            seed=self.seed,
            first=(self.first_step + step) * self.sequences_per_step + (micro * self.ranks + self.rank) * rows,
            count=rows,
            context=self.context,
            mask_documents=self.mask_documents,
        )


class TokenDataModule(lightning.LightningDataModule):
    """Training batches of ``data``: the union over ranks and micro-batches of optimizer step s is ``batch_at(s)``."""

    def __init__(
        self,
        data: TokenData,
        *,
        seed: int,
        context: int,
        sequences_per_step: int,
        accumulate: int,
        mask_documents: bool,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.data = data
        self.seed = seed
        self.context = context
        self.sequences_per_step = sequences_per_step
        self.accumulate = accumulate
        self.mask_documents = mask_documents
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader:
        """Micro-batches from the trainer's step on, so that a continued run sees what it would have seen.

        Raises:
            UserError: the step's sequences do not divide among devices and micro-batches.
        """
        assert self.trainer is not None
        batches = MicroBatches(
            self.data,
            seed=self.seed,
            context=self.context,
            sequences_per_step=self.sequences_per_step,
            accumulate=self.accumulate,
            mask_documents=self.mask_documents,
            first_step=self.trainer.global_step,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
        )
        return DataLoader(batches, batch_size=None, num_workers=self.num_workers)
