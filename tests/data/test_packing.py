import random

import numpy as np
import pytest

from dma_lab.data import packing
from dma_lab.data.build import prepare_data
from dma_lab.data.digests import share_below, text_digest


def test_the_packer_loses_and_invents_no_token(data, documents, decode_stream):
    train, validation = decode_stream(data, "train"), decode_stream(data, "validation")
    validates = [share_below(text_digest(text.encode()), 0.3) for text in documents]
    assert train == [text for text, held_out in zip(documents, validates, strict=True) if not held_out]
    assert validation == [text for text, held_out in zip(documents, validates, strict=True) if held_out]
    assert 40 <= len(validation) <= 80


@pytest.mark.parametrize("stream", ["train", "validation"])
def test_token_bytes_add_up_to_the_bytes_of_every_document(data, decode_stream, stream):
    weights = data.token_bytes[getattr(data, f"{stream}_tokens")]
    starts = getattr(data, f"{stream}_document_starts")
    assert np.add.reduceat(weights, starts).tolist() == [len(t.encode()) for t in decode_stream(data, stream)]


def test_unigram_entropy_is_that_of_the_training_stream(data):
    _, counts = np.unique(data.train_tokens, return_counts=True)
    codes = -np.log(counts / counts.sum())
    assert data.unigram_entropy == pytest.approx(float(np.average(codes, weights=counts)), abs=1e-12)


def test_every_format_gives_the_same_tokens(settings_of, write, tmp_path, make_documents):
    texts = [text for text in make_documents(120, seed=1) if text]
    made = {}
    for name in ("a.jsonl", "a.jsonl.xz", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt"):
        made[name] = prepare_data(settings_of(write(tmp_path / name, texts)), 1)
    assert len({data.fingerprint for data in made.values()}) == 1
    assert len({data.folder for data in made.values()}) == len(made), "a file in another format is read anew"
    assert np.array_equal(made["a.jsonl"].train_tokens, made["a.txt"].train_tokens)


def test_a_document_longer_than_a_batch_is_packed_whole(settings_of, write, tmp_path, monkeypatch, decode_stream):
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(packing, "PIECE_CHARACTERS", 300)
    generator = random.Random(0)
    long = " ".join(generator.choices(["étage", "x\ny", "🦉" * 40, "z" * 700], k=200))
    texts = ["short", long, "", "after the empty one, which has no tokens and no EOT"]
    validation = write(tmp_path / "v.jsonl", ["held out"])
    made = prepare_data(settings_of(write(tmp_path / "a.jsonl", texts), validation_path=str(validation)), 1)
    assert decode_stream(made, "train") == [texts[0], long, texts[3]]
    assert decode_stream(made, "validation") == ["held out"]


def test_pieces_end_where_words_end_so_that_their_tokens_are_the_texts(data):
    generator = random.Random(1)
    words = ["line\n", "end.\n\n", " word", "  two", "\t", "x1", "don't ", "\r\n", "naïve"]
    text = "".join(generator.choices(words, k=20000))
    cut = list(packing.pieces([text], 2000))
    assert "".join(cut) == text
    assert len(cut) > 40
    assert max(map(len, cut)) <= 2000
    tokenizer = data.load_tokenizer()
    parts = [token for piece in cut for token in tokenizer.encode(piece).ids]
    assert parts == tokenizer.encode(text).ids
    # However the text arrives, and also where nothing but the limit can cut it.
    chunks = [text[i : i + 777] for i in range(0, len(text), 777)]
    assert list(packing.pieces(chunks, 2000)) == cut
    assert [len(piece) for piece in packing.pieces(["z" * 5000], 2000)] == [2000, 2000, 1000]


def test_max_tokens_ends_the_reading_and_keeps_what_came_before(settings_of, write, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 500)
    texts = [f"document {n}: " + "some more words " * 20 for n in range(400)]
    path = write(tmp_path / "a.jsonl", texts)
    whole = prepare_data(settings_of(path), 1)
    part = prepare_data(settings_of(path, max_tokens=5000), 1)
    assert 5000 <= len(part.train_tokens) < 5000 + 1000
    assert np.array_equal(part.train_tokens, whole.train_tokens[: len(part.train_tokens)])
    held = len(part.validation_tokens)
    assert np.array_equal(part.validation_tokens, whole.validation_tokens[:held])


def test_reading_goes_on_after_max_tokens_until_enough_documents_validate(settings_of, write, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 500)
    texts = [f"document {n}: " + "some more words " * 30 for n in range(1500)]
    path = write(tmp_path / "a.jsonl", texts)
    part = prepare_data(settings_of(path, max_tokens=2000, validation_fraction=0.1), 1)
    assert 2000 <= len(part.train_tokens) < 2000 + 1000
    assert 48 <= len(part.validation_document_starts) < 60, "of some 150 that are there"
    beyond = part.meta["counts"]["documents beyond data.max_tokens left out"]
    read = part.meta["taken"][".jsonl"]["documents"]
    assert read == part.meta["train"]["documents"] + part.meta["validation"]["documents"] + beyond + 1
    assert read < len(texts)
