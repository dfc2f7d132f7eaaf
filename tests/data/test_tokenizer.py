import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import regex
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

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


@pytest.fixture
def pair(tmp_path, make_documents):
    """A small encoder.json and vocab.bpe, written as GPT-2's are."""
    trained = json.loads(train_tokenizer(iter(make_documents(300)), 400).to_str())["model"]
    vocabulary = {token: i for i, token in enumerate(t for t in trained["vocab"] if t != "<|endoftext|>")}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in trained["merges"]]
    folder = tmp_path / "pair"
    folder.mkdir()
    (folder / "encoder.json").write_text(json.dumps(vocabulary))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return folder


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


def test_tokenizers_that_would_not_give_the_text_back_are_refused(tmp_path, pair):
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    lacking = json.loads(_with_fallback("Llama").to_str())
    del lacking["model"]["vocab"]["<0x81>"]
    (tmp_path / "lacking.json").write_text(json.dumps(lacking))
    for name in ("words.json", "lacking.json"):
        with pytest.raises(UserError, match=re.escape(f"{name} does not give text back byte by byte")):
            load_tokenizer(str(tmp_path / name))


_WORDS = ("hello", "world", "the", "cat", "is", "don't", "naïve", "Œuvre")


def _with_fallback(kind: str) -> Tokenizer:
    """A small tokenizer as Llama 2's, Llama 1's (which normalizes) or Gemma's are made, its BOS added to each text."""
    specials = ["<unk>", "<s>", "</s>"] if kind != "Gemma" else ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokens = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for word in _WORDS for letter in word} | {"▁", "\n"})
    tokens += letters
    merges = [("▁", "▁")]
    for word in _WORDS:
        held = "▁"
        for letter in word:
            merges.append((held, letter))
            held += letter
    merges = list(dict.fromkeys(merges))
    tokens += [a + b for a, b in merges]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    unknown = "<unk>"
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(specials)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "Llama":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        back.append(decoders.Strip(" ", 1, 0))
    elif kind == "old Llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        back.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("<table>", normalized=False)])
    tokenizer.decoder = decoders.Sequence(back)
    bos = "<bos>" if kind == "Gemma" else "<s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return tokenizer


@pytest.mark.parametrize(("kind", "eot"), [("Llama", "</s>"), ("old Llama", "</s>"), ("Gemma", "<eos>")])
def test_tokenizers_with_byte_fallback_give_every_text_back_to_the_byte(
    kind, eot, settings_of, write, tmp_path, make_documents, decode_stream, capsys
):
    theirs = _with_fallback(kind)
    theirs.save(str(tmp_path / "tokenizer.json"))
    texts = [text for text in make_documents(200, seed=3) if text]
    texts += [f" {kind} ▁ mark{n}▁▁ " + "</s> <eos> <table> <0x41>  x" * 3 + "\n\n" for n in range(9)]
    made = prepare_data(settings_of(write(tmp_path / "a.jsonl", texts), tokenizer=str(tmp_path)), 1)
    train, validation = decode_stream(made, "train"), decode_stream(made, "validation")
    assert sorted(train + validation) == sorted(texts), (
        "decoded by the tokenizers library, which knows no table of ours"
    )
    for stream, held in (("train", train), ("validation", validation)):
        weights = made.token_bytes[getattr(made, f"{stream}_tokens")]
        starts = getattr(made, f"{stream}_document_starts")
        assert np.add.reduceat(weights, starts).tolist() == [len(text.encode()) for text in held]
    assert made.eot_id == theirs.token_to_id(eot)
    told = capsys.readouterr().err
    assert f"documents begin and end with its {eot}" in told
    assert ("a space in front" in told or "Prepend" in told) is (kind != "Gemma")
    # Within a text, and behind its first word, the tokens are those that their tokenizer gives.
    ours = made.load_tokenizer()
    plain = "hello world, the  cat is\nnaïve 東 don't"
    bare = theirs.encode(plain, add_special_tokens=False).ids
    assert ours.encode(f" {plain}" if kind != "Gemma" else plain).ids == bare
    assert ours.decode(ours.encode(plain).ids) == plain


def test_what_comes_in_front_of_a_text_is_left_out(tmp_path, pair, capsys):
    prefixed = load_tokenizer(str(pair))
    bare = prefixed.encode("hello world").ids
    prefixed.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    prefixed.post_processor = processors.TemplateProcessing(single="<b> $A", special_tokens=[("<b>", 0)])
    prefixed.save(str(tmp_path / "prefixed.json"))
    ours = load_tokenizer(str(tmp_path / "prefixed.json"))
    assert ours.encode("hello world").ids == bare
    assert "a space in front" in capsys.readouterr().err


def test_a_tokenizer_that_draws_lots_draws_none(tmp_path, pair):
    drawn = json.loads(load_tokenizer(str(pair)).to_str())
    drawn["model"]["dropout"] = 0.5
    (tmp_path / "drawn.json").write_text(json.dumps(drawn))
    text = "don't we'll 1984 naïve the of and " * 20
    ours = load_tokenizer(str(tmp_path / "drawn.json"))
    assert {tuple(ours.encode(text).ids) for _ in range(5)} == {tuple(load_tokenizer(str(pair)).encode(text).ids)}


def test_text_that_a_tokenizer_takes_for_something_else_is_named(tmp_path, pair, settings_of, write, documents):
    added = load_tokenizer(str(pair))
    added.add_tokens([AddedToken("zebra", lstrip=True)])
    added.save(str(tmp_path / "tokenizer.json"))
    path = write(tmp_path / "a.jsonl", [*documents, "a   zebra crosses"])
    with pytest.raises(UserError, match=r"does not keep text as it is: of 'a   zebra crosses' its tokens make 'azebra"):
        prepare_data(settings_of(path, tokenizer=str(tmp_path)), 1)


def test_sentencepieces_own_file_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(UserError, match=r"tokenizer\.model is sentencepiece's file: give the tokenizer\.json"):
        load_tokenizer(str(tmp_path / "tokenizer.model"))


_CHANGES = {
    "NFC": normalizers.NFC(),
    "NFKC": normalizers.NFKC(),
    "Lowercase": normalizers.Lowercase(),
    "Strip": normalizers.Strip(),
    "StripAccents": normalizers.StripAccents(),
    "Prepend": normalizers.Prepend("x"),
    "Sequence": normalizers.Sequence([normalizers.NFD(), normalizers.Replace(" ", "__")]),
}


@pytest.mark.parametrize("kind", _CHANGES)
def test_the_texts_own_bytes_are_counted_whatever_a_tokenizer_would_make_of_it(
    pair, kind, settings_of, write, tmp_path, decode_stream, capsys
):
    texts = [f"  Tie\u0302´ng VIỆT số {n}: một hai, Ữ ỡ ằ…\n\tvà MỘT ﬁ Ⅷ A\u030a " for n in range(60)]
    tokenizer = load_tokenizer(str(pair))
    tokenizer.normalizer = _CHANGES[kind]
    name = tmp_path / f"{kind}.json"
    tokenizer.save(str(name))
    data = prepare_data(settings_of(write(tmp_path / "a.jsonl", texts), tokenizer=str(name)), 1)
    train, validation = decode_stream(data, "train"), decode_stream(data, "validation")
    assert sorted(train + validation) == sorted(texts), "to the byte, no form of the same letters but the text's own"
    sizes = {"train": train, "validation": validation}
    for stream, held in sizes.items():
        weights = data.token_bytes[getattr(data, f"{stream}_tokens")]
        assert weights.sum() == data.meta[stream]["text_bytes"] == sum(len(text.encode()) for text in held)
    steps = "NFD, Replace" if kind == "Sequence" else kind
    assert f"{kind}.json would change text before it cuts it ({steps}); this is left out" in capsys.readouterr().err


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer that can be read"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds neither tokenizer\.json nor encoder\.json and vocab\.bpe"):
        load_tokenizer(str(tmp_path / "empty"))
