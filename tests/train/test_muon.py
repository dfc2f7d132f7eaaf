"""Muon against PyTorch's own, its orthogonalisation against singular values in float64, and steps that are skipped."""

import pytest
import torch
from torch import nn

from dma_lab.train.fit_run import fit_run
from dma_lab.train.module import LanguageModel
from dma_lab.train.muon import Muon, orthogonalise

SHAPES = [(24, 24), (24, 24), (8, 24), (72, 24), (72, 24), (24, 72), (1, 40)]


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(weights: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def test_five_steps_are_those_of_pytorch_muon(monkeypatch):
    # Which rounds to bfloat16 on the CPU too; in float32 the two must agree.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    ours, theirs = matrices(), matrices()
    settings = {"momentum": 0.9, "weight_decay": 0.3}
    muon = Muon(ours, learning_rate=1.0, **settings)
    reference = torch.optim.Muon(theirs, lr=1.0, adjust_lr_fn="match_rms_adamw", **settings)
    for step in range(5):
        for weights, optimizer in ((ours, muon), (theirs, reference)):
            give_gradients(weights, step)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
            optimizer.step()
    for shape, mine, reference_weight in zip(SHAPES, ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference_weight, rtol=0, atol=2e-5, msg=lambda text, s=shape: f"{s}: {text}")


def test_orthogonalising_maps_singular_values_by_the_published_quintic():
    matrix = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(1))
    matrix[0] *= 1e-4  # scale does not matter
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert s.min() > 0.6
    assert s.max() < 1.3
    torch.testing.assert_close(orthogonalise(matrix).double(), u @ s.diag_embed() @ vt, rtol=0, atol=1e-5)
    assert not orthogonalise(torch.zeros(1, 4, 8)).any()


def test_many_matrices_of_a_shape_are_updated_in_parts_as_at_once(monkeypatch):
    whole, parts = matrices(), matrices()
    for weights, most in ((whole, 2**26), (parts, 2 * 24 * 72)):
        monkeypatch.setattr("dma_lab.train.muon._MOST_NUMBERS", most)
        give_gradients(weights, 0)
        Muon(weights, learning_rate=0.1, momentum=0.95, weight_decay=0.1).step()
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


def test_a_skipped_step_changes_nothing_and_the_next_is_as_without_it():
    skipping, without = matrices(), matrices()
    muon, reference = (
        Muon(weights, learning_rate=0.1, momentum=0.9, weight_decay=0.1) for weights in (skipping, without)
    )
    for step in range(3):
        for weights, optimizer in ((skipping, muon), (without, reference)):
            give_gradients(weights, step)
            optimizer.found_inf = torch.tensor(0.0)
            optimizer.step()
        before = [weight.detach().clone() for weight in skipping]
        for weight in skipping:
            weight.grad = torch.full_like(weight, torch.nan if step else torch.inf)
        muon.found_inf = torch.tensor(1.0)
        muon.step()
        assert all(map(torch.equal, before, skipping))
    assert all(map(torch.equal, skipping, without))


def test_both_rates_follow_the_schedule(read, overrides, monkeypatch):
    """Under a warm-up of four steps, a decay of four, and AdamW's rate half of Muon's."""
    rates: list[list[float]] = []
    take_step = LanguageModel.take_step

    def watched(self, micro_batches):
        rates.append([group["lr"] for group in self._groups()])
        return take_step(self, micro_batches)

    monkeypatch.setattr(LanguageModel, "take_step", watched)
    settings = ["optimizer=muon", "optimizer.learning_rate=0.02", "optimizer.adamw_multiplier=0.5", "tokens=10240"]
    settings += ["schedule.warmup_steps=4", "schedule.decay_fraction=0.2"]
    summary = fit_run(read([*overrides, *settings]))
    assert summary.step == 20, "two optimizers take one step together"
    multiplier = [0.25, 0.5, 0.75] + [1.0] * 13 + [0.8, 0.6, 0.4, 0.2]
    for step, (muon, *adamw) in zip(multiplier, rates, strict=True):
        assert muon == pytest.approx(0.02 * step)
        assert adamw == pytest.approx([0.01 * step] * 2)
    assert summary.val_loss < summary.unigram_entropy
