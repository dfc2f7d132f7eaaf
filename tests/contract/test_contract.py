"""The contract of attention/base.py, held by every registered backend. A new backend adds its line to VARIANTS."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dma_lab.attention import AttentionBackend, attention_options, registered_backends
from dma_lab.attention.contract import CHECKS, CONTEXT, Case, cases, noise
from dma_lab.kernels import prefix_topk_expiry
from dma_lab.messages import UserError

# Option sets of each backend, for a context of 64 tokens.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mha": [{}, {"qk_norm": False}, {"recency": "slope"}],
    "swa": [{}, {"window": 1}, {"window": 5, "recency": "slope"}, {"window": 64}],
    "mla": [{}, {"kv_rank": 5, "q_rank": 12, "rope_dim": 2}],
    "nsa": [
        {},
        {"block": 4, "stride": 1, "selected_block": 5, "selected_blocks": 3, "qk_norm": False},
        {"block": 4, "stride": 4, "selected_block": 4, "selected_blocks": 4, "window": 5, "recency": "slope"},
    ],
    "moba": [{}, {"block": 5, "selected_blocks": 1, "qk_norm": False}],
    "dsa": [{}, {"top_k": 5, "index_heads": 3, "index_dim": 6, "qk_norm": False}],
    "gated_deltanet": [{}, {"convolution": 1}],
    "dma": [
        {},
        {"window": 5, "recent": 3},
        {"score": "linear", "score_rate": 3.0, "score_scale": 0.5},
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
    ("dma", {"window": 5, "sinks": 3, "recent": 2}),
    ("dma", {"window": 4, "sinks": 2, "recency": "slope"}),
    ("dma", {"window": 5, "scores": "random", "recent": 2}),
    ("dma", {"window": 5, "scores": "random", "recency": "slope"}),
    ("dma", {"window": 5, "scores": "frozen", "recency": "slope"}),
]


def nsa_products(attention: AttentionBackend, tokens: int) -> int:
    """The selected branch's square and the sliding one's, and every query against every compressed block."""
    blocks = (tokens - attention.block) // attention.stride + 1
    return 4 * attention.n_heads * attention.head_dim * tokens * (2 * tokens + blocks)


def moba_products(attention: AttentionBackend, tokens: int) -> int:
    """The whole square, and every query against the mean key of every block."""
    return 2 * attention.n_heads * attention.head_dim * tokens * (2 * tokens + tokens // attention.block)


def dsa_products(attention: AttentionBackend, tokens: int) -> int:
    """The whole square, twice: of the heads and of the indexer's, whose weights are no matrix product."""
    return (
        2 * tokens**2 * (2 * attention.n_heads * attention.head_dim + attention.indexer.heads * attention.indexer.dim)
    )


def gated_deltanet_products(attention: AttentionBackend, tokens: int) -> int:
    """Whole squares of a whole chunk: keys and queries with keys, values and decays summed; and three products with
    states. The triangular systems are no matrix product to PyTorch.
    """
    H, K, D, size = attention.n_heads, attention.n_kv_heads, attention.head_dim, 64
    return 2 * size**2 * (2 * K * D + H * D + H) + 6 * size * H * D**2


PRODUCTS = {
    "nsa": nsa_products,
    "moba": moba_products,
    "dsa": dsa_products,
    "gated_deltanet": gated_deltanet_products,
}
CASES = [case for name, variants in VARIANTS.items() for case in cases(name, *variants)]
CASES += [Case(name, options) for name, options in CONTROLS]
CASES = [replace(case, products=PRODUCTS.get(case.name)) for case in CASES]


def test_every_registered_backend_is_under_this_suite() -> None:
    assert set(VARIANTS) == set(registered_backends())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[Case], None], case: Case) -> None:
    check(case)


def build(name: str, options: dict[str, Any], max_seq_len: int = CONTEXT) -> AttentionBackend:
    return Case(name, options).build(max_seq_len)


@pytest.mark.parametrize("name", ["swa", "dma"])
@pytest.mark.parametrize("window", [1, 5, 64])
@pytest.mark.parametrize("seq_len", [1, 5, 40])
def test_flops_of_a_window_are_those_of_the_pairs_that_live(name: str, window: int, seq_len: int) -> None:
    lifetimes = prefix_topk_expiry(noise(1, 1, seq_len), window) - torch.arange(seq_len)
    pairs = int(lifetimes.sum()) if name == "dma" else sum(min(t + 1, window) for t in range(seq_len))
    assert build(name, {"window": window}).flops(seq_len).mixing == 4 * 4 * 8 * pairs


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_bad_options_are_refused_with_their_numbers(name: str) -> None:
    with pytest.raises(UserError, match=r"n_heads=4 .* n_kv_heads=3"):
        Case(name, n_kv_heads=3).build()
    with pytest.raises(UserError, match="no_such_option"):
        build(name, {"no_such_option": 1})
    options = attention_options(name)
    of_rope = [("rope_base", "high"), ("rope_base", 0.0)] if "rope_base" in options else []
    for option, value in [*((option, [1]) for option in options), *of_rope]:
        with pytest.raises(UserError, match=re.escape(f"attention.{option}={value}:")):
            build(name, {option: value})
    if "window" in VARIANTS[name][-1]:
        for window in (0, 1.5):
            with pytest.raises(UserError, match=f"window={window}:"):
                build(name, {"window": window})


def test_a_full_window_is_mha() -> None:
    x = noise(2, 64, 32)
    mha, swa, dma = (
        build(name, options) for name, options in (("mha", {}), ("swa", {"window": 64}), ("dma", {"window": 64}))
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


def test_dma_holds_its_window_after_4096_tokens_and_is_still_right() -> None:
    attention = build("dma", {"window": 8}, max_seq_len=4096)
    x, cache = noise(1, 4096, 32), attention.new_cache(1)
    with torch.no_grad():
        stepped = torch.cat([attention.step(x_t, cache) for x_t in x.split(1, dim=1)], dim=1)
        torch.testing.assert_close(stepped, attention(x), rtol=1e-8, atol=1e-9)
    assert cache.k_bksd.shape[2] == cache.v_bksd.shape[2] == 8
    arrived = cache.arrived_bks.sort(-1).values
    assert (arrived.diff() > 0).all()  # every slot holds another key
    assert arrived.max() > 4000 > arrived.min() > 0  # and they are old and new
