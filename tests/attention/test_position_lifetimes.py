"""A rule of places alone against backends that were written out, and against the definition."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dma_lab.attention import AttentionBackend, AttentionOptions, AttentionShape, PositionLifetimes, build_attention
from dma_lab.kernels import interval_attention

M, H, K, D, N, CONTEXT = 20, 4, 2, 6, 53, 64
IDS = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 30, 9, 13]))[None]


def build(rule: Callable[[Tensor], Tensor]) -> PositionLifetimes:
    class Ruled(PositionLifetimes):
        def lifetime(self, place: Tensor) -> Tensor:
            return rule(place)

    torch.manual_seed(0)
    return Ruled(AttentionShape(M, H, K, D, CONTEXT), AttentionOptions()).double()


def window(place: Tensor) -> Tensor:
    return torch.full_like(place, 7)


def window_and_sinks(place: Tensor) -> Tensor:
    return torch.where(place < 3, CONTEXT, 7)


def everything(place: Tensor) -> Tensor:
    return torch.full_like(place, torch.iinfo(torch.int64).max)


@pytest.mark.parametrize(
    ("rule", "name", "options"),
    [
        (window, "swa", {"window": 7}),
        (window_and_sinks, "swa", {"window": 7, "sinks": 3}),
        (everything, "mha", {}),
    ],
)
def test_a_rule_is_the_backend_that_is_written_out(rule, name, options):
    ruled = build(rule)
    shape = {"d_model": M, "n_heads": H, "n_kv_heads": K, "head_dim": D, "max_seq_len": CONTEXT}
    written: AttentionBackend = build_attention(name, **shape, **options).double()
    written.load_state_dict(ruled.state_dict())
    x = torch.randn(2, N, M, dtype=torch.float64)
    for ids in (None, IDS.expand(2, N)):
        torch.testing.assert_close(ruled(x, ids), written(x, ids), rtol=1e-9, atol=1e-10)
    caches = ruled.new_cache(2), written.new_cache(2)
    for t in range(N):
        x_t = x[:, t : t + 1]
        torch.testing.assert_close(ruled.step(x_t, caches[0]), written.step(x_t, caches[1]), rtol=1e-9, atol=1e-10)
        for held, expected in ((caches[0].k_bksd, caches[1].k_bksd), (caches[0].v_bksd, caches[1].v_bksd)):
            torch.testing.assert_close(held, expected, rtol=0, atol=0)
    for tokens in (1, 2, 6, 7, 8, 10, 11, N, 1_000_000):
        assert ruled.flops(tokens) == written.flops(tokens)
        assert ruled.cache_bytes(tokens, torch.bfloat16) == written.cache_bytes(tokens, torch.bfloat16)


def test_kernels_are_told_how_many_keys_a_query_sees_at_most(monkeypatch):
    table = torch.randint(-3, CONTEXT + 9, (CONTEXT,), generator=torch.Generator().manual_seed(0))
    t, j = torch.arange(CONTEXT)[:, None], torch.arange(CONTEXT)
    told = []
    monkeypatch.setattr(
        "dma_lab.attention.position_lifetimes.interval_attention",
        lambda *tensors, max_live: told.append(max_live) or interval_attention(*tensors, max_live=max_live),
    )
    for rule in (lambda place: table[place], window, window_and_sinks, everything):
        seen = (j <= t) & (t - j < rule(j).clamp(min=1))
        build(rule)(torch.zeros(1, 9, M, dtype=torch.float64))
        assert told.pop() == seen.sum(1).max()


def test_any_rule_is_its_definition_and_every_query_sees_its_own_key():
    table = torch.randint(-3, CONTEXT + 9, (CONTEXT,), generator=torch.Generator().manual_seed(0))
    attention, x = build(lambda place: table[place]), torch.randn(1, N, M, dtype=torch.float64)
    q, k, v = attention.heads(x)
    start = torch.tensor([(IDS[0] == document).nonzero().min().item() for document in IDS[0]])
    t, j = torch.arange(N)[:, None], torch.arange(N)
    seen = (j <= t) & (start == start[:, None]) & (t - j < table[j - start].clamp(min=1))
    assert 4 * H * D * int(seen[1:31, 1:31].sum()) == attention.flops(30).mixing
    weights = (q @ k.repeat_interleave(H // K, 1).mT * D**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    expected = attention.o_proj((weights @ v.repeat_interleave(H // K, 1)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, IDS), expected, rtol=1e-9, atol=1e-10)
    cache = attention.new_cache(1)
    out = attention(x)
    for at in range(N):
        torch.testing.assert_close(attention.step(x[:, at : at + 1], cache), out[:, at : at + 1], rtol=1e-9, atol=1e-10)
        held = [place for place in range(at + 1) if at - place < max(1, table[place])]
        torch.testing.assert_close(cache.k_bksd, attention.heads(x)[1][:, :, held], rtol=1e-9, atol=1e-10)
        assert cache.k_bksd.nbytes + cache.v_bksd.nbytes == attention.cache_bytes(at + 1, torch.float64)
