import itertools
import pickle
from functools import partial

import lightning
import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device

from dma_lab.data.batches import sequences_from
from dma_lab.data.module import MicroBatches, TokenDataModule
from dma_lab.messages import UserError

CONTEXT, SEQUENCES, SEED = 16, 12, 7


class _Recorder(lightning.LightningModule):
    """Keeps the tokens it is given, by optimizer step; its only weight learns nothing."""

    def __init__(self, masked):
        super().__init__()
        self.masked = masked
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[torch.Tensor]] = {}

    def training_step(self, batch, index):
        assert (batch["document_ids"] is not None) is self.masked
        self.seen.setdefault(self.trainer.global_step, []).append(batch["tokens"])
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _draw(data, masked=True):
    return partial(sequences_from, data, seed=SEED, context=CONTEXT, mask_documents=masked)


def _fit(data, folder, steps, workers, accumulate, masked, checkpoint=None):
    model = _Recorder(masked)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = TokenDataModule(
        _draw(data, masked),
        sequences_per_step=SEQUENCES,
        accumulate=accumulate,
        num_workers=workers,
    )
    trainer.fit(model, module, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return {step: torch.cat(rows) for step, rows in model.seen.items()}


def _whole(data, step):
    first = step * SEQUENCES
    return sequences_from(data, seed=SEED, first=first, count=SEQUENCES, context=CONTEXT, mask_documents=True)["tokens"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("workers", "accumulate", "masked"), [(0, 1, True), (1, 3, False), (3, 2, True)])
def test_a_restarted_run_sees_the_batches_of_its_steps(data, tmp_path, workers, accumulate, masked):
    before = _fit(data, tmp_path, 3, workers, accumulate, masked)
    after = _fit(data, tmp_path, 6, (workers + 1) % 3, accumulate, masked, checkpoint=tmp_path / "3.ckpt")
    assert [*before, *after] == list(range(6))
    for step, tokens in (before | after).items():
        assert torch.equal(tokens, _whole(data, step))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_and_micro_batches_together_are_the_steps_batch(data, ranks, accumulate):
    shares = [
        itertools.islice(
            MicroBatches(
                _draw(data),
                sequences_per_step=SEQUENCES,
                accumulate=accumulate,
                first_step=4,
                rank=rank,
                ranks=ranks,
            ),
            2 * accumulate,
        )
        for rank in range(ranks)
    ]
    micro = [torch.cat([batch["tokens"] for batch in across]) for across in zip(*shares, strict=True)]
    for step in (4, 5):
        assert torch.equal(torch.cat(micro[(step - 4) * accumulate :][:accumulate]), _whole(data, step))


def test_a_step_that_does_not_divide_is_refused(data):
    with pytest.raises(UserError, match="12 sequences per step cannot be shared by 5 devices"):
        MicroBatches(
            _draw(data),
            sequences_per_step=12,
            accumulate=1,
            first_step=0,
            rank=0,
            ranks=5,
        )


def test_token_data_travels_to_a_process_as_its_folder(data):
    assert data.train_tokens is not None  # mapped before it travels
    assert len(pickle.dumps(data)) < 1000
    assert pickle.loads(pickle.dumps(data)).fingerprint == data.fingerprint


def test_documents_are_found_before_a_batch_leaves_the_hosts_memory(data):
    module = TokenDataModule(_draw(data), sequences_per_step=SEQUENCES, accumulate=1)
    batch = _draw(data)(first=0, count=2)
    documents = module.on_before_batch_transfer(batch, 0)["document_ids"]
    lengths = [len(list(row)) for ids in batch["document_ids"].tolist() for _, row in itertools.groupby(ids)]
    assert documents.offsets.diff().tolist() == lengths
    moved = move_data_to_device({"document_ids": documents}, torch.device("meta"))["document_ids"]
    assert (moved.ids.device.type, moved.offsets.device.type) == ("meta", "meta")
    assert int(moved.longest) == max(lengths)  # the host reads it at every layer
    unmasked = _draw(data, masked=False)(first=0, count=2)
    assert module.on_before_batch_transfer(unmasked, 0)["document_ids"] is None
