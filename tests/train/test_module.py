"""One optimizer step against one big batch in float64, however the batch is split."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from dma_lab.data.module import TokenDataModule
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.module import LanguageModel
from dma_lab.train.plan import build_model, plan_run
from dma_lab.train.task import prepare_task


class Saved(LanguageModel):
    def on_train_start(self):
        super().on_train_start()
        for parameter in self.model.parameters():  # as a capture leaves them that failed half-way
            parameter.grad = torch.full_like(parameter, 7.0)

    def on_train_end(self):
        if self.global_rank == 0:
            torch.save((self.model.state_dict(), vars(self.read_last_step())), self.file)


@pytest.mark.parametrize(
    ("attention", "ranks", "accumulate"),
    [("mqar_mha", 1, 1), ("mqar_mha", 1, 4), ("mqar_mha", 2, 2), ("dsa", 2, 2)],
)
def test_a_step_is_that_of_the_whole_batch(read, tmp_path, attention, ranks, accumulate):
    """Recall, whose targets are mostly ignored, 2 in one sequence and 8 in the next; DSA has a loss beside it."""
    settings = read(["experiment=mqar_small", f"attention={attention}", "data.size.pairs=[2,8]", "tokens=4096"])
    plan = plan_run(settings, 256, resolve_hardware(settings.trainer))
    draw = prepare_task(settings, plan.tokens).draw(plan)

    whole = build_model(settings, plan.shape).double()
    batch = draw(first=0, count=plan.sequences_per_step)
    loss = F.cross_entropy(whole(batch["tokens"]).flatten(0, 1), batch["targets"].flatten(), ignore_index=-100)
    _, auxiliary = whole.losses(batch["tokens"], batch["targets"])
    assert (auxiliary is not None) == (attention == "dsa")
    (loss if auxiliary is None else loss + auxiliary).backward()
    expected = {name: weight - weight.grad for name, weight in whole.named_parameters()}
    assert (batch["targets"] == -100).float().mean() > 0.5

    module = Saved(
        build_model(settings, plan.shape),
        make_optimizers=lambda model: [torch.optim.SGD(model.parameters(), lr=1.0, fused=True)],
        learning_rate=lambda step: 1.0,
        gradient_clip=1e9,
        accumulate=accumulate,
    )
    module.file = tmp_path / "saved.pt"
    trainer = L.Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp_fork" if ranks > 1 else "auto", precision="64-true",
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, TokenDataModule(draw, sequences_per_step=plan.sequences_per_step, accumulate=accumulate))
    weights, shown = torch.load(module.file)
    assert shown["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert shown["auxiliary_loss"] == (None if auxiliary is None else pytest.approx(auxiliary.item(), abs=1e-6))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight.detach(), rtol=0, atol=1e-6)
