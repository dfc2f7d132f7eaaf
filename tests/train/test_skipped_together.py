"""Ranks skip a step together, whichever of them found it not finite."""

import math

import lightning as L
import torch

from dma_lab.data.module import TokenDataModule
from dma_lab.model import ModelShape, Transformer
from dma_lab.train.module import LanguageModel
from dma_lab.train.optim import build_optimizers
from dma_lab.train.replicated import ReplicatedStrategy
from dma_lab.train.settings import AdamWSettings


class OneRankFails(LanguageModel):
    """Its second rank's loss is not finite in step 2, and every gradient is."""

    def manual_backward(self, loss, *args, **kwargs):
        super().manual_backward(loss, *args, **kwargs)
        if self.global_rank == 1 and self.global_step == 1:
            loss.data.fill_(math.inf)

    def on_train_end(self):
        self.read_last_step()
        weights = torch.cat([weight.detach().flatten() for weight in self.model.parameters()])
        torch.save((weights, self.watch.state_dict()), self.folder / f"{self.global_rank}.pt")


def test_ranks_skip_a_step_together(tmp_path):
    shape = ModelShape(1, 16, 1, 1, 16, 32, vocab_size=64, max_seq_len=8)
    settings = AdamWSettings("adamw", 1e-2, 0.1, [0.9, 0.95], 1e-8, 1.0)
    module = OneRankFails(
        Transformer(shape, "mha"),
        make_optimizers=lambda model: build_optimizers(model, settings),
        learning_rate=lambda step: 1e-2,
        gradient_clip=1.0,
        accumulate=1,
    )
    module.folder = tmp_path

    def draw(*, first, count):
        tokens = torch.randint(64, (count, 9), generator=torch.Generator().manual_seed(first))
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}

    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=ReplicatedStrategy(start_method="fork"), max_steps=3, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, TokenDataModule(draw, sequences_per_step=4, accumulate=1))
    (first, ours), (second, theirs) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    assert ours["steps_skipped"] == theirs["steps_skipped"] == 1
    assert ours["losses"] == theirs["losses"]
    assert len(ours["losses"]) == 2
