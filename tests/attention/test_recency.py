"""A slope on keys is ALiBi in the softmax, ranks DMA's keys and begins at ALiBi's slopes."""

import pytest
import torch

from dma_lab.attention import AttentionConfig, build_attention
from dma_lab.kernels import prefix_topk_expiry

H, K, D, N, M = 4, 2, 8, 40, 32
SHAPE = {"d_model": M, "n_heads": H, "n_kv_heads": K, "head_dim": D, "max_seq_len": 4096}
LENGTHS = [1, 30, 9]


def build(name, dtype=torch.float64, **options):
    torch.manual_seed(0)
    layer = build_attention(name, **SHAPE, **options, recency="slope").to(dtype)
    with torch.no_grad():
        layer.recency.slope_k.copy_(torch.tensor([0.3, -0.02] * (layer.recency.slope_k.shape[0] // 2)))
        if name == "dma":
            layer.A.copy_(torch.tensor([0.5, -1.0]))
    return layer


def noise(length=N, dtype=torch.float64):
    return torch.randn(1, length, M, dtype=dtype, generator=torch.Generator().manual_seed(1))


def by_alibi(layer, x, ids, kept):
    """ALiBi's formula: the logit of a key falls by r for each token between it and the query. ``kept(h, t)``: keys."""
    q, k, v = (tensor[0] for tensor in layer.heads(x))
    content = torch.zeros(K, x.shape[1], dtype=x.dtype)
    if hasattr(layer, "A"):
        dt = layer.dt_proj(v.transpose(0, 1).flatten(1))
        content = (layer.A * torch.nn.functional.softplus(dt)).exp().T
    out = torch.zeros(x.shape[1], H, D, dtype=x.dtype)
    for h in range(H):
        for t in range(x.shape[1]):
            keys = torch.tensor(kept(h // (H // K), t, content))
            slope = layer.recency.slope_k[h // (H // K)]
            logits = k[h // (H // K), keys] @ q[h, t] * D**-0.5 - slope * (t - keys)
            out[t, h] = (logits + content[h // (H // K), keys]).softmax(0) @ v[h // (H // K), keys]
    return layer.o_proj(out.flatten(1))[None]


@pytest.mark.parametrize("name", ["mha", "swa", "dma"])
@pytest.mark.parametrize("packed", [False, True])
def test_it_is_alibi_in_the_softmax_and_ranks_keys(name, packed):
    layer, x = build(name, **({} if name == "mha" else {"window": 6})), noise()
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))[None] if packed else None
    document = [0] * N if ids is None else ids[0].tolist()
    slopes = layer.recency.slope_k.tolist()

    def kept(head, t, content):
        visible = [j for j in range(t + 1) if document[j] == document[t]]
        if name == "dma":  # by score and slope together; it is enough to know how far back a key is
            return sorted(visible, key=lambda j: (content[head, j].item() - slopes[head] * (t - j), j))[-6:]
        return visible if name == "mha" else visible[-6:]

    torch.testing.assert_close(layer(x, ids), by_alibi(layer, x, ids, kept), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("packed", [False, True])
def test_in_mla_every_head_has_a_slope_for_its_own_keys(packed):
    torch.manual_seed(0)
    layer = build_attention("mla", **SHAPE, kv_rank=6, rope_dim=4, recency="slope").double()
    with torch.no_grad():
        layer.recency.slope_k.copy_(torch.tensor([0.3, -0.02, 0.1, 1.5]))
    x = noise()
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))[None] if packed else None
    document = [0] * N if ids is None else ids[0].tolist()
    (q_nope, q_rope), (c_bnr, k_rope) = layer.queries(x), layer.latents(x)
    k_nope, v = (up(c_bnr)[0].unflatten(-1, (H, D)) for up in (layer.k_up, layer.v_up))
    out = torch.zeros(N, H, D, dtype=torch.float64)
    for h in range(H):
        for t in range(N):
            keys = torch.tensor([j for j in range(t + 1) if document[j] == document[t]])
            products = k_nope[keys, h] @ q_nope[0, h, t] + k_rope[0, keys] @ q_rope[0, h, t]
            logits = products * (D + 4) ** -0.5 - layer.recency.slope_k[h] * (t - keys)
            out[t, h] = logits.softmax(0) @ v[keys, h]
    torch.testing.assert_close(layer(x, ids), layer.o_proj(out.flatten(1))[None], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["mha", "swa", "mla", "nsa", "dma"])
def test_slopes_begin_at_alibis(name):
    shape = SHAPE | {"n_heads": 8, "n_kv_heads": 8}
    layer = build_attention(name, **shape, recency="slope")
    assert layer.recency.slope_k.tolist() == [2.0**-h for h in range(1, 9)]
    plain = build_attention(name, **shape)
    assert {key for key, _ in layer.named_parameters()} - {key for key, _ in plain.named_parameters()} == {
        "recency.slope_k"
    }


def test_a_large_slope_makes_dma_a_sliding_window_and_none_leaves_it_to_content():
    layer, x = build("dma", window=6), noise()
    window = [min(j + 6, N) for j in range(N)]
    for slope, slides in ((100.0, True), (0.0, False)):
        with torch.no_grad():
            layer.recency.slope_k.fill_(slope)
        expiry = prefix_topk_expiry(layer.scores(layer.heads(x)[2]), 6)
        assert (expiry.tolist() == [[window] * K]) is slides


@pytest.mark.parametrize("name", ["mha", "mla", "nsa", "dma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_far_into_a_text_give_what_the_whole_gives(name, dtype):
    """Where r · j is large beside what tells keys apart; and in bfloat16, which could not hold it."""
    layer, x = build(name, dtype, **({"window": 16} if name == "dma" else {})), noise(1500, dtype)
    with torch.no_grad():
        layer.recency.slope_k.copy_(torch.tensor([0.5, 0.004] * (layer.recency.slope_k.shape[0] // 2)))
        cache = layer.new_cache(1)
        stepped = torch.cat([layer.step(x_t, cache) for x_t in x.split(1, dim=1)], dim=1)
        whole = layer(x)
    error = (stepped - whole).double().norm(dim=-1) / whole.double().norm(dim=-1)
    assert error.max() < (1e-3 if dtype == torch.float32 else 0.05)


def test_runs_without_it_keep_their_names():
    """It came later than the first runs: only where it is set does it define one."""
    for name in ("mha", "swa", "mla", "nsa", "dma"):
        plain, sloped = (AttentionConfig.of(name, {"recency": recency}) for recency in (None, "slope"))
        assert (plain.written()["recency"], sloped.written()["recency"]) == (None, "slope")
        assert "recency" not in plain.defining()
        assert plain.defining().items() <= plain.written().items()
        assert sloped.defining() == plain.defining() | {"recency": "slope"}
