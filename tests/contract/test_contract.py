"""The contract of attention/base.py, held by every registered backend. A new backend adds its line to VARIANTS."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dma_lab.attention import AttentionBackend, attention_options, build_attention, registered_backends
from dma_lab.kernels import Documents, prefix_topk_expiry
from dma_lab.messages import UserError

# Option sets of each backend, for a context of 64 tokens.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mha": [{}, {"qk_norm": False}, {"recency": "slope"}],
    "swa": [{}, {"window": 1}, {"window": 5, "recency": "slope"}, {"window": 64}],
    "mla": [{}, {"kv_rank": 5, "q_rank": 12, "rope_dim": 2}],
    "nsa": [
        {},
        {"block": 4, "stride": 1, "selected_block": 5, "selected_blocks": 3, "qk_norm": False},
        {"block": 4, "stride": 4, "selected_block": 4, "selected_blocks": 4, "window": 5},
    ],
    "dma": [
        {},
        {"window": 5, "recent": 3},
        {"score": "linear"},
        {"window": 5, "recency": "slope"},
        {"window": 64},
    ],
}
# Controls, with grouped heads alone. Layers of a hybrid are backends of their own (tests/model/test_hybrid.py).
CONTROLS: list[tuple[str, dict[str, Any]]] = [
    ("mha", {"gate": True, "recency": "slope"}),
    ("mla", {"kv_rank": 5, "recency": "slope"}),
    ("swa", {"window": 5, "sinks": 3}),
    ("swa", {"window": 4, "sinks": 2, "recency": "slope"}),
    ("dma", {"window": 5, "scores": "random", "recent": 2}),
    ("dma", {"window": 5, "scores": "random", "recency": "slope"}),
    ("dma", {"window": 5, "scores": "frozen", "recency": "slope"}),
]
HEADS = {"mha": (4, 4), "gqa": (4, 2), "mqa": (4, 1)}
CASES = [
    pytest.param(name, heads, options, id=f"{name}-{shape}-{options}")
    for name, variants in VARIANTS.items()
    for shape, heads in HEADS.items()
    for options in variants
] + [pytest.param(name, HEADS["gqa"], options, id=f"{name}-gqa-{options}") for name, options in CONTROLS]
over_cases = pytest.mark.parametrize(("name", "heads", "options"), CASES)


def build(
    name: str,
    heads: tuple[int, int],
    options: dict[str, Any],
    max_seq_len: int = 64,
    dtype: torch.dtype = torch.float64,
) -> AttentionBackend:
    torch.manual_seed(0)
    attention = build_attention(
        name, d_model=32, n_heads=heads[0], n_kv_heads=heads[1], head_dim=8, max_seq_len=max_seq_len, **options
    ).to(dtype)
    with torch.no_grad():  # what starts at zero or one would hide mistakes
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_every_registered_backend_is_under_this_suite() -> None:
    assert set(VARIANTS) == set(registered_backends())


@over_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_dtype_come_back(name: str, heads: tuple[int, int], options: dict, dtype: torch.dtype) -> None:
    out = build(name, heads, options, dtype=dtype)(noise(2, 64, 32, dtype=dtype))
    assert out.shape == (2, 64, 32)
    assert out.dtype == dtype
    assert out.isfinite().all()


@over_cases
def test_later_tokens_change_no_bit_before_them(name: str, heads: tuple[int, int], options: dict) -> None:
    attention, x = build(name, heads, options, dtype=torch.float32), noise(2, 64, 32, dtype=torch.float32)
    out = attention(x)
    for t in (0, 17, 40, 62):
        changed = x.clone()
        changed[:, t + 1 :] = 10 * noise(2, 63 - t, 32, dtype=torch.float32)
        assert torch.equal(attention(changed)[:, : t + 1], out[:, : t + 1])
        assert not torch.equal(attention(changed)[:, t + 1 :], out[:, t + 1 :])


@over_cases
def test_packed_documents_see_nothing_of_each_other(name: str, heads: tuple[int, int], options: dict) -> None:
    attention, x = build(name, heads, options), noise(1, 64, 32)
    lengths = [1, 30, 12, 21]
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    packed = attention(x, ids)
    assert torch.equal(attention(x, Documents.of(ids)), packed)
    start = 0
    for document in range(1, 5):
        end = start + lengths[document - 1]
        others_changed = -3 * x
        others_changed[:, start:end] = x[:, start:end]
        torch.testing.assert_close(attention(others_changed, ids)[:, start:end], packed[:, start:end], rtol=0, atol=0)
        # RoPE is relative, so a document alone, at position 0, gives what it gives when packed; to float32's error,
        # which the rotary tables have in every dtype.
        torch.testing.assert_close(attention(x[:, start:end]), packed[:, start:end], rtol=1e-5, atol=1e-5)
        start = end


def bytes_held(cache: Any) -> int:
    """Storage, not shape: a view would keep what it does not show. NSA's cache holds caches."""
    if isinstance(cache, Tensor):
        return cache.untyped_storage().nbytes()
    return sum(bytes_held(value) for value in vars(cache).values()) if hasattr(cache, "__dict__") else 0


@over_cases
def test_steps_equal_forward_and_the_cache_weighs_what_it_says(
    name: str, heads: tuple[int, int], options: dict
) -> None:
    attention, x = build(name, heads, options, max_seq_len=1000), noise(2, 1000, 32)
    with torch.no_grad():
        out, cache = attention(x), attention.new_cache(2)
        for t in range(1000):
            torch.testing.assert_close(attention.step(x[:, t : t + 1], cache), out[:, t : t + 1], rtol=1e-8, atol=1e-9)
            if t in (0, 3, 4, 7, 100, 999):
                assert bytes_held(cache) == 2 * attention.cache_bytes(t + 1, torch.float64)
        with pytest.raises(ValueError, match="1000"):
            attention.step(x[:, :1], cache)


@over_cases
def test_gradients_are_those_of_the_function(name: str, heads: tuple[int, int], options: dict) -> None:
    attention = build(name, heads, options)
    names = [parameter for parameter, _ in attention.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (x,))

    inputs = [noise(1, 9, 32), *(parameter.detach().clone() for parameter in attention.parameters())]
    assert torch.autograd.gradcheck(function, [value.requires_grad_() for value in inputs], fast_mode=True)


@over_cases
@pytest.mark.parametrize("seq_len", [16, 40, 64])
def test_flops_are_those_counted(name: str, heads: tuple[int, int], options: dict, seq_len: int) -> None:
    """The reference path computes whole rectangles where the formula counts the pairs in them that live."""
    attention = build(name, heads, options)
    with FlopCounterMode(display=False) as counter:
        # Documents given, so that MHA too takes the path of plain matrix products.
        attention(noise(1, seq_len, 32), torch.zeros(1, seq_len, dtype=torch.int64))
    flops = attention.flops(seq_len)
    square = flops.mixing_dense * 2 * seq_len // (seq_len + 1)
    rectangles = square
    if name == "nsa":  # the selected branch's, the sliding one's, and every query against every compressed block
        blocks = (seq_len - attention.block) // attention.stride + 1
        rectangles = 2 * square + square // seq_len * blocks
    assert counter.get_total_flops() == flops.projections + rectangles


@pytest.mark.parametrize("name", ["swa", "dma"])
@pytest.mark.parametrize("window", [1, 5, 64])
@pytest.mark.parametrize("seq_len", [1, 5, 40])
def test_flops_of_a_window_are_those_of_the_pairs_that_live(name: str, window: int, seq_len: int) -> None:
    lifetimes = prefix_topk_expiry(noise(1, 1, seq_len), window) - torch.arange(seq_len)
    pairs = int(lifetimes.sum()) if name == "dma" else sum(min(t + 1, window) for t in range(seq_len))
    assert build(name, (4, 2), {"window": window}).flops(seq_len).mixing == 4 * 4 * 8 * pairs


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_bad_input_is_refused_with_its_numbers(name: str) -> None:
    attention = build(name, (4, 2), {})
    x = noise(2, 64, 32)
    for wrong, said in ((torch.zeros(2, 63, dtype=torch.int64), "63"), (torch.zeros(2, 64), "float")):
        with pytest.raises(ValueError, match=said):
            attention(x, wrong)
    with pytest.raises(ValueError, match="65"):
        attention(noise(2, 65, 32))
    with pytest.raises(ValueError, match="31"):
        attention(noise(2, 8, 31))
    with pytest.raises(UserError, match=r"n_heads=4 .* n_kv_heads=3"):
        build(name, (4, 3), {})
    with pytest.raises(UserError, match="no_such_option"):
        build(name, (4, 2), {"no_such_option": 1})
    wrong_values = {option: [1] for option in attention_options(name)}
    for option, value in [*wrong_values.items(), ("rope_base", "high"), ("rope_base", 0.0)]:
        with pytest.raises(UserError, match=re.escape(f"attention.{option}={value}:")):
            build(name, (4, 2), {option: value})
    if "window" in VARIANTS[name][-1]:
        for window in (0, 1.5):
            with pytest.raises(UserError, match=f"window={window}:"):
                build(name, (4, 2), {"window": window})


def test_a_full_window_is_mha() -> None:
    x = noise(2, 64, 32)
    mha, swa, dma = (
        build(name, (4, 2), options)
        for name, options in (("mha", {}), ("swa", {"window": 64}), ("dma", {"window": 64}))
    )
    swa.load_state_dict(mha.state_dict())
    dma.load_state_dict(mha.state_dict(), strict=False)
    torch.testing.assert_close(swa(x), mha(x), rtol=1e-9, atol=1e-10)
    q, k, v = mha.heads(x)
    bias = dma.scores(v).repeat_interleave(2, dim=1)[:, :, None]
    seen = torch.ones(64, 64, dtype=torch.bool).tril()
    weights = (q @ k.repeat_interleave(2, 1).mT * 8**-0.5 + bias).masked_fill(~seen, -torch.inf).softmax(-1)
    expected = mha.o_proj((weights @ v.repeat_interleave(2, 1)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(dma(x), expected, rtol=1e-9, atol=1e-10)


def test_dma_holds_its_window_after_16384_tokens_and_is_still_right() -> None:
    attention = build("dma", (4, 2), {"window": 8}, max_seq_len=16_384)
    x, cache = noise(1, 16_384, 32), attention.new_cache(1)
    with torch.no_grad():
        stepped = torch.cat([attention.step(x_t, cache) for x_t in x.split(1, dim=1)], dim=1)
        torch.testing.assert_close(stepped, attention(x), rtol=1e-8, atol=1e-9)
    assert cache.k_bksd.shape[2] == cache.v_bksd.shape[2] == 8
    arrived = cache.arrived_bks.sort(-1).values
    assert (arrived.diff() > 0).all()  # every slot holds another key
    assert arrived.max() > 16_000 > arrived.min() > 0  # and they are old and new
