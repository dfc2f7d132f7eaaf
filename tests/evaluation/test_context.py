"""Sliding evaluation: every target once, from as many tokens as fit, as one forward pass per target says."""

import math

import numpy as np
import pytest
import torch

from dma_lab.data.batches import scored_targets, validation_batches
from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.perplexity import score_validation
from dma_lab.evaluation.suites.context import loss_by_tokens_seen, score_sliding, sliding_windows
from dma_lab.messages import UserError


@pytest.mark.parametrize(
    ("targets", "context", "stride"), [(100, 16, 16), (100, 16, 5), (7, 16, 3), (33, 8, 1), (1, 1, 1)]
)
def test_every_target_is_scored_once_from_as_many_tokens_as_fit(targets, context, stride):
    windows = list(sliding_windows(targets, context, stride))
    assert [i for window in windows for i in range(window.first, window.end)] == list(range(targets))
    assert {window.end - window.start for window in windows} == {min(context, targets)}
    for window in windows:
        for i in range(window.first, window.end):
            assert i - window.start + 1 >= min(i + 1, context - stride + 1)


@pytest.mark.parametrize("stride", [0, -1, 17])
def test_a_stride_that_leaves_targets_out_is_refused(stride):
    with pytest.raises(UserError, match=f"stride={stride}: choose from 1 to the context of 16"):
        list(sliding_windows(100, 16, stride))


@pytest.mark.parametrize(("context", "mask"), [(48, True), (48, False), (160, True)])
def test_sums_are_those_of_a_forward_pass_a_target(trained_run, context, mask):
    run = open_run(trained_run)
    data, targets, stride = run.data, 400, context // 3
    model = run.model(max_seq_len=160).double()
    options = {"stride": stride, "targets": targets, "mask_documents": mask, "batch_tokens": 500}
    score = score_sliding(model, data, context=context, **options)

    stream, starts = data.validation_tokens.astype(int), data.validation_document_starts.tolist()
    documents, positions = np.zeros(len(starts)), np.zeros(context)
    for window in sliding_windows(targets, context, stride):
        for i in range(window.first, window.end):
            document = max(index for index, start in enumerate(starts) if start <= i)
            begin = max(window.start, starts[document]) if mask else window.start
            # No document ids: the model is given nothing but what the target may be predicted from.
            with torch.no_grad():
                logits = model(torch.tensor(stream[begin : i + 1])[None])[0, -1]
            nats = -float(logits.float().log_softmax(-1)[stream[i + 1]])
            documents[document] += nats
            positions[i - begin] += nats
    np.testing.assert_allclose(score.document_nats, documents, rtol=1e-5)
    np.testing.assert_allclose(score.position_nats, positions, rtol=1e-5, atol=1e-9)
    assert score.document_tokens.sum() == score.position_tokens.sum() == targets
    assert score.document_bytes.sum() == data.token_bytes[stream[1 : targets + 1]].sum()
    assert score.loss == pytest.approx(documents.sum() / targets, rel=1e-5)


def test_without_overlap_it_is_the_validation_of_training(trained_run):
    run = open_run(trained_run)
    documents = len(run.data.validation_document_starts)
    batches = validation_batches(run.data, context=64, sequences=4, max_tokens=1024)
    trained = score_validation(
        run.model(), batches, n_documents=documents, mask_documents=True, device=torch.device("cpu")
    )
    options = {"targets": scored_targets(run.data, 1024), "mask_documents": True, "batch_tokens": 256}
    ours = score_sliding(run.model(), run.data, context=64, stride=64, **options)
    np.testing.assert_allclose(ours.document_nats, trained.document_nats, rtol=1e-6)
    np.testing.assert_array_equal(ours.document_bytes, trained.document_bytes)
    assert ours.text_bits_per_byte == pytest.approx(trained.text_bits_per_byte, rel=1e-6)
    assert 0 < trained.text_bits_per_byte < trained.bits_per_byte


def test_asking_for_more_targets_than_there_are_scores_all(trained_run):
    run = open_run(trained_run)
    done = []
    options = {"mask_documents": True, "batch_tokens": 4096, "on_targets": done.append}
    score = score_sliding(run.model(), run.data, context=64, stride=64, targets=10**9, **options)
    assert score.document_tokens.sum() == done[-1] == len(run.data.validation_tokens) - 1


def test_bands_hold_every_target_once(trained_run):
    run = open_run(trained_run)
    options = {"targets": 1000, "mask_documents": True, "batch_tokens": 1024}
    score = score_sliding(run.model(), run.data, context=50, stride=25, **options)
    bands = loss_by_tokens_seen(score)
    assert [(band["from"], band["to"]) for band in bands] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 50)]
    assert sum(band["tokens"] for band in bands) == 1000
    assert math.fsum(band["tokens"] * band["loss"] for band in bands) == pytest.approx(score.position_nats.sum())
