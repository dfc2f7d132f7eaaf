"""A training step on the GPU: what decides whether it is taken never waits for the device, and keeps all as it was."""

import lightning as L
import pytest
import torch

from dma_lab.model import ModelShape, Transformer
from dma_lab.train.module import LanguageModel
from dma_lab.train.optim import build_adamw

pytestmark = pytest.mark.gpu
BAD = 3


class Checked(LanguageModel):
    """Step ``BAD`` has a gradient that is no number; a wait for the device within an update is an error."""

    kept: dict[int, bool]

    def _update(self) -> None:
        if self.global_step + 1 == BAD:
            next(self.model.parameters()).grad.fill_(torch.nan)
        optimizer = self.optimizers().optimizer
        state = lambda: [  # noqa: E731
            tensor.clone()
            for tensor in (*self.model.parameters(), *(v for s in optimizer.state.values() for v in s.values()))
        ]
        before = state()
        torch.cuda.set_sync_debug_mode("error")
        try:
            super()._update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        self.kept[self.global_step] = all(torch.equal(*pair) for pair in zip(before, state(), strict=False))


def test_a_step_is_skipped_on_the_device():
    module = Checked(
        Transformer(ModelShape(2, 64, 2, 1, 32, 128, vocab_size=128, max_seq_len=64), "mha"),
        make_optimizer=lambda model: build_adamw(
            model, learning_rate=0.01, weight_decay=0.1, betas=[0.9, 0.95], eps=1e-8
        ),
        learning_rate=lambda step: 0.01,
        gradient_clip=1.0,
        accumulate=2,
    )
    module.kept = {}
    tokens = torch.randint(128, (4, 65), generator=torch.Generator().manual_seed(0))
    batches = [{"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}] * 12
    trainer = L.Trainer(
        accelerator="gpu", devices=1, precision="bf16-mixed", max_steps=5, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    metrics = module.read_last_step()
    assert module.kept == {1: False, 2: False, 3: True, 4: False, 5: False}
    assert (metrics.steps_skipped, trainer.global_step) == (1, 5)
    assert module.state_is_finite()
