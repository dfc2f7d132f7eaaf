"""Recall is counted right: against models of which one knows, for every query, whether they can answer it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dma_lab.data.mqar import RecallSettings, RecallSize, recall_validation
from dma_lab.evaluation.mqar import score_recall

VOCABULARY, LENGTH, SURE = 64, 32, 5.0


class Lookup(nn.Module):
    """Answers by what follows the first occurrence of a token, if that lies within the last ``window`` tokens."""

    def __init__(self, window: int = LENGTH) -> None:
        super().__init__()
        self.window = window

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, VOCABULARY)
        for row, sequence in enumerate(tokens.tolist()):
            for position, token in enumerate(sequence):
                seen = sequence[max(0, position - self.window + 1) : position]
                if token in seen[:-1]:
                    logits[row, position, seen[seen.index(token) + 1]] = SURE
        return logits


def score_of(model, examples=60, sequences=25, **others):
    size = RecallSize(LENGTH, [2, 4, 8])
    settings = RecallSettings("mqar", "mqar", size, VOCABULARY, **others)
    batches = list(recall_validation(settings, examples=examples, sequences=sequences))
    return score_recall(model, batches, device=torch.device("cpu")), batches


@pytest.mark.parametrize("filler", ["blank", "noise", "random"])
def test_a_model_that_looks_keys_up_is_always_right(filler):
    score, _ = score_of(Lookup(), filler=filler)
    assert score.accuracy == 1
    assert score.accuracy_by_pairs == {"2": 1, "4": 1, "8": 1}
    assert set(score.accuracy_by_gap.values()) == {1}
    assert score.total.sum() == 20 * (2 + 4 + 8)
    nats = math.log(1 + (VOCABULARY - 1) * math.exp(-SURE))
    assert score.nats.loss == pytest.approx(nats, rel=1e-6)


@pytest.mark.parametrize("window", [2, 6, 9, 17])
def test_a_model_that_knows_the_last_tokens_is_right_at_the_gaps_they_span(window):
    score, batches = score_of(Lookup(window))
    by_gap: dict[int, list[bool]] = {}
    for batch in batches:
        for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
            for position in (position for position, target in enumerate(targets) if target != -100):
                gap = position - tokens.index(tokens[position])
                by_gap.setdefault(gap, []).append(gap < window)
    for gap in range(LENGTH):
        assert score.total[:, gap].sum() == len(by_gap.get(gap, []))
        assert score.correct[:, gap].sum() == sum(by_gap.get(gap, []))
    answers = [answer for gap in by_gap.values() for answer in gap]
    assert score.accuracy == sum(answers) / len(answers)
    for octave, share in score.accuracy_by_gap.items():
        first, last = map(int, octave.split("-"))
        inside = [answer for gap in range(first, last + 1) for answer in by_gap.get(gap, [])]
        assert share == sum(inside) / len(inside)
    spans = [tuple(map(int, octave.split("-"))) for octave in score.accuracy_by_gap]
    assert spans == [(1, 2), (3, 4), (5, 8), (9, 16), (17, 32)]


def test_counts_are_kept_by_number_of_pairs():
    """A window of 6 tokens spans the last two bindings from the first slot on: fewer pairs, more within reach."""
    score, batches = score_of(Lookup(6), examples=300)
    assert score.pairs.tolist() == [2, 4, 8]
    assert score.total.sum(1).tolist() == [200, 400, 800]
    for row, pairs in enumerate((2, 4, 8)):
        gaps = torch.cat([batch["gaps"][batch["pairs"] == pairs].flatten() for batch in batches])
        gaps = gaps[gaps > 0]
        assert score.accuracy_by_pairs[str(pairs)] == pytest.approx((gaps < 6).double().mean().item())
        assert (np.bincount(gaps, minlength=LENGTH) == score.total[row]).all()


def test_what_is_saved_pairs_runs_by_example(tmp_path):
    score, batches = score_of(Lookup(9))
    score.save(tmp_path / "validation.npz")
    counts, losses = (np.load(tmp_path / name) for name in ("recall.npz", "validation.npz"))
    assert counts["correct"].sum() / counts["total"].sum() == score.metrics()["val_accuracy"]
    assert counts["pairs"].tolist() == [2, 4, 8]
    assert losses["document_tokens"].tolist() == [2, 4, 8] * 20
    assert losses["document_nats"].sum() / losses["document_tokens"].sum() == score.metrics()["val_loss"]
    assert losses["position_nats"].sum() == pytest.approx(losses["document_nats"].sum())
    # One example by hand: a query beyond the window costs log V, one within log(1 + (V - 1) / e^5).
    gaps = batches[0]["gaps"][0]
    known, unknown = int(((gaps > 0) & (gaps < 9)).sum()), int((gaps >= 9).sum())
    expected = known * math.log(1 + (VOCABULARY - 1) * math.exp(-SURE)) + unknown * math.log(VOCABULARY)
    assert losses["document_nats"][0] == pytest.approx(expected, rel=1e-6)


def test_batch_sizes_change_nothing():
    whole, parts = (score_of(Lookup(9), sequences=sequences)[0] for sequences in (60, 7))
    assert (whole.correct == parts.correct).all()
    assert (whole.total == parts.total).all()
    np.testing.assert_allclose(whole.nats.document_nats, parts.nats.document_nats, rtol=1e-6)
