"""The attention node of a config: read once, typed, and written as it was read."""

import dataclasses

import pytest
import torch

from dma_lab.attention import AttentionConfig, AttentionShape, build_attention, registered_backends
from dma_lab.messages import UserError
from dma_lab.model import ModelShape, Transformer

SHAPE = AttentionShape(d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, max_seq_len=64)
MODEL = ModelShape(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=96, vocab_size=64, max_seq_len=64)
# What each backend makes of a context of 64 tokens, its documentation says.
DECIDED = {
    "mha": {},
    "swa": {"window": 32},
    "mla": {"kv_rank": 8, "q_rank": None, "rope_dim": 4},
    "nsa": {"window": 16, "block": 2, "stride": 1, "selected_block": 4, "selected_blocks": 16},
    "moba": {"block": 4, "selected_blocks": 3},
    "dsa": {"top_k": 32, "index_heads": 2, "index_dim": 8},
    "gated_deltanet": {"convolution": 4},
    "dma": {"window": 32, "recent": 0, "score": "exp"},
}


@pytest.mark.parametrize("name", sorted(registered_backends()))
def test_what_is_left_open_is_decided_by_the_shape_and_stays_at_another_length(name):
    model = Transformer(MODEL, name)
    settled = model.attention.written()
    assert settled["name"] == name
    assert settled.items() >= DECIDED[name].items()
    assert AttentionConfig.read(settled) == model.attention
    longer = Transformer(dataclasses.replace(MODEL, max_seq_len=256), AttentionConfig.read(settled))
    assert longer.attention == model.attention
    tokens = torch.randint(64, (1, 64), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(longer(tokens), model(tokens), rtol=0, atol=0)


def test_a_node_is_written_as_it_was_read():
    node = {
        "name": "dma",
        "window": 5,
        "recent": 1,
        "score": "linear",
        "qk_norm": False,
        "rope_base": 500_000,
        "recency": "slope",
        "scores": "frozen",
        "score_rate": 2.0,
        "score_scale": 0.5,
        "sinks": 4,
    }
    written = AttentionConfig.read(node).written()
    assert written == node
    assert type(written["rope_base"]) is int  # runs are named by their settings as given
    config = AttentionConfig.read({"name": "swa"})
    assert (config.options.window, config.options.qk_norm) == (None, True)
    assert config == AttentionConfig.of("swa", {"rope_base": 10_000.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.options.window = 3


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({}, "attention.name=None is no name; choose a backend, as in attention=dma."),
        ("dma", "attention.name=dma is no name; choose a backend, as in attention=dma."),
        (
            {"name": "mqa"},
            "attention=mqa is not known; choose one of: dma, dsa, gated_deltanet, mha, mla, moba, nsa, swa.",
        ),
        (
            {"name": "mha", "window": 3},
            "attention.window is no option of attention=mha; it has: qk_norm, rope_base, recency, gate.",
        ),
        ({"name": "swa", "window": "3"}, "attention.window=3: input should be a valid integer."),
    ],
)
def test_what_is_no_attention_is_one_sentence(node, said):
    with pytest.raises(UserError) as error:
        AttentionConfig.read(node)
    assert str(error.value) == said


def test_a_shape_that_no_backend_has_is_refused():
    for numbers, said in (
        ({"head_dim": 0}, "head_dim=0: it must be"),
        ({"n_kv_heads": 3}, "n_heads=4 is not a multiple"),
    ):
        with pytest.raises(UserError, match=said):
            dataclasses.replace(SHAPE, **numbers)
        with pytest.raises(UserError, match=said):
            build_attention("mha", **vars(SHAPE) | numbers)
