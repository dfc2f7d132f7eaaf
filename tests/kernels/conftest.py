"""Brute force: who sees whom by sorting for every query, and attention over that mask in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dma_lab.kernels import admit_key, interval_attention, interval_attention_decode, prefix_topk_expiry

Scores = Callable[[str, int, int, int], Tensor]


def _scores(kind: str, B: int, K: int, N: int) -> Tensor:
    generator = torch.Generator().manual_seed(N + 31 * len(kind))
    noise = torch.randn(B, K, N, generator=generator)
    trend = torch.linspace(-3, 3, N) if N > 1 else torch.zeros(1)
    position = torch.arange(N)
    return {
        "not finite": noise.masked_fill(position % 7 == 3, torch.inf).masked_fill(position % 9 == 5, torch.nan),
        "random": noise,
        "tied": noise.round(),
        "constant": torch.ones(B, K, N),
        "rising": trend.expand(B, K, N).clone(),
        "falling": -trend.expand(B, K, N),
        "drifting": noise + 2 * trend,
        "fading": noise - 2 * trend,
    }[kind]


@pytest.fixture(params=["random", "tied", "constant", "rising", "falling", "drifting", "fading"])
def score_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_scores() -> Scores:
    """``make_scores(kind, B, K, N)``: float32 (B, K, N) of that kind."""
    return _scores


@pytest.fixture
def make_rows(make_scores: Scores) -> Callable[[tuple[str, ...], int], Tensor]:
    """``make_rows(kinds, N)``: float32 (1, K, N), a row of each kind."""
    return lambda kinds, N: torch.cat([make_scores(kind, 1, 1, N) for kind in kinds], dim=1)


@pytest.fixture
def live_by_sorting() -> Callable[..., Tensor]:
    """``live_by_sorting(scores, window, recent, document_ids)``: bool (B, K, N query, N key), one sort per query."""

    def live(scores: Tensor, window: int, recent: int = 0, document_ids: Tensor | None = None) -> Tensor:
        B, K, N = scores.shape
        mask = torch.zeros(B, K, N, N, dtype=torch.bool)
        for b in range(B):
            document = [0] * N if document_ids is None else document_ids[b].tolist()
            for head in range(K):
                score = scores[b, head].tolist()
                for t in range(N):
                    visible = [j for j in range(t + 1) if document[j] == document[t]]
                    best = sorted(visible, key=lambda j: (score[j], j))[-window:]
                    mask[b, head, t, best] = True
                    mask[b, head, t, [j for j in visible if j > t - recent]] = True
        return mask

    return live


@pytest.fixture
def live_by_expiry() -> Callable[[Tensor], Tensor]:
    """``live_by_expiry(expiry)``: the mask that expiries mean, bool (B, K, N query, N key)."""

    def live(expiry: Tensor) -> Tensor:
        position = torch.arange(expiry.shape[-1])
        return (position <= position[:, None]) & (position[:, None] < expiry[..., None, :])

    return live


@pytest.fixture
def attention_by_loops() -> Callable[..., Tensor]:
    """``attention_by_loops(q, k, v, live, bias, scale)``: a softmax per query and head, over its live keys alone."""

    def attend(q: Tensor, k: Tensor, v: Tensor, live: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
        B, H, N, D = q.shape
        K = k.shape[1]
        out = torch.zeros(B, H, N, v.shape[-1], dtype=q.dtype)
        for b in range(B):
            for h in range(H):
                head = h // (H // K)
                for t in range(N):
                    keys = live[b, head, t].nonzero()[:, 0]
                    if len(keys) == 0:
                        continue
                    logits = k[b, head, keys] @ q[b, h, t] * (D**-0.5 if scale is None else scale)
                    if bias is not None:
                        logits = logits + bias[b, head, keys]
                    out[b, h, t] = logits.softmax(0) @ v[b, head, keys]
        return out

    return attend


def _decode_and_compare(scores: Tensor, window: int, recent: int, impl: str) -> None:
    """Every step's output equals that position's of the whole sequence, and just the keys live then are held."""
    B, K, N = scores.shape
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(B, heads, N, D, generator=generator) for heads, D in ((2 * K, 20), (K, 20), (K, 12)))
    expiry = prefix_topk_expiry(scores, window, recent=recent, impl="torch")
    expected = interval_attention(q, k, v, expiry, bias=scores, impl="torch")
    S = window + recent
    k_cache, v_cache = torch.full((B, K, S, 20), torch.nan), torch.full((B, K, S, 12), torch.nan)
    score_cache, arrived = torch.full((B, K, S), torch.nan), torch.full((B, K, S), -1, dtype=torch.int32)
    caches = [k_cache, v_cache, score_cache, arrived]
    for t in range(N):
        admit_key(*caches, k[:, :, t], v[:, :, t], scores[:, :, t], t, window, recent=recent, impl=impl)
        for b in range(B):
            for head in range(K):
                held = {int(a) if a >= 0 else -2 - int(a) for a in arrived[b, head] if a != -1}
                assert held == {j for j in range(t + 1) if expiry[b, head, j] > t}
        # Free slots hold NaN: nothing of them may come through.
        out = interval_attention_decode(q[:, :, t : t + 1], k_cache, v_cache, arrived, bias=score_cache, impl=impl)
        torch.testing.assert_close(out, expected[:, :, t : t + 1], rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.fixture
def decode_and_compare() -> Callable[[Tensor, int, int, str], None]:
    """``decode_and_compare(scores, window, recent, impl)``: token by token against the whole sequence at once."""
    return _decode_and_compare
