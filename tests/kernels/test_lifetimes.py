"""Lifetimes against the definition: each query's best-scored visible keys, picked one query at a time."""

import math

import pytest
import torch
from torch import Tensor

from dma_lab.kernels import prefix_topk_expiry


def live_mask(expiry_bkn: Tensor) -> Tensor:
    """(B, K, query, key)."""
    position_n = torch.arange(expiry_bkn.shape[-1])
    return (position_n <= position_n[:, None]) & (position_n[:, None] < expiry_bkn[:, :, None, :])


def brute_force(scores: Tensor, window: int, recent: int, document_ids: Tensor) -> Tensor:
    B, K, N = scores.shape
    live = torch.zeros(B, K, N, N, dtype=torch.bool)
    for b in range(B):
        for k in range(K):
            for t in range(N):
                visible = [j for j in range(t + 1) if document_ids[b, j] == document_ids[b, t]]
                best = sorted(visible, key=lambda j: (*ordered(scores[b, k, j].item()), j))[-window:]
                live[b, k, t, best] = True
                live[b, k, t, [j for j in visible if t - j < recent]] = True
    return live


def ordered(score: float) -> tuple[bool, float]:
    """NaN is above every number, and equal to itself."""
    return (True, 0.0) if math.isnan(score) else (False, score)


def make_scores(kind: str, N: int) -> Tensor:
    noise = torch.randn(2, 2, N, generator=torch.Generator().manual_seed(N))
    trend = torch.linspace(-3, 3, N)
    return {
        "random": noise,
        "tied": noise.round(),
        "constant": torch.ones(2, 2, N),
        "rising": trend.expand(2, 2, N),
        "falling": -trend.expand(2, 2, N),
        "drifting": 0.3 * noise + trend,
        "sinks": torch.where(torch.arange(N) < 3, 9.0, noise),
        "signed zeros": torch.where(noise > 0, 0.0, -0.0),
        "not finite": noise.masked_fill(noise > 1, torch.inf).masked_fill(noise.abs() < 0.3, torch.nan),
    }[kind]


KINDS = ["random", "tied", "constant", "rising", "falling", "drifting", "sinks", "signed zeros", "not finite"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("N", [1, 2, 13, 64])
@pytest.mark.parametrize("window", [1, 5, 64])
@pytest.mark.parametrize("recent", [0, 3])
def test_every_query_sees_its_best_keys(kind, N, window, recent):
    scores = make_scores(kind, N)
    generator = torch.Generator().manual_seed(7)
    packed = torch.randint(0, 5, (2, N), generator=generator).eq(0).cumsum(1)
    for document_ids in (torch.zeros(2, N, dtype=torch.int64), packed):
        expiry = prefix_topk_expiry(scores, window, recent=recent, document_ids=document_ids)
        assert expiry.dtype == torch.int32
        assert torch.equal(live_mask(expiry), brute_force(scores, window, recent, document_ids))


def test_constant_scores_are_a_sliding_window():
    expiry = prefix_topk_expiry(torch.ones(1, 1, 10), 4)
    assert expiry.flatten().tolist() == [4, 5, 6, 7, 8, 9, 10, 10, 10, 10]


def test_a_key_that_never_lives_expires_where_it_stands():
    assert prefix_topk_expiry(torch.tensor([[[2.0, 1.0, 3.0]]]), 1).flatten().tolist() == [2, 1, 3]


def test_later_scores_change_nothing_that_earlier_queries_see():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(1, 2, 200, generator=generator)
    changed = scores.clone()
    changed[..., 120:] = torch.randn(1, 2, 80, generator=generator) * 5
    before, after = (live_mask(prefix_topk_expiry(s, 17)) for s in (scores, changed))
    assert torch.equal(before[:, :, :120], after[:, :, :120])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("document_ids", [[[0, 0, 5, 5, 5, 9]], [[3, 3, 3, 3, 3, 3]]])
def test_document_ids_need_not_count_from_zero(document_ids):
    ids = torch.tensor(document_ids)
    scores = torch.arange(6.0).view(1, 1, 6)
    expiry = prefix_topk_expiry(scores, 2, document_ids=ids)
    assert torch.equal(live_mask(expiry), brute_force(scores, 2, 0, ids))


@pytest.mark.parametrize(
    ("scores", "options", "said"),
    [
        (torch.ones(2, 8), {}, "scores must be"),
        (torch.ones(1, 1, 8, dtype=torch.int64), {}, "scores must be"),
        (torch.ones(1, 1, 0), {}, "scores must be"),
        (torch.ones(1, 1, 8), {"window": 0}, "window=0"),
        (torch.ones(1, 1, 8), {"recent": -1}, "recent=-1"),
        (torch.ones(1, 1, 8), {"impl": "cuda"}, "impl='cuda'"),
        (torch.ones(1, 1, 8), {"document_ids": torch.zeros(1, 7, dtype=torch.int64)}, "document_ids must be"),
    ],
)
def test_bad_input_is_named(scores, options, said):
    with pytest.raises(ValueError, match=said):
        prefix_topk_expiry(scores, **{"window": 4, **options})
