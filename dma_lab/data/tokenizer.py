"""Tokenizers: trained here, from a file, from GPT-2's pair, or from the hub.

Of those that can give text back to the byte (``dma_lab.data.spelling``) what they would do to the text besides is left
out: NFC, lower case, a space in front, a BOS. Others (BERT's, T5's) are taken as they are, but for a BOS and the like;
what they lose is said.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dma_lab.data.digests import text_digest
from dma_lab.data.finding import user_path
from dma_lab.data.hub import hub_tokenizer_file
from dma_lab.data.lossy import lost_by
from dma_lab.data.spelling import BYTE_ALPHABET, EOT, eot_id_of, eot_of, has_eot, keeps_text
from dma_lab.data.tokenizer_json import leave_out_additions, leave_out_changes
from dma_lab.messages import UserError, warn_once

TRAINING_BYTES = 32 << 20
"""A tokenizer is trained on the first so many bytes of training text: merges hardly move beyond."""

_SMALLEST_VOCABULARY = len(BYTE_ALPHABET) + 1
_LARGEST_VOCABULARY = 2**32


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
        vocab_size=vocab_size, special_tokens=[EOT], initial_alphabet=BYTE_ALPHABET, show_progress=False
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
        UserError: nothing of that name can be had, or it cannot be read.
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


def _prepared(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """``tokenizer`` as it encodes text as nothing but text, its tokens the text's bytes if they can be; with an EOT."""
    given = tokenizer.to_str()
    described = json.loads(given)
    left_out = leave_out_changes(described)
    prepared = _with_eot(described)
    if keeps_text(prepared):
        if left_out:
            warn_once(
                f"data.tokenizer={name} would change text before it cuts it ({', '.join(left_out)}); this is left out, "
                "so that its tokens stand for the text's own bytes and bits per byte are those of the text."
            )
    else:
        described = json.loads(given)
        leave_out_additions(described)
        prepared = _with_eot(described)
        warn_once(
            f"data.tokenizer={name} does not give text back: it loses {lost_by(prepared)}. What is lost costs a model "
            "nothing, so there are no bits per byte, and losses compare only with those of the same tokenizer."
        )
    if eot_of(prepared) != EOT:
        warn_once(f"data.tokenizer={name}: documents begin and end with its {eot_of(prepared)}.")
    elif EOT not in tokenizer.get_vocab(with_added_tokens=True):
        warn_once(f"data.tokenizer={name} has no EOT that is known; {EOT} is added, id {eot_id_of(prepared)}.")
    return prepared


def _with_eot(described: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a tokenizer.json, which takes text that spells special tokens for text and cuts nothing off."""
    tokenizer = Tokenizer.from_str(json.dumps(described))
    if not has_eot(tokenizer):
        tokenizer.add_special_tokens([EOT])
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
