import numpy as np
import pytest
import torch

from dma_lab.data.batches import refuse_repeat, scored_targets, sequences_from, sequences_in, validation_batches
from dma_lab.messages import UserError, print_once

CONTEXT = 16


def _batch(data, step, seed=0, sequences=8, context=CONTEXT):
    first = step * sequences
    return sequences_from(data, seed=seed, first=first, count=sequences, context=context, mask_documents=True)


def test_every_window_appears_once_an_epoch_in_another_order_each(data):
    windows = sequences_in(data, CONTEXT)
    stream = np.asarray(data.train_tokens, dtype=np.int64)
    wanted = [tuple(stream[i * CONTEXT : (i + 1) * CONTEXT + 1]) for i in range(windows)]
    steps = -(-3 * windows // 8)  # three epochs, wrapping inside steps
    rows = []
    for step in range(steps):
        batch = _batch(data, step)
        rows += [(*t.tolist(), int(y[-1])) for t, y in zip(batch["tokens"], batch["targets"], strict=True)]
        assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    epochs = [rows[e * windows : (e + 1) * windows] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(wanted)
        assert epoch != wanted
    assert epochs[0] != epochs[1] != epochs[2]


def test_seed_and_step_decide_the_batch_and_nothing_else(data):
    first = _batch(data, 5)
    _batch(data, 0, seed=3)
    assert torch.equal(first["tokens"], _batch(data, 5)["tokens"])
    assert not torch.equal(first["tokens"], _batch(data, 6)["tokens"])
    assert not torch.equal(first["tokens"], _batch(data, 5, seed=1)["tokens"])
    # The order is part of what runs are compared by: it may not change with a library or a rewrite.
    order = [int(row[0]) for row in _batch(data, 0, context=1, sequences=4)["tokens"]]
    raw = np.random.Philox(key=np.array([0, 0], dtype=np.uint64)).random_raw(sequences_in(data, 1))
    smallest = sorted(range(len(raw)), key=lambda i: raw[i])[:4]
    assert order == [int(data.train_tokens[i]) for i in smallest]


def test_document_ids_change_exactly_where_a_document_starts(data):
    starts = set(data.train_document_starts.tolist())
    stream = data.train_tokens.tolist()
    by_window = {}
    for i in range(sequences_in(data, CONTEXT)):
        ids, current = [], 0
        for p in range(i * CONTEXT, (i + 1) * CONTEXT):
            current += p in starts and p != i * CONTEXT
            ids.append(current)
        by_window.setdefault(tuple(stream[i * CONTEXT : (i + 1) * CONTEXT]), set()).add(tuple(ids))
    several = 0
    for step in range(40):
        batch = _batch(data, step)
        assert batch["document_ids"].dtype == torch.int32
        for tokens, ids in zip(batch["tokens"], batch["document_ids"], strict=True):
            assert tuple(ids.tolist()) in by_window[tuple(tokens.tolist())]
            several += int(ids[-1]) > 0
    assert several > 10
    assert sequences_from(data, seed=0, first=0, count=2, context=8, mask_documents=False)["document_ids"] is None


@pytest.mark.parametrize("max_tokens", [None, 1, 37, 500])
def test_validation_scores_each_target_once_with_its_document_and_bytes(data, max_tokens):
    stream = data.validation_tokens.tolist()
    starts = data.validation_document_starts.tolist()
    limit = len(stream) - 1 if max_tokens is None else max_tokens
    ends = [start for start in starts if 0.9 * limit <= start <= limit]
    limit = ends[-1] if ends and max_tokens is not None else limit
    targets, documents, sizes = [], [], []
    for batch in validation_batches(data, context=CONTEXT, sequences=3, max_tokens=max_tokens):
        scored = batch["targets"] != -100
        assert batch["target_bytes"][~scored].sum() == 0
        assert all(value.shape == batch["tokens"].shape for value in batch.values())
        targets += batch["targets"][scored].tolist()
        documents += batch["target_documents"][scored].tolist()
        sizes += batch["target_bytes"][scored].tolist()
    assert targets == stream[1 : limit + 1]
    assert documents == [sum(s <= p for s in starts) - 1 for p in range(limit)]
    assert sizes == data.token_bytes[stream[1 : limit + 1]].tolist()


def test_validation_bytes_of_a_document_are_its_texts(data, decode_stream):
    totals = np.zeros(len(data.validation_document_starts), dtype=np.int64)
    for batch in validation_batches(data, context=CONTEXT, sequences=2):
        np.add.at(totals, batch["target_documents"].numpy().ravel(), batch["target_bytes"].numpy().ravel())
    assert totals.tolist() == [len(text.encode()) for text in decode_stream(data, "validation")]


def test_what_is_scored_ends_where_a_document_does_and_holds_its_texts_bytes(data, decode_stream):
    starts, texts = data.validation_document_starts.tolist(), decode_stream(data, "validation")
    near = {start + off for start in starts for off in (-1, 0, 1, 2)}
    near |= {int(start / 0.9) + off for start in starts for off in (0, 1)}
    for max_tokens in sorted((near | set(range(1, len(data.validation_tokens) + 50, 97))) - {-1, 0}):
        scored = scored_targets(data, max_tokens)
        assert scored <= max_tokens
        batches = list(validation_batches(data, context=CONTEXT, sequences=64, max_tokens=max_tokens))
        held = int(sum(batch["target_bytes"].sum() for batch in batches))
        if max_tokens >= len(data.validation_tokens) - 1:
            assert held == sum(len(text.encode()) for text in texts)
        elif any(0.9 * max_tokens <= start <= max_tokens for start in starts[1:]):
            assert data.validation_tokens[scored] == data.eot_id
            whole = sum(start <= scored for start in starts[1:])
            assert held == sum(len(text.encode()) for text in texts[:whole])
        else:
            assert scored == max_tokens


def test_a_budget_beyond_the_corpus_names_the_epochs(data, capsys):
    print_once.cache_clear()
    held = len(data.train_tokens) - 1
    refuse_repeat(data, held, False)
    refuse_repeat(data, held, True)
    assert not capsys.readouterr().err
    refuse_repeat(data, 10 * held, True)
    said = f"{10 * held:,} tokens are 10.00 epochs of the corpus' {held:,} training tokens, each in another order."
    assert said in capsys.readouterr().err
    with pytest.raises(UserError, match=r"2\.50 epochs: set data\.allow_repeat=true"):
        refuse_repeat(data, held * 5 // 2, False)


def test_a_context_longer_than_the_corpus_is_refused(data):
    with pytest.raises(UserError, match="fewer than one window of context=1000000"):
        _batch(data, 0, context=1_000_000)
