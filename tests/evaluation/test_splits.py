"""Splits of the validation loss against a slow count, a target at a time."""

import numpy as np
import pytest
import torch

from dma_lab.data.batches import validation_batches
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.perplexity import score_validation
from dma_lab.evaluation.splits import repeats_bigram

VOCABULARY = 5


def slow_repeats(tokens, targets, documents):
    found = np.zeros(tokens.shape, dtype=bool)
    for b, row in enumerate(zip(tokens.tolist(), targets.tolist(), documents.tolist(), strict=True)):
        seen = set()
        for t, bigram in enumerate(zip(*row, strict=True)):
            found[b, t] = bigram in seen
            seen.add(bigram)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_target_repeats_what_its_own_document_had_before_it(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(VOCABULARY, (3, 61), generator=generator)
    documents = (torch.rand(3, 60, generator=generator) < 0.1).cumsum(1).to(torch.int32)
    found = repeats_bigram(rows[:, :-1], rows[:, 1:], documents, VOCABULARY)
    assert np.array_equal(found.numpy(), slow_repeats(rows[:, :-1], rows[:, 1:], documents))
    assert 0 < found.sum() < found.numel()


def test_large_vocabularies_do_not_collide():
    largest = 2**18 - 1
    tokens, documents = torch.tensor([[largest, 0, largest, 1, largest, 0]]), torch.full((1, 6), 2**17 - 1)
    targets = torch.tensor([[0, largest, 1, largest, 0, largest]])
    found = repeats_bigram(tokens, targets, documents.to(torch.int32), largest + 1)
    assert found.tolist() == [[False, False, False, False, True, True]]


def check_rarities(splits, batches, nats):
    """Against sets of documents, a bigram at a time."""
    where = {}
    for batch in batches:
        for b, t in np.argwhere(batch["targets"].numpy() != -100):
            bigram = int(batch["tokens"][b, t]), int(batch["targets"][b, t])
            where.setdefault(bigram, set()).add(int(batch["target_documents"][b, t]))
    sums, counts = np.zeros(splits.repeat_nats.shape), np.zeros(splits.repeat_tokens.shape, dtype=int)
    for batch, own in zip(batches, nats, strict=True):
        repeats = slow_repeats(batch["tokens"], batch["targets"], batch["document_ids"])
        for b, t in np.argwhere((batch["targets"].numpy() != -100) & repeats):
            stands_in = len(where[int(batch["tokens"][b, t]), int(batch["targets"][b, t])])
            rarity = sum(stands_in >= edge for edge in (2, 4, 8, 16))
            index = int(batch["target_documents"][b, t]), rarity
            sums[index] += float(own[b, t])
            counts[index] += 1
    assert np.array_equal(splits.repeat_tokens, counts)
    np.testing.assert_allclose(splits.repeat_nats, sums, rtol=1e-12)
    assert (counts.sum(0) > 0).sum() >= 3
    assert np.array_equal(counts.sum(1), splits.split_tokens[..., 1].sum(1))


@pytest.mark.parametrize("mask_documents", [True, False])
def test_sums_are_those_of_a_slow_count(trained_run, mask_documents):
    run = open_run(trained_run)
    model, starts, context = run.model(), run.data.validation_document_starts, 64
    # The last window is padded: 2,000 is no multiple of 64.
    batches = list(validation_batches(run.data, context=context, sequences=5, max_tokens=2000))
    score = score_validation(
        model, batches, n_documents=len(starts), mask_documents=mask_documents, device=torch.device("cpu")
    )
    splits = score.splits
    nats, tokens = np.zeros(splits.split_nats.shape), np.zeros(splits.split_tokens.shape, dtype=int)
    own_nats = []
    with torch.no_grad():
        for batch in batches:
            ids = batch["document_ids"]
            own = model.nats(batch["tokens"], batch["targets"], ids if mask_documents else None).double()
            own = own.view(batch["targets"].shape)
            own_nats.append(own)
            repeats = slow_repeats(batch["tokens"], batch["targets"], ids)
            for b, t in np.argwhere(batch["targets"].numpy() != -100):
                begins = int((ids[b] < ids[b, t]).sum()) if mask_documents else 0
                band = int(np.log2(t - begins + 1) + 1e-9)
                index = int(batch["target_documents"][b, t]), band, int(repeats[b, t])
                nats[index] += float(own[b, t])
                tokens[index] += 1
    check_rarities(splits, batches, own_nats)
    assert np.array_equal(splits.split_tokens, tokens)
    np.testing.assert_allclose(splits.split_nats, nats, rtol=1e-12)
    scored = score.document_tokens[: len(tokens)]
    assert np.array_equal(splits.split_tokens.sum((1, 2)), scored)
    assert score.document_tokens[len(tokens) :].sum() == 0
    np.testing.assert_allclose(splits.split_nats.sum((1, 2)), score.document_nats[: len(tokens)], rtol=1e-12)
    assert tokens[..., 1].sum() > 50
    assert tokens.shape[1] == 7


def test_a_finished_run_holds_them(trained_run):
    with np.load(trained_run / "validation.npz") as file:
        assert np.array_equal(file["split_tokens"].sum((1, 2)), file["document_tokens"][: len(file["split_tokens"])])
        assert file["split_nats"].sum() == pytest.approx(file["document_nats"].sum(), rel=1e-12)
