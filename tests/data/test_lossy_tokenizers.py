"""Tokenizers that lose text are taken, say what they lose, and give no text a size in bytes."""

import itertools
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from dma_lab.data import packing
from dma_lab.data.build import prepare_data
from dma_lab.data.lossy import lost_by
from dma_lab.data.tokenizer import load_tokenizer
from dma_lab.messages import UserError
from tests import lossy

SPACES = {"line ends", "runs of spaces", "spaces at a text's ends"}
UNKNOWN = "characters that it has no token for"


@pytest.fixture
def given(tmp_path):
    """``given(tokenizer)``: the path of its tokenizer.json."""

    def save(tokenizer: Tokenizer) -> str:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return str(tmp_path / "tokenizer.json")

    return save


@pytest.mark.parametrize(
    ("tokenizer", "lost"),
    [
        (
            lossy.bert(),
            SPACES
            | {"capital letters", "accents", "spaces around punctuation", "control characters"}
            | {"forms of a character (ﬁ and fi)", f"{UNKNOWN} (read as [UNK])"},
        ),
        (
            lossy.bert(lowercase=False),
            SPACES | {"spaces around punctuation", "control characters", f"{UNKNOWN} (read as [UNK])"},
        ),
        (lossy.t5(), SPACES | {"forms of a character (ﬁ and fi)", f"{UNKNOWN} (read as <unk>)"}),
        (lossy.bytes_without("ð"), {f"{UNKNOWN} (left out)"}),  # the first byte of 🦉
        (lossy.bytes_without("ó"), {"some text"}),  # which begins characters that nobody has asked it for
    ],
    ids=("BERT", "cased BERT", "T5", "no owl", "no byte"),
)
def test_what_is_lost_is_said(given, tokenizer, lost, capsys):
    ours = load_tokenizer(given(tokenizer))
    assert set(re.split(r", (?![^(]*\))", lost_by(ours) or "")) == lost
    assert f"does not give text back: it loses {lost_by(ours)}. What is lost costs a model nothing" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("tokenizer", "eot", "unknown"), [(lossy.bert(), 3, 1), (lossy.t5(), 1, 2)], ids=("BERT", "T5")
)
def test_documents_are_read_as_the_tokenizer_reads_them(
    given, settings_of, write, tmp_path, monkeypatch, capsys, tokenizer, eot, unknown
):
    # In pieces of a line or so, whose tokens are those of the whole, and among them text that T5's takes for its end.
    monkeypatch.setattr(packing, "PIECE_CHARACTERS", 100)
    texts = [f"The Cat,  naïve No. {n}\n\tsat on the MAT {{🦉}} </s> [SEP] café.\n" * 3 for n in range(300)]
    path = write(tmp_path / "a.jsonl", texts)
    data = prepare_data(settings_of(path, tokenizer=given(tokenizer)), 1)
    theirs = {}
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        theirs[text] = [unknown if index == eot else index for index in ids]
        assert unknown in ids
    held = []
    for stream in ("train", "validation"):
        tokens, starts = getattr(data, f"{stream}_tokens"), getattr(data, f"{stream}_document_starts")
        assert np.flatnonzero(tokens == eot).tolist() == starts.tolist()
        held += [tokens[a + 1 : b].tolist() for a, b in itertools.pairwise([*starts.tolist(), len(tokens)])]
    assert sorted(held) == sorted(theirs.values())
    assert data.eot_id == eot
    assert tokenizer.encode("the cat").ids[-1] == eot
    assert data.load_tokenizer().encode("the cat").ids == tokenizer.encode("the cat", add_special_tokens=False).ids
    assert not data.token_bytes.any()
    assert data.tokenizer_loses == lost_by(data.load_tokenizer())
    train = data.train_tokens[data.train_tokens != eot]
    assert data.meta["unknown_share"] == pytest.approx((train == unknown).mean())
    assert f"{(train == unknown).mean():.3%} of the training tokens are unknown ones" in capsys.readouterr().err
    assert sum(data.meta[stream]["text_bytes"] for stream in ("train", "validation")) == sum(
        len(text.encode()) for text in texts
    )


def test_what_has_no_unknown_token_leaves_text_out_and_gets_an_eot(given, settings_of, write, tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [f"the 🦉 sat {n}" for n in range(99)])
    data = prepare_data(settings_of(path, tokenizer=given(lossy.gpt())), 1)
    assert f"{UNKNOWN} (left out)" in data.tokenizer_loses
    assert data.meta["unknown_share"] == 0
    tokenizer = data.load_tokenizer()
    assert data.eot_id == tokenizer.token_to_id("<|endoftext|>") == tokenizer.get_vocab_size() - 1
    first = data.train_tokens[: data.train_document_starts[1]].tolist()
    assert re.fullmatch(r"the sat \d+", tokenizer.decode(first[1:]).strip())
    assert "has no EOT that is known; <|endoftext|> is added" in capsys.readouterr().err


def test_what_a_tokenizer_hardly_reads_or_cannot_is_refused(given, settings_of, write, tmp_path):
    path = write(tmp_path / "a.jsonl", [f"東京 日本語 {n}" for n in range(99)])
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match=r"data\.tokenizer has no token for 100% of what it cuts data=local into"):
        prepare_data(settings_of(path, tokenizer=given(words)), 1)
    with pytest.raises(UserError, match=r"data\.tokenizer cannot encode the text \(.*unk.*\): take another one"):
        prepare_data(settings_of(path, tokenizer=given(lossy.t5(unknown=False))), 1)
    empty = write(tmp_path / "b.jsonl", ["東" * (n + 1) for n in range(99)])
    with pytest.raises(UserError, match=r"data\.tokenizer has no token for 100% of what"):
        prepare_data(settings_of(empty, tokenizer=given(lossy.gpt())), 1)


def test_tokenizers_that_lose_nothing_have_nothing_to_say(data):
    assert data.tokenizer_loses is None
    assert lost_by(data.load_tokenizer()) is None
    assert "unknown_share" not in data.meta
