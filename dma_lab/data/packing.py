"""Documents to token streams: cut, encode on all cores, check that no byte was lost or invented, append to files."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from dma_lab.data.lossy import lost_by, unknown_id_of
from dma_lab.data.readers import Document
from dma_lab.data.spelling import eot_id_of, space_mark_ids, spelled_tokens, vocabulary_size
from dma_lab.data.tokenizer_json import SPACE_MARK
from dma_lab.messages import UserError

BATCH_CHARACTERS = 8 << 20
PIECE_CHARACTERS = 1 << 16  # a batch is enough for 128 cores


def pieces(chunks: Iterable[str], limit: int) -> Iterator[str]:
    """The text of ``chunks`` in pieces of at most ``limit`` characters, however the chunks are cut.

    A piece ends where the splitting rules of GPT-2's kind end a word anyway, after a line of text or before a space
    between words, so that the pieces' tokens are the text's. Only text without either is cut at the limit.
    """
    held = ""
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start > limit:
            end = _word_end(held, start, start + limit)
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _word_end(text: str, start: int, limit: int) -> int:
    """Where the last word that ends in ``text[start:limit]`` does; ``limit`` is inside of the text."""
    for mark, offset in (("\n", 1), (" ", 0)):  # the newline closes its line; the space opens its word
        at = text.rfind(mark, start + 1, limit)
        while at > 0:
            if not text[at - 1].isspace() and not text[at + 1].isspace():
                return at + offset
            at = text.rfind(mark, start + 1, at)
    return limit


@dataclass
class TokenStream:
    """One stream on its way to disk: tokens, and where each document starts."""

    tokens_file: Path
    starts_file: Path
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def __post_init__(self) -> None:
        self._tokens_out = open(self.tokens_file, "wb")  # noqa: SIM115 (closed by close)
        self._starts_out = open(self.starts_file, "wb")  # noqa: SIM115

    def append(self, tokens: NDArray[Any], starts: list[int], text_bytes: int) -> None:
        """``starts`` are offsets into ``tokens``. Raises OSError when the disk takes no more."""
        payload = tokens.tobytes()
        self.digest.update(payload)
        self._tokens_out.write(payload)
        self._starts_out.write((np.array(starts, dtype="<i8") + self.tokens).tobytes())
        self.tokens += len(tokens)
        self.documents += len(starts)
        self.text_bytes += text_bytes

    def effective_documents(self) -> float:
        """(Σ tokens)² / Σ tokens² of the documents written and closed: how many of equal length weigh as evenly."""
        starts = np.fromfile(self.starts_file, dtype="<i8")
        lengths = np.diff(starts, append=self.tokens).astype(np.float64)
        return float(lengths.sum() ** 2 / (lengths**2).sum())

    def close(self) -> None:
        """Raises OSError when the disk takes no more."""
        with self._tokens_out, self._starts_out:  # both, even if one fails
            pass


@dataclass
class _Batch:
    """Pieces that are encoded together; ``opens`` marks those that begin a document."""

    texts: list[str] = field(default_factory=list)
    opens: list[bool] = field(default_factory=list)
    validates: list[bool] = field(default_factory=list)
    characters: int = 0


class Packer:
    """Encodes documents in batches of ``batch_characters`` into a training and a validation stream under ``folder``.

    While one batch is encoded the next is read and the one before it is written, so memory holds three at most.

    Raises:
        UserError: the tokenizer cannot encode a text; or its tokens, of one that loses none, do not stand for exactly
            the text's bytes.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, batch_characters: int | None = None) -> None:
        self._tokenizer, self._batch_characters = tokenizer, batch_characters or BATCH_CHARACTERS
        self.eot_id = eot_id_of(tokenizer)
        self.lost = lost_by(tokenizer)
        """What the tokenizer loses of text, in words; None where its tokens stand for the text's bytes."""
        self._unknown_id = unknown_id_of(tokenizer)
        self._spelled = [b""] * vocabulary_size(tokenizer) if self.lost else spelled_tokens(tokenizer)
        self.token_bytes = np.array([len(text) for text in self._spelled], dtype="<i4")
        """(vocab_size,): bytes of UTF-8 text that each token stands for; 0 for the EOT and for unused ids, and for all
        of a tokenizer that loses text."""
        self._mark_ids = None if self.lost else space_mark_ids(tokenizer)
        self.dtype = "<u2" if len(self.token_bytes) <= 2**16 else "<u4"
        self.train = TokenStream(folder / "train.tokens", folder / "train.starts")
        self.validation = TokenStream(folder / "validation.tokens", folder / "validation.starts")
        self.empty_documents = 0
        self._token_counts = np.zeros(len(self.token_bytes), dtype=np.int64)

    def pack(self, documents: Iterable[tuple[Document, bool]]) -> Iterator[None]:
        """Pack ``documents`` (each with whether it validates); yields after every batch, for whoever watches."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            encoding: Future[list[Encoding]] | None = None
            encoded_batch = _Batch()
            for batch in self._batches(documents):
                submitted = pool.submit(self._tokenizer.encode_batch_fast, batch.texts, add_special_tokens=False)
                if encoding is not None:
                    self._write(encoded_batch, _result(encoding))
                encoding, encoded_batch = submitted, batch
                yield
            if encoding is not None:
                self._write(encoded_batch, _result(encoding))
                yield

    def close(self) -> None:
        """Raises OSError when the disk takes no more."""
        with closing(self.train), closing(self.validation):
            pass

    def unigram_entropy(self) -> float:
        """Nats per token of the training stream's distribution of tokens."""
        counts = self._token_counts[self._token_counts > 0]
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    def unknown_share(self) -> float:
        """Of the training stream's tokens but the EOTs, the share of those that stand for what no token holds."""
        of_text = self._token_counts.sum() - self._token_counts[self.eot_id]
        unknown = 0 if self._unknown_id is None else self._token_counts[self._unknown_id]
        return float(unknown / of_text) if of_text else 1.0

    def _batches(self, documents: Iterable[tuple[Document, bool]]) -> Iterator[_Batch]:
        batch = _Batch()
        for document, validates in documents:
            opens = True
            for piece in self._cut(pieces(document.chunks, PIECE_CHARACTERS)):
                batch.texts.append(piece)
                batch.opens.append(opens)
                batch.validates.append(validates)
                batch.characters += len(piece)
                opens = False
                if batch.characters >= self._batch_characters:
                    yield batch
                    batch = _Batch()
            self.empty_documents += opens
        if batch.texts:
            yield batch

    def _cut(self, texts: Iterable[str]) -> Iterator[str]:
        """``texts``; where a tokenizer takes a mark for a space, marks that are text are pieces of their own."""
        for text in texts:
            if self._mark_ids and SPACE_MARK in text:
                yield from filter(None, re.split(f"({SPACE_MARK}+)", text))
            else:
                yield text

    def _write(self, batch: _Batch, encodings: list[Encoding]) -> None:
        for stream, wanted in ((self.train, False), (self.validation, True)):
            parts: list[NDArray[Any]] = []
            starts: list[int] = []
            length = text_bytes = 0
            eot = np.array([self.eot_id], dtype=self.dtype)
            for text, opens, validates, encoding in zip(
                batch.texts, batch.opens, batch.validates, encodings, strict=True
            ):
                if validates is not wanted:
                    continue
                if opens:
                    starts.append(length)
                    parts.append(eot)
                    length += 1
                parts.append(self._encoded(text, encoding))
                length += len(parts[-1])
                text_bytes += len(text.encode("utf-8"))
            if not parts:
                continue
            tokens = np.concatenate(parts)
            stream.append(tokens, starts, text_bytes)
            if not wanted:
                self._token_counts += np.bincount(tokens, minlength=len(self._token_counts))

    def _encoded(self, text: str, encoding: Encoding) -> NDArray[Any]:
        """The tokens of a piece of text.

        Raises:
            UserError: they do not stand for exactly its bytes, and the tokenizer is none that loses text.
        """
        if self.lost:
            return self._without_eots(np.array(encoding.ids, dtype=self.dtype))
        ids = self._mark_ids * len(text) if self._mark_ids and text[0] == SPACE_MARK else encoding.ids
        tokens = np.array(ids, dtype=self.dtype)
        if b"".join([self._spelled[index] for index in ids]) != text.encode("utf-8") or (tokens == self.eot_id).any():
            raise UserError(
                f"data.tokenizer does not keep text as it is: of {self._difference(text, ids)}. Take another one, such "
                "as bpe."
            )
        return tokens

    def _without_eots(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """``tokens`` of text. What a tokenizer takes for the EOT, as T5's does ``</s>``, is unknown, or left out."""
        if self._unknown_id is None:
            return np.delete(tokens, np.flatnonzero(tokens == self.eot_id))
        return np.where(tokens == self.eot_id, tokens.dtype.type(self._unknown_id), tokens)

    def _difference(self, text: str, ids: list[int]) -> str:
        held, wanted = b"".join([self._spelled[index] for index in ids]), text.encode("utf-8")
        at = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(held, wanted, strict=False)))
        given, made = (part[max(0, at - 20) : at + 20].decode("utf-8", "replace") for part in (wanted, held))
        return f"{given!r} its tokens make {made!r}" if given != made else f"{given!r} they make the EOT"


def _result(encoding: Future[list[Encoding]]) -> list[Encoding]:
    try:
        return encoding.result()
    except Exception as error:  # tokenizers raises plain Exception, as for what it has no token for, nor an unknown one
        raise UserError(
            f"data.tokenizer cannot encode the text ({error}): take another one, such as bpe, or one with an unknown "
            "token."
        ) from error
