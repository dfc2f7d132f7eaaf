"""What MLA alone promises: its sizes, what a decoding step costs, its initial weights."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dma_lab.attention import build_attention
from dma_lab.messages import UserError
from dma_lab.model import ModelShape, Transformer

SHAPE = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "max_seq_len": 64}


@pytest.mark.parametrize(
    ("d_model", "head_dim", "kv_rank", "rope_dim"),
    [(64, 32, 16, 16), (768, 128, 192, 64), (1024, 128, 256, 64), (2048, 128, 256, 64), (3, 6, 1, 2), (8, 1, 2, 2)],
)
def test_sizes_follow_the_model_width_and_the_head(d_model: int, head_dim: int, kv_rank: int, rope_dim: int) -> None:
    attention = build_attention("mla", **SHAPE | {"d_model": d_model, "head_dim": head_dim})
    assert (attention.kv_rank, attention.rope_dim) == (kv_rank, rope_dim)
    assert attention.cache_bytes(10, torch.bfloat16) == 20 * (kv_rank + rope_dim)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("kv_rank", 0),
        ("kv_rank", 33),
        ("q_rank", 0),
        ("q_rank", 40),
        ("rope_dim", 3),
        ("rope_dim", 0),
        ("rope_dim", 34),
    ],
)
def test_impossible_sizes_are_refused(option: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"attention\.{option}={value}: (.*choose|input should be greater than 0)"):
        build_attention("mla", **SHAPE, **{option: value})


def test_the_weights_do_not_depend_on_n_kv_heads() -> None:
    shapes = [
        {
            name: weight.shape
            for name, weight in build_attention("mla", **SHAPE | {"n_kv_heads": heads}).named_parameters()
        }
        for heads in (1, 2, 4)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("q_rank", [None, 12])
def test_a_step_reads_latents_and_never_rebuilds_keys_or_values(q_rank: int | None) -> None:
    attention = build_attention("mla", **SHAPE, kv_rank=6, q_rank=q_rank, rope_dim=4)
    x, cache = torch.randn(1, 40, 32), attention.new_cache(1)
    with torch.no_grad():
        for x_t in x.split(1, dim=1):
            with FlopCounterMode(display=False) as counter:
                attention.step(x_t, cache)
            # A position held costs each of the 4 heads a score over 6 + 4 entries and a sum over 6. The absorbed
            # products weigh what W_uk and W_uv weigh, once.
            assert counter.get_total_flops() == attention.flops(1).projections + 2 * 4 * (6 + 4 + 6) * cache.position


def test_initial_weights_are_those_of_the_other_backends() -> None:
    shape = ModelShape(
        n_layers=2, d_model=128, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=384, vocab_size=64, max_seq_len=48
    )
    mla, mha = Transformer(shape, "mla", {"q_rank": 96}), Transformer(shape, "mha")
    attention = mla.blocks[1].attention
    for name, module in attention.named_modules():
        if isinstance(module, nn.Linear) and name != "o_proj":
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.03), name
        elif isinstance(module, nn.RMSNorm):
            assert (module.weight == 1).all()
    assert torch.equal(attention.o_proj.weight, mha.blocks[1].attention.o_proj.weight)
