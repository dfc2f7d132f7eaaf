"""GPT-2's own encoding by its definition, and tokenizers trained on what does not validate."""

import itertools
import json
from pathlib import Path

import pytest
import regex

from dma_lab.data.build import prepare_data
from dma_lab.data.digests import share_below, text_digest
from dma_lab.data.tokenizer import load_tokenizer, train_tokenizer
from dma_lab.messages import UserError

_WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]


_REST = [b for b in range(256) if b not in _PRINTABLE]


_SPELLING = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(_REST)}


def _gpt2_encode(text, encoder, merges):
    """GPT-2's definition: split, spell bytes as characters, apply the earliest learnt merge while one is left."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ids = []
    for word in _WORD.findall(text):
        parts = [_SPELLING[b] for b in word.encode()]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        ids += [encoder[part] for part in parts]
    return ids


def test_a_gpt2_pair_encodes_by_gpt2s_definition(pair, make_documents):
    tokenizer = load_tokenizer(str(pair))
    encoder = json.loads((pair / "encoder.json").read_text())
    merges = [tuple(line.split(" ")) for line in (pair / "vocab.bpe").read_text().splitlines()[1:]]
    assert len(encoder) == 400
    for text in make_documents(100, seed=5):
        assert tokenizer.encode(text).ids == _gpt2_encode(text, encoder, merges)


def test_gpt2s_own_pair_gives_its_published_tokens():
    folder = Path(__file__).parents[3] / "shared/data/tokenizers/gpt2"
    if not folder.exists():
        pytest.skip("GPT-2's own pair is not at hand")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.encode("Hello world").ids == [15496, 995]
    assert tokenizer.token_to_id("<|endoftext|>") == 50256


@pytest.mark.parametrize("form", ["pair", "file", "folder"])
def test_a_given_tokenizer_brings_its_vocabulary_and_its_eot(
    pair, form, settings_of, write, tmp_path, documents, decode_stream
):
    tokenizer = load_tokenizer(str(pair))
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    name = {"pair": pair, "file": folder / "tokenizer.json", "folder": folder}[form]
    data = prepare_data(settings_of(write(tmp_path / "a.jsonl", documents), tokenizer=str(name)), 1)
    assert (data.vocab_size, data.eot_id) == (400, 399)
    assert sorted(decode_stream(data, "train") + decode_stream(data, "validation")) == sorted(documents)


def test_a_tokenizer_without_the_eot_is_given_one(tmp_path, pair):
    stored = json.loads(load_tokenizer(str(pair)).to_str())
    del stored["model"]["vocab"]["<|endoftext|>"]
    stored["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert tokenizer.token_to_id("<|endoftext|>") == 399
    assert 399 not in tokenizer.encode("a <|endoftext|> b").ids


def test_the_tokenizer_is_trained_on_no_document_that_validates(settings_of, write, tmp_path, documents):
    marked = ["zebraquagga " * 50 + str(n) for n in range(200)]
    held_out = [text for text in marked if share_below(text_digest(text.encode()), 0.3)]
    trained_on = [text for text in marked if text not in held_out]
    for texts, learnt in ((held_out, False), (trained_on, True)):
        data = prepare_data(settings_of(write(tmp_path / f"{learnt}.jsonl", documents + texts)), 1)
        assert any("zebra" in token for token in data.load_tokenizer().get_vocab()) is learnt


def test_training_is_the_same_each_time(make_documents):
    texts = make_documents(300)
    assert len({train_tokenizer(iter(texts), 400).to_str() for _ in range(3)}) == 1


@pytest.mark.parametrize(
    ("vocab_size", "complaint"),
    [
        (256, "at least 257 tokens"),
        (None, "at least 257 tokens"),
        (2**32 + 1, "token ids are uint32"),
        (50_000, r"more than the training text has tokens for: it gives \d+; set model.vocab_size=\d+ or less"),
    ],
)
def test_a_vocabulary_that_cannot_be_trained_is_refused(settings_of, write, tmp_path, documents, vocab_size, complaint):
    settings = settings_of(write(tmp_path / "a.jsonl", documents), vocab_size=vocab_size)
    with pytest.raises(UserError, match=complaint):
        prepare_data(settings, 1)
