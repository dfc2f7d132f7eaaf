"""What training computes of attention: a backward pass of twice the forward one, but for what no gradient passes."""

import importlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dma_lab.attention import registered_backends
from dma_lab.attention.contract import CONTEXT, WIDTH, Case, noise
from dma_lab.model import ModelShape, Transformer
from dma_lab.model.accounting import training_flops_per_sequence

# The delta rule's triangular systems are no matrix products forward, and are backward.
COUNTED = sorted(registered_backends().keys() - {"gated_deltanet"})
# Controls whose scores have no gradient: maps of theirs would count threefold.
CASES = [*map(Case, COUNTED), *(Case("dma", {"scores": scores}) for scores in ("frozen", "random"))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_backward_pass_costs_twice_the_forward_one_but_for_what_is_said(case, monkeypatch):
    name = case.name
    module = importlib.import_module(f"dma_lab.attention.{name}")
    if hasattr(module, "recomputed"):  # the reference path's way to save memory, which is not counted
        monkeypatch.setattr(module, "recomputed", lambda function, *arguments: function(*arguments))
    attention, x = case.build(), noise(1, CONTEXT, WIDTH).requires_grad_()
    with FlopCounterMode(display=False) as forward:
        ids = torch.zeros(1, CONTEXT, dtype=torch.int64)
        out, loss = attention.forward_with_loss(x, ids) if attention.auxiliary_loss else (attention(x, ids), 0.0)
        total = out.sum() + loss
    with FlopCounterMode(display=False) as backward:
        total.backward()
    said = attention.flops(CONTEXT)
    saved = 2 * forward.get_total_flops() - backward.get_total_flops()
    if name == "moba":  # scores of all blocks are computed, and those counted that a query may read
        blocks = CONTEXT // attention.block
        assert saved == 2 * 2 * attention.n_heads * attention.head_dim * CONTEXT * blocks
        assert said.backward_saved / saved == (blocks - 1) / 2 / blocks
    else:
        assert said.backward_saved == saved


def test_a_training_step_counts_mobas_choice_once():
    shape = ModelShape(2, 32, 4, 2, 8, d_ff=0, vocab_size=64, max_seq_len=64)
    moba, mha = (training_flops_per_sequence(Transformer(shape, name), 64) for name in ("moba", "mha"))
    flops = Transformer(shape, "moba").blocks[0].attention.flops(64)
    assert flops.selection > 0
    assert moba.executed - mha.executed == 2 * (flops.selection - 3 * (flops.mixing_dense - flops.mixing))
    assert moba.dense_equivalent == mha.dense_equivalent
