"""A hybrid's layers: windows, and every n-th sees every key."""

import dataclasses

import pytest
import torch

from dma_lab.attention import AttentionConfig
from dma_lab.messages import UserError, print_once
from dma_lab.model import ModelShape, Transformer
from dma_lab.model.accounting import keys_per_query, training_flops_per_sequence

SHAPE = ModelShape(n_layers=5, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48, vocab_size=64, max_seq_len=48)
OPTIONS = {"window": 6, "full_every": 2, "rope_base": 500.0, "recency": "slope", "sinks": 1}


def kinds(n_layers, every):
    config = AttentionConfig.of("swa", {"full_every": every})
    return [config.of_layer(layer, n_layers).name for layer in range(n_layers)]


def test_three_layers_with_a_window_to_one_that_is_full(capfd):
    print_once.cache_clear()
    assert kinds(9, 4) == ["swa"] * 3 + ["mha"] + ["swa"] * 3 + ["mha"] + ["swa"]
    assert capfd.readouterr().err == ""
    assert kinds(3, 4) == ["swa", "swa", "mha"]
    assert "attention.full_every=4 and the model has 3 layers: the last of them is full" in capfd.readouterr().err
    with pytest.raises(UserError, match="full_every=4 needs two layers or more"):
        kinds(1, 4)


def test_a_full_layer_is_mha_with_the_hybrids_own_options():
    model = Transformer(SHAPE, "swa", OPTIONS)
    names = [type(block.attention).__name__ for block in model.blocks]
    assert names == ["SlidingWindowAttention", "MultiHeadAttention"] * 2 + ["SlidingWindowAttention"]
    full = model.blocks[1].attention.options
    assert (full.rope_base, full.recency, full.qk_norm) == (500.0, "slope", True)
    assert model.attention.written() == AttentionConfig.of("swa", OPTIONS).written()
    assert model.attention.label == "swa_sinks+hybrid"


def test_it_starts_from_the_weights_of_mha_and_decodes_what_it_is_trained_as():
    model = Transformer(SHAPE, "swa", {"window": 6, "full_every": 2}).eval()
    mha = Transformer(SHAPE, "mha")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in mha.state_dict().items())
    tokens = torch.randint(64, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, cache = model(tokens), model.new_cache(2)
        steps = torch.cat([model.step(token, cache) for token in tokens.split(1, dim=1)], dim=1)
        torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-5)
        earlier = tokens.clone()
        earlier[:, 0] = (tokens[:, 0] + 1) % 64
        # Five windows of 6 reach back 25 tokens: past them only the full layers carry the first token.
        assert not torch.equal(model(earlier)[:, -1], whole[:, -1])
        windows = Transformer(SHAPE, "swa", {"window": 6}).eval()
        assert torch.equal(windows(earlier)[:, -1], windows(tokens)[:, -1])
    held = [layer_cache.k_bksd.shape[2] for layer_cache in cache]
    assert held == [6, 48, 6, 48, 6]


def test_what_it_costs_is_the_sum_of_its_layers():
    hybrid, windows, mha = (
        Transformer(SHAPE, name, options)
        for name, options in (("swa", {"window": 6, "full_every": 2}), ("swa", {"window": 6}), ("mha", {}))
    )
    executed = [training_flops_per_sequence(model, 48).executed for model in (hybrid, windows, mha)]
    assert 5 * executed[0] == 3 * executed[1] + 2 * executed[2]
    seen = [sum(min(t + 1, window) for t in range(48)) / 48 for window in (6, 48)]
    assert keys_per_query([block.attention for block in windows.blocks], 48) == pytest.approx(seen[0])
    assert keys_per_query([block.attention for block in mha.blocks], 48) == pytest.approx(seen[1])
    assert keys_per_query([block.attention for block in hybrid.blocks], 48) == pytest.approx(
        (3 * seen[0] + 2 * seen[1]) / 5
    )
    nsa = Transformer(dataclasses.replace(SHAPE, n_layers=1), "nsa", {"block": 8, "stride": 8, "selected_block": 8})
    # All six blocks are among the selected: every key before; window 12; blocks that have ended.
    own = [t + 1 + min(t + 1, 12) + (t + 1) // 8 for t in range(48)]
    assert keys_per_query([block.attention for block in nsa.blocks], 48) == pytest.approx(sum(own) / 48)
