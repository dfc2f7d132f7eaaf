"""What training computes of attention: a backward pass of twice the forward one, but for what no gradient passes."""

import importlib

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dma_lab.attention import AttentionBackend, registered_backends
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
        assert (said.projections_saved, said.selection_saved / saved) == (0, (blocks - 1) / 2 / blocks)
    else:
        assert said.projections_saved + said.selection_saved == saved


def own_block(attention: AttentionBackend, q: Tensor, mean: Tensor, before: Tensor, own: Tensor) -> Tensor:
    """In place of MoBA's ``choose``."""
    return own[:, None, :, None].expand(*q.shape[:3], 1)


def without_products(q_bjte: Tensor, weight_bjt: Tensor, k_bse: Tensor) -> Tensor:
    """In place of DSA's ``index_scores``: the same, element by element."""
    return ((q_bjte[..., None, :] * k_bse[:, None, None]).sum(-1).relu() * weight_bjt[..., None]).sum(1)


@pytest.mark.parametrize("name", ["mha", "moba", "dsa"])  # on the CPU they attend to all keys, by a mask
def test_dense_equivalent_training_is_all_that_is_computed_but_the_choice(name, monkeypatch):
    for module in ("moba", "dsa"):
        monkeypatch.setattr(f"dma_lab.attention.{module}.recomputed", lambda function, *given: function(*given))
    monkeypatch.setattr("dma_lab.attention.dsa.index_scores", without_products)
    monkeypatch.setattr("dma_lab.attention.moba.MixtureOfBlockAttention.choose", own_block)
    model = Transformer(ModelShape(2, 32, 4, 2, 8, d_ff=24, vocab_size=64, max_seq_len=64), name)
    tokens = torch.zeros(1, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        loss, auxiliary = model.losses(tokens, tokens, tokens)
        (loss if auxiliary is None else loss + auxiliary).backward()
    # The counter sees the square of scores, the formula its causal half with the diagonal.
    layer, training = model.blocks[0].attention.flops(64), training_flops_per_sequence(model, 64)
    beyond = 3 * 2 * (4 * 4 * 8 * 64 * 64 - layer.mixing_dense)
    assert counter.get_total_flops() == training.dense_equivalent + beyond
    # What is executed has fewer pairs, and the choice, which DSA's indexer learns by and MoBA's queries do not.
    choice = (1 if name == "moba" else 3) * layer.selection
    assert training.executed - training.dense_equivalent == 2 * (choice - 3 * (layer.mixing_dense - layer.mixing))
