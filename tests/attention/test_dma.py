"""DMA's scores where exp would overflow: finite, with finite gradients, and the calm ones as ever."""

import math

import pytest
import torch

from dma_lab.attention import build_attention
from dma_lab.attention.dma import DynamicMaskAttention
from dma_lab.kernels import prefix_topk_expiry


def dma(A: float, **options) -> DynamicMaskAttention:
    torch.manual_seed(0)
    attention = build_attention(
        "dma", d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, max_seq_len=32, window=4, **options
    )
    with torch.no_grad():
        attention.A.fill_(A)
    return attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("A", [60.0, 1e4, -1e4])
def test_scores_beyond_float32_are_capped(A, dtype):
    attention = dma(A).to(dtype)
    x = torch.randn(1, 32, 16, dtype=dtype, requires_grad=True)
    values = attention.heads(x)[2]
    with torch.no_grad():
        exponent = A * torch.nn.functional.softplus(attention.dt_proj(values.transpose(1, 2).flatten(2)).double())
        assert (exponent.max() > 60) == (A > 60)
        expected = exponent.clamp(max=40).exp().transpose(1, 2)
    torch.testing.assert_close(attention.scores(values).double(), expected, rtol=1e-3 if A < 100 else 1e-1, atol=0)
    out = attention(x)
    assert out.isfinite().all()
    out.float().square().sum().backward()
    gradients = torch.cat([parameter.grad.float().flatten() for parameter in attention.parameters()])
    assert torch.linalg.vector_norm(gradients).isfinite()


def test_a_calm_score_is_the_papers_to_the_bit():
    attention, v = dma(1.5), torch.randn(1, 1, 32, 8)
    dt = attention.dt_proj(v.transpose(1, 2).flatten(2))
    assert torch.equal(attention.scores(v), (attention.A * torch.nn.functional.softplus(dt)).exp().transpose(1, 2))


def test_among_capped_keys_the_more_recent_ones_are_kept():
    attention = dma(1e4)
    scores = attention.scores(attention.heads(torch.randn(1, 32, 16))[2])
    assert scores.unique().tolist() == pytest.approx([math.exp(40)])
    assert prefix_topk_expiry(scores, 4).flatten().tolist() == [min(j + 4, 32) for j in range(32)]


@pytest.mark.parametrize("score", ["exp", "linear"])
def test_factors_on_the_scores_are_learning_rates_of_their_own(score):
    """AdamW on a layer with factors moves it as AdamW at those rates, from that start, moves a plain one."""
    shape = {"d_model": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 4, "max_seq_len": 24, "window": 5}
    rate, scale = 4.0, 0.5
    outputs = []
    for factors in (True, False):
        torch.manual_seed(0)
        own = {"score_rate": rate, "score_scale": scale} if factors else {}
        layer = build_attention("dma", **shape, score=score, **own).double()
        groups = [{"params": [parameter]} for parameter in layer.parameters()]
        if not factors:
            with torch.no_grad():
                layer.dt_proj.weight.mul_(scale)
            for group in groups:
                factor = {id(layer.A): rate, id(layer.dt_proj.weight): scale}.get(id(group["params"][0]), 1.0)
                group["lr"] = 1e-2 * factor
        optimizer = torch.optim.AdamW(groups, lr=1e-2, eps=1e-30, weight_decay=0.0)
        generator = torch.Generator().manual_seed(1)
        for _ in range(6):
            x = torch.randn(2, 24, 16, dtype=torch.float64, generator=generator)
            optimizer.zero_grad()
            (layer(x) - x.roll(1, dims=1)).square().mean().backward()
            optimizer.step()
        outputs.append((layer(x), layer.A * (rate if factors else 1.0)))
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    assert outputs[0][1].abs().min() > 0.01, "A was learned"


@pytest.mark.parametrize("packed", [False, True])
def test_sinks_are_kept_beside_the_best_and_the_recent(packed):
    """Against the definition, query by query."""
    torch.manual_seed(0)
    window, sinks, recent, tokens = 4, 3, 2, 24
    attention = build_attention(
        "dma",
        d_model=16,
        n_heads=2,
        n_kv_heads=2,
        head_dim=8,
        max_seq_len=tokens,
        window=window,
        sinks=sinks,
        recent=recent,
    )
    score = torch.randn(1, 2, tokens)
    documents = torch.tensor([[0] * 2 + [1] * 13 + [2] * 9]) if packed else torch.zeros(1, tokens, dtype=torch.int32)
    expiry = attention.lifetimes(score, documents.int() if packed else None)
    for head in range(2):
        for t in range(tokens):
            seen = [j for j in range(t + 1) if documents[0, j] == documents[0, t]]
            best = sorted(seen[sinks:], key=lambda j: float(score[0, head, j]))[-window:]
            kept = {*seen[:sinks], *best, *(j for j in seen if j > t - recent)}
            live = {j for j in range(t + 1) if t < expiry[0, head, j]}
            assert live == kept


@pytest.mark.parametrize(
    ("options", "exactly"),
    [
        ({"recent": 16}, False),
        ({"recent": 200, "sinks": 5}, False),
        ({"recent": 16, "scores": "random", "recency": "slope"}, False),
        ({"recent": 16, "scores": "frozen"}, True),
        ({"recent": 100, "scores": "frozen", "sinks": 3}, True),
        ({"sinks": 5}, True),
    ],
)
def test_flops_count_the_recent_keys_that_are_not_among_the_best(options, exactly):
    """Against how many lifetimes keep, of scores in random order or, where all are equal, the recent first."""
    torch.manual_seed(0)
    tokens, shape = 256, {"d_model": 16, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "max_seq_len": 256}
    attention = build_attention("dma", **shape, window=64, **options)
    frozen = options.get("scores") == "frozen"
    scores = torch.ones(1, 2, tokens) if frozen else torch.rand(50, 2, tokens)
    kept = (attention.lifetimes(scores) - torch.arange(tokens)).sum(-1).double().mean()
    counted = attention.flops(tokens).mixing / (4 * 2 * 8)
    assert counted == pytest.approx(float(kept), rel=0 if exactly else 0.002)


def test_exp_after_the_choice_chooses_as_exp_before_it():
    """The exponents' order is the scores': what NOSA moves changes no choice of single keys."""
    early, late = dma(0.7), dma(0.7, score="linear")
    late.load_state_dict(early.state_dict())
    values = early.heads(torch.randn(1, 32, 16))[2]
    assert torch.equal(early.lifetimes(early.scores(values)), late.lifetimes(late.scores(values)))
    assert not torch.equal(early.scores(values), late.scores(values))
