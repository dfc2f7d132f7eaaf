"""Tokenizers: trained here, from a file, from GPT-2's pair, or from the hub; and what their tokens weigh.

Two kinds give text back to the byte, so that bits per byte can be counted: every token stands for a fixed string of
bytes. Byte-level ones spell each byte as a character (GPT-2, Llama 3, Qwen); those with byte fallback spell text as it
is, a space as a mark, and bytes that no token holds as ``<0xNN>`` (Llama 2, Mistral, Gemma). Other kinds are refused.
What a tokenizer would do to the text besides (NFC, lower case, a space in front, a BOS) is left out.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dma_lab.data.digests import text_digest
from dma_lab.data.finding import user_path
from dma_lab.data.hub import hub_tokenizer_file
from dma_lab.data.tokenizer_json import SPACE_MARK, leave_out_changes
from dma_lab.messages import UserError, warn_once

EOT = "<|endoftext|>"
_EOTS = (EOT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>", "<EOS>", "[EOS]")
"""Of GPT-2 and many, Llama 3, DeepSeek, Llama 2 and Mistral, Gemma, …: the first that a tokenizer has is its EOT. One
that has none is given the first."""
TRAINING_BYTES = 32 << 20
"""A tokenizer is trained on the first so many bytes of training text: merges hardly move beyond."""

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_BYTE_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
# GPT-2's spelling: printable bytes are the character of their number, the others follow from 256 on.
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _PLAIN} | {
    chr(256 + place): byte for place, byte in enumerate(byte for byte in range(256) if byte not in _PLAIN)
}
_SMALLEST_VOCABULARY = len(_BYTE_ALPHABET) + 1
_LARGEST_VOCABULARY = 2**32
_PROBE = "Ein Satz,  x,\tzwei\r\n\n don't — naïve “日本語” 🦉\x00 1234567 end \n"


def check_trainable(vocab_size: int | None) -> int:
    """The vocabulary to train. Raises UserError if a byte-level BPE of that size cannot be."""
    if vocab_size is None or not _SMALLEST_VOCABULARY <= vocab_size <= _LARGEST_VOCABULARY:
        raise UserError(
            f"data.vocab_size={vocab_size} cannot be trained: a byte-level BPE has at least {_SMALLEST_VOCABULARY} "
            f"tokens (256 bytes and the EOT) and at most {_LARGEST_VOCABULARY:,} (token ids are uint32)."
        )
    return vocab_size


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's splitting rule on ``texts``; the same texts give the same tokenizer.

    Raises:
        UserError: the text is too small or too uniform for that many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT], initial_alphabet=_BYTE_ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise UserError(
            f"data.vocab_size={vocab_size} is more than the training text has tokens for: it gives {found}; set "
            f"model.vocab_size={found} or less, or take a larger corpus."
        )
    return _prepared(tokenizer, "bpe")


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that ``data.tokenizer=name`` means when it is not ``bpe``, with the EOT, if it had none.

    Raises:
        UserError: nothing of that name can be had, it cannot be read, or its tokens are not a text's bytes.
    """
    path = user_path(name, "data.tokenizer")
    if path.is_file() and path.suffix == ".model":
        raise UserError(f"data.tokenizer={name} is sentencepiece's file: give the tokenizer.json that goes with it.")
    pair = path / "encoder.json", path / "vocab.bpe"
    try:
        if path.is_dir() and all(file.is_file() for file in pair):
            tokenizer = Tokenizer(models.BPE.from_file(*map(str, pair)))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
        elif path.is_dir():
            if not (path / "tokenizer.json").is_file():
                raise UserError(f"data.tokenizer={name} holds neither tokenizer.json nor encoder.json and vocab.bpe.")
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        else:
            tokenizer = Tokenizer.from_file(str(path if path.exists() else hub_tokenizer_file(name)))
    except UserError:
        raise
    except Exception as error:  # tokenizers raises plain Exception for every fault of a file
        raise UserError(f"data.tokenizer={name} is not a tokenizer that can be read: {error}.") from error
    return _prepared(tokenizer, name)


def save_for_transformers(tokenizer_file: Path, folder: Path, max_tokens: int) -> None:
    """Write to ``folder`` what transformers' AutoTokenizer reads: the tokenizer.json and its settings."""
    eot = eot_of(Tokenizer.from_file(str(tokenizer_file)))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eot,
        "eos_token": eot,
        "split_special_tokens": True,  # text that spells <|endoftext|> is text, as in training
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
    }
    shutil.copyfile(tokenizer_file, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Names what the tokenizer does."""
    return text_digest(tokenizer.to_str().encode())


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest token id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def eot_of(tokenizer: Tokenizer) -> str:
    """The EOT (end-of-text token), which every tokenizer of this file has: the first of ``_EOTS`` that is special."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return next(name for name in _EOTS if name in special)


def eot_id_of(tokenizer: Tokenizer) -> int:
    """The id of ``eot_of``."""
    eot_id = tokenizer.token_to_id(eot_of(tokenizer))
    assert eot_id is not None
    return eot_id


def spelled_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """(vocabulary_size,): the bytes of UTF-8 text that each token stands for; none for the EOT and for unused ids."""
    spelled = [b""] * vocabulary_size(tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    marked = has_space_mark(tokenizer)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if marked is not None:
            byte = _FALLBACK.fullmatch(token)
            text = token.replace(SPACE_MARK, " ") if marked else token
            spelled[index] = bytes([int(byte[1], 16)]) if byte else text.encode("utf-8")
        elif index in added:  # spelled as they are
            spelled[index] = token.encode("utf-8")
        else:
            spelled[index] = bytes(_BYTES[character] for character in token)
    spelled[eot_id_of(tokenizer)] = b""
    return spelled


def has_space_mark(tokenizer: Tokenizer) -> bool | None:
    """Of a tokenizer with byte fallback, whether it spells a space as ``SPACE_MARK``; None of a byte-level one."""
    if not getattr(tokenizer.model, "byte_fallback", False):
        return None
    return tokenizer.normalizer is not None or isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Metaspace)


def space_mark_ids(tokenizer: Tokenizer) -> list[int] | None:
    """How text that holds the mark itself is spelled, byte by byte, where a tokenizer takes the mark for a space."""
    if not has_space_mark(tokenizer):
        return None
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[f"<0x{byte:02X}>"] for byte in SPACE_MARK.encode("utf-8")]


def _prepared(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """Make ``tokenizer`` encode text as nothing but text, and make sure that its tokens are the text's bytes."""
    described = json.loads(tokenizer.to_str())
    left_out = leave_out_changes(described)
    if left_out:
        warn_once(
            f"data.tokenizer={name} would change text before it cuts it ({', '.join(left_out)}); this is left out, so "
            "that its tokens stand for the text's own bytes and bits per byte are those of the text."
        )
    try:
        tokenizer = Tokenizer.from_str(json.dumps(described))
        if not any(token["special"] and token["content"] in _EOTS for token in described["added_tokens"]):
            tokenizer.add_special_tokens([EOT])
        tokenizer.encode_special_tokens = True  # text that spells <|endoftext|> is text, no EOT
        tokenizer.no_truncation()
        tokenizer.no_padding()
        spelled = spelled_tokens(tokenizer)
        ids = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    except (KeyError, TypeError, ValueError) as error:
        raise _not_of_bytes(name) from error
    # Every byte must have its token; what the probe does not hold, the packer would meet in the middle of a corpus.
    lacking = {f"<0x{byte:02X}>" for byte in range(256)} - set(tokenizer.get_vocab())
    if has_space_mark(tokenizer) is not None and lacking:
        raise _not_of_bytes(name)
    if b"".join(spelled[index] for index in ids) != _PROBE.encode("utf-8"):
        raise _not_of_bytes(name)
    if eot_of(tokenizer) != EOT:
        warn_once(f"data.tokenizer={name}: documents begin and end with its {eot_of(tokenizer)}.")
    elif EOT not in described["model"]["vocab"] and EOT not in {
        token["content"] for token in described["added_tokens"]
    }:
        warn_once(f"data.tokenizer={name} has no EOT that is known; {EOT} is added, id {eot_id_of(tokenizer)}.")
    return tokenizer


def _not_of_bytes(name: str) -> UserError:
    return UserError(
        f"data.tokenizer={name} does not give text back byte by byte, so bits per byte would be wrong: take a "
        "byte-level one (GPT-2, SmolLM, Llama 3), one with byte fallback (Llama 2, Gemma) or data.tokenizer=bpe."
    )
