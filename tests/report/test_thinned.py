"""What an archive keeps of a run: sums that no longer tell every digit of a document, and all of what is shown."""

import lzma

import numpy as np
import pytest

from dma_lab.report.thinned import thinned_metrics, thinned_sums

DOCUMENTS, BANDS = 200, 9


@pytest.fixture(scope="module")
def scores():
    """As ``ValidationScore.save`` has them; a document has tokens in its first bands alone, and three have none."""
    draw = np.random.default_rng(0)
    tokens = draw.poisson(2.0 ** np.arange(BANDS)[:, None] / [3, 6], (DOCUMENTS, BANDS, 2))
    tokens[np.arange(BANDS) > draw.integers(2, BANDS, (DOCUMENTS, 1))] = 0
    tokens[[0, 70, 199]] = 0
    nats = draw.gamma(np.maximum(tokens, 1e-9) * 2, 2.0) * (tokens > 0)
    document_tokens, context = tokens.sum((1, 2)), 512
    return {
        "document_nats": nats.sum((1, 2)),
        "document_tokens": document_tokens,
        "document_end_nats": draw.exponential(4, DOCUMENTS) * (document_tokens > 0),
        "position_nats": draw.gamma(500, 0.01, context) * np.arange(context, 0, -1),
        "position_tokens": np.arange(context, 0, -1),
        "split_nats": nats,
        "split_tokens": tokens,
    }


def restored(thinned):
    return {
        name: values * thinned[f"{name}_step"] if f"{name}_step" in thinned else values
        for name, values in thinned.items()
        if not name.endswith("_step")
    }


def test_sums_over_all_documents_stay_and_those_over_a_range_of_lengths_almost(scores):
    stored = thinned_sums(scores)
    thinned, lengths = restored(stored), scores["document_tokens"]
    assert thinned.keys() == scores.keys()
    for name, nats in scores.items():
        assert thinned[name].shape == nats.shape
        if name.endswith("_tokens"):
            assert thinned[name] is nats
            continue
        if name == "position_nats":
            continue
        assert stored[name].dtype == np.int32
        assert (stored[name] >= 0).all()
        assert (thinned[name][nats == 0] == 0).all()
        np.testing.assert_allclose(thinned[name].sum(0), nats.sum(0), rtol=1e-12)
        step = 2.0**-12 if name == "document_nats" else 2.0**-8
        step = step * np.maximum(nats.sum(0) / np.maximum((nats > 0).sum(0), 1), 1) ** 0.75
        for low, high in ((0, 100), (101, 300), (50, 60)):
            within = (lengths >= low) & (lengths <= high)
            assert (np.abs((thinned[name] - nats)[within].sum(0)) <= 1.05 * step).all()


def test_a_document_is_told_from_another_as_before(scores):
    """Its rounding is a ten-thousandth of the variance over documents of how two models differ."""
    own = restored(thinned_sums(scores))["split_nats"] - scores["split_nats"]
    mean = scores["split_nats"].sum() / scores["split_tokens"].sum()
    between = scores["split_nats"] - 2 * scores["split_tokens"] * mean
    assert (own.var(0) < 2e-4 * between.var(0)).all()


def test_it_is_much_less_to_store(scores):
    packed = [len(lzma.compress(values["split_nats"].tobytes())) for values in (thinned_sums(scores), scores)]
    assert packed[0] < packed[1] / 3.5


def test_thinned_sums_are_left_as_they_are(scores):
    once = thinned_sums(scores)
    twice = thinned_sums(restored(once))
    for name, values in once.items():
        np.testing.assert_allclose(twice[name], values, rtol=1e-6, err_msg=name)


def test_lines_of_metrics_become_means_and_validations_stay():
    lines = [{"step": n, "tokens": 10 * n, "loss": 8.0 - n / 100, "grad_norm": 1.0} for n in range(1, 301)]
    lines[99] |= {"val_loss": 3.25, "val_accuracy": 0.5}
    lines[150]["loss"] = None
    thinned = thinned_metrics(lines)
    assert thinned[-1] == {"step": 100, "tokens": 1000, "val_loss": 3.25, "val_accuracy": 0.5, "loss": None}
    assert len(thinned) <= 21
    assert thinned[0]["tokens"] == pytest.approx(10)
    last = [line for line in lines if line["tokens"] > 10 * 300 ** (19 / 20) and line["loss"] is not None]
    assert thinned[-2] == {
        "tokens": pytest.approx(np.mean([line["tokens"] for line in last])),
        "loss": pytest.approx(np.mean([line["loss"] for line in last])),
    }
    assert thinned_metrics(thinned) == thinned
