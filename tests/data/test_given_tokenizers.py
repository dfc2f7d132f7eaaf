"""Tokenizers that others made and that keep text: every text comes back from them to the byte."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dma_lab.data.build import prepare_data
from dma_lab.data.lossy import lost_by
from dma_lab.data.tokenizer import load_tokenizer
from dma_lab.messages import UserError


def test_byte_fallback_that_lacks_a_byte_gives_no_text_back(tmp_path):
    lacking = json.loads(_with_fallback("Llama").to_str())
    assert lost_by(load_tokenizer(_saved(lacking, tmp_path))) is None
    del lacking["model"]["vocab"]["<0x81>"]
    assert lost_by(load_tokenizer(_saved(lacking, tmp_path))) is not None


def _saved(described, folder):
    (folder / "saved.json").write_text(json.dumps(described))
    return str(folder / "saved.json")


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


def test_spaces_beside_an_added_token_are_text(tmp_path, pair, settings_of, write, documents, decode_stream, capsys):
    added = load_tokenizer(str(pair))
    added.add_tokens([AddedToken("zebra", lstrip=True, rstrip=True)])
    added.save(str(tmp_path / "tokenizer.json"))
    texts = [*documents, "a   zebra crosses"]
    data = prepare_data(settings_of(write(tmp_path / "a.jsonl", texts), tokenizer=str(tmp_path)), 1)
    assert sorted(decode_stream(data, "train") + decode_stream(data, "validation")) == sorted(texts)
    assert "(spaces beside zebra); this is left out" in capsys.readouterr().err


def test_text_that_a_tokenizer_takes_for_something_else_is_named(tmp_path, pair, settings_of, write, documents):
    removes = load_tokenizer(str(pair))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    removes.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("§", "removed"), byte_level])
    removes.save(str(tmp_path / "tokenizer.json"))
    path = write(tmp_path / "a.jsonl", [*documents, "a § zebra crosses"])
    with pytest.raises(UserError, match=r"does not keep text as it is: of 'a § zebra crosses' its tokens make 'a  z"):
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
