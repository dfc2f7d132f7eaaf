"""Byte-level tokenizers: trained here, from a file, from GPT-2's pair, or from the hub; and what their tokens weigh.

Byte-level means that every token stands for a fixed string of bytes, so that decoding gives the text back exactly and
bits per byte can be counted. Tokenizers of other kinds are refused; one that first changes the text (to NFC, to lower
case) is used without that step.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dma_lab.data.digests import text_digest
from dma_lab.data.finding import user_path
from dma_lab.data.hub import hub_tokenizer_file
from dma_lab.messages import UserError, warn_once

EOT = "<|endoftext|>"
TRAINING_BYTES = 32 << 20
"""A tokenizer is trained on the first so many bytes of training text: merges hardly move beyond."""

_BYTE_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
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
        UserError: nothing of that name can be had, it cannot be read, or it is not byte-level.
    """
    path = user_path(name, "data.tokenizer")
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
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOT,
        "eos_token": EOT,
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


def eot_id_of(tokenizer: Tokenizer) -> int:
    """The id of the EOT (end-of-text token), which every tokenizer of this file has."""
    eot_id = tokenizer.token_to_id(EOT)
    assert eot_id is not None
    return eot_id


def bytes_of_tokens(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """(vocabulary_size,): bytes of UTF-8 text each token stands for; 0 for the EOT and for unused ids."""
    counts = np.zeros(vocabulary_size(tokenizer), dtype="<i4")
    added = tokenizer.get_added_tokens_decoder()
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        # A byte-level vocabulary spells each byte as one character; added tokens are spelled as they are.
        counts[index] = len(token.encode("utf-8")) if index in added else len(token)
    counts[eot_id_of(tokenizer)] = 0
    return counts


def _prepared(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """Make ``tokenizer`` encode text as nothing but text, and make sure that it is byte-level."""
    tokenizer.add_special_tokens([EOT])
    tokenizer.encode_special_tokens = True  # text that spells <|endoftext|> is text, no EOT
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.normalizer is not None:
        kind = type(tokenizer.normalizer).__name__
        warn_once(
            f"data.tokenizer={name} would change text before it cuts it ({kind}); this is left out, so that its tokens "
            "stand for the text's own bytes and bits per byte are those of the text."
        )
        tokenizer.normalizer = None
    encoded = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    foreign = set("".join(set(tokenizer.get_vocab(with_added_tokens=False)) - {EOT})) - set(_BYTE_ALPHABET)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    foreign -= set("".join(added))
    if foreign or tokenizer.decode(encoded, skip_special_tokens=False) != _PROBE:
        raise UserError(
            f"data.tokenizer={name} is not a byte-level tokenizer: decoding does not give the text back byte by byte, "
            "so bits per byte would be wrong. Take a byte-level BPE (GPT-2, SmolLM, Llama 3) or data.tokenizer=bpe."
        )
    return tokenizer
