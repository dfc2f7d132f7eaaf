"""Lifetimes and what heads became, from expiries made by hand and from those of a model, by brute force."""

import numpy as np
import pytest
import torch

from dma_lab.evaluation.lifetimes import Lifetimes, measure_lifetimes
from dma_lab.kernels import prefix_topk_expiry
from dma_lab.model import ModelShape, Transformer

W = 40


def made(length: int, lived, documents: int = 1) -> Lifetimes:
    """One layer and head; ``documents`` of ``length`` in a row, key p of each living ``lived(p)`` queries at most."""
    place = np.tile(np.arange(length), documents)
    start = np.repeat(np.arange(documents) * length, length)
    position = np.arange(length * documents)
    age = np.array([lived(p) for p in place])
    expiry = np.minimum(position + age, start + length).astype(np.int32)
    return Lifetimes(expiry[None, None, None], start[None], start[None] + length, W)


SHORT = 60 + 8  # 9 keys of each document can be seen to live 1.5 W = 60 queries
HEADS = {
    "window": made(400, lambda p: W),
    "sink": made(SHORT, lambda p: 1000 if p < 4 else W, documents=20),
    "long memory": made(400, lambda p: 1000 if p % 5 == 0 else 7),
    "mixed": made(400, lambda p: 5 + p % 30),
    "undecided": made(59, lambda p: W),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_named_by_how_its_keys_leave(kind):
    assert HEADS[kind].kinds() == [[kind]]


@pytest.mark.parametrize(("share", "kind"), [(9, "mixed"), (11, "long memory")])
def test_a_long_memory_keeps_a_tenth_of_its_keys(share, kind):
    kept = made(60 + 103, lambda p: 1000 if p >= 4 and (p - 4) < share else 10)  # 104 observed, 100 beyond the first 4
    assert kept.observed.sum() == 104
    assert kept.kinds() == [[kind]]


def test_a_sliding_windows_histogram_is_one_bar_at_the_window():
    edges, shares = HEADS["window"].histogram()
    bar = np.flatnonzero(shares[0, 0])
    assert shares[0, 0, bar] == pytest.approx([1.0])
    assert edges[bar] == pytest.approx([1.0])


def test_the_histogram_counts_each_observed_key_once_and_survivors_last():
    head = HEADS["long memory"]
    edges, shares = head.histogram()
    observed = 400 - 60 + 1
    assert head.observed.sum() == observed
    survivors = sum(p % 5 == 0 for p in range(observed))
    assert shares[0, 0, -1] == pytest.approx(survivors / observed)
    within = (edges[:-1] <= 7 / W) & (7 / W < edges[1:])
    assert shares[0, 0, within] == pytest.approx([1 - survivors / observed])
    assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("kept", [{}, {"sinks": 6}, {"recent": 29}, {"recent": 30}, {"sinks": 6, "recent": 8}])
def test_chance_is_the_share_that_random_scores_let_survive(kept):
    scores = torch.rand(300, 1, 150, generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(150) >= 50).int().expand(300, -1)
    place = torch.arange(150) - 50 * documents[:1]
    sinks, recent = kept.get("sinks", 0), kept.get("recent", 0)
    scores = scores.masked_fill(place < sinks, torch.inf)
    expiry = prefix_topk_expiry(scores, 20 + sinks, recent=recent, document_ids=documents).numpy()
    start = np.where(np.arange(150) >= 50, 50, 0) + np.zeros((300, 1), int)
    end = np.where(np.arange(150) >= 50, 150, 50) + np.zeros((300, 1), int)
    lifetimes = Lifetimes(expiry[None], start, end, 20)
    found = lifetimes.histogram()[1][0, 0, -1]
    assert lifetimes.surviving_by_chance(**kept) == pytest.approx(found, abs=0.003)
    assert found == 1 if recent == 30 else 0.2 < found < 0.5


@pytest.mark.parametrize("masked", [True, False])
def test_measured_lifetimes_are_those_of_the_models_scores(masked):
    torch.manual_seed(1)
    window, recent, B, N = 6, 2, 2, 40
    shape = ModelShape(
        n_layers=2,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=48,
        vocab_size=50,
        max_seq_len=N,
        tie_embeddings=True,
    )
    model = Transformer(shape, "dma", {"window": window, "recent": recent})
    scores = []
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.A)
        block.attention.register_forward_hook(
            lambda attention, arguments, _: scores.append(attention.scores(attention.heads(arguments[0])[2]))
        )
    tokens = torch.randint(50, (B, N))
    documents = torch.cat((torch.zeros(B, 13), torch.ones(B, N - 13)), 1).int()
    measured = measure_lifetimes(model, tokens, documents if masked else None)
    assert measured.expiry.shape == (2, B, 2, N)
    for layer, b, head in np.ndindex(2, B, 2):
        score = scores[layer][b, head].tolist()
        last_seen = list(range(N))  # one before the expiry, were the key never live
        live = [0] * N
        for t in range(N):
            first = 13 if masked and t >= 13 else 0
            best = sorted(range(first, t + 1), key=lambda j: (score[j], j))[-window:]
            for j in {*best, *range(max(first, t - recent + 1), t + 1)}:
                last_seen[j], live[j] = t, live[j] + 1
        lived = measured.lived[layer, b, head]
        assert lived.tolist() == live
        assert measured.expiry[layer, b, head].tolist() == [
            t + 1 if n else j for j, (t, n) in enumerate(zip(last_seen, live, strict=True))
        ]
    assert measured.window == window
    bounds = [(0, 13)] * 13 + [(13, N)] * (N - 13) if masked else [(0, N)] * N
    assert list(zip(measured.start[1].tolist(), measured.end[1].tolist(), strict=True)) == bounds


def test_what_is_saved_is_read_back(tmp_path):
    HEADS["sink"].save(tmp_path / "lifetimes.npz")
    again = Lifetimes.load(tmp_path / "lifetimes.npz")
    assert again.window == W
    for name in ("expiry", "start", "end"):
        assert np.array_equal(getattr(again, name), getattr(HEADS["sink"], name))
