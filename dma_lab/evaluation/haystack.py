"""The text that needles are hidden in, as tokens."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dma_lab.data.digests import text_digest
from dma_lab.data.formats import FORMATS, format_of
from dma_lab.data.readers import read_documents
from dma_lab.data.spelling import eot_id_of, vocabulary_size
from dma_lab.data.store import TokenData
from dma_lab.messages import UserError


class Haystack:
    """Text as tokens, repeated when a context asks for more than there is."""

    def __init__(self, tokens: NDArray[np.int64], tokenizer: Tokenizer) -> None:
        """``tokens`` is one text: EOTs between documents become empty lines, or attention would end at them."""
        blank = np.array(tokenizer.encode("\n\n", add_special_tokens=False).ids)
        parts = np.split(tokens, np.flatnonzero(tokens == eot_id_of(tokenizer)))
        joined = [parts[0], *(piece for part in parts[1:] for piece in (blank, part[1:]))]
        self.tokens = np.concatenate(joined).astype(np.int64)
        pieces = [tokenizer.decode([token], skip_special_tokens=False) for token in range(vocabulary_size(tokenizer))]
        self._ends_sentence = np.array(["\n" in piece or piece.endswith((".", "!", "?")) for piece in pieces])
        self._begins_word = np.array([piece[:1].isspace() for piece in pieces])
        self._words = np.flatnonzero(self._begins_word[self.tokens])

    @classmethod
    def of_validation(cls, data: TokenData) -> "Haystack":
        """The validation documents, one after another."""
        return cls(data.validation_tokens[1:].astype(np.int64), data.load_tokenizer())

    @classmethod
    def of_file(cls, path: Path, tokenizer: Tokenizer) -> "Haystack":
        """The text of a file that ``data=local`` could train on. Raises UserError when it cannot be read as UTF-8."""
        format = format_of(path)
        if not path.is_file() or format is None:
            raise UserError(f"suite.haystack={path} is not a file that can be read as text: give one of {FORMATS}.")
        tokens: list[int] = []
        for document in read_documents(path, format):
            ids = tokenizer.encode("".join(document.chunks), add_special_tokens=False).ids
            tokens += [eot_id_of(tokenizer), *ids] if tokens else ids
        if not tokens:
            raise UserError(
                f"suite.haystack={path} has no text; give a file that has, or null for the validation documents."
            )
        return cls(np.array(tokens), tokenizer)

    @property
    def digest(self) -> str:
        """Names the text and its tokens."""
        return text_digest(self.tokens.tobytes())

    def excerpt(self, start: int, count: int) -> NDArray[np.int64]:
        """``count`` tokens from the first on that, from the ``start``-th on, begins with a space or a new line."""
        following = self._words[np.searchsorted(self._words, start) % len(self._words)] if len(self._words) else start
        excerpt: NDArray[np.int64] = self.tokens[np.arange(following, following + count) % len(self.tokens)]
        return excerpt

    def gap(self, excerpt: NDArray[np.int64], depth: float) -> int:
        """How many tokens of ``excerpt`` come before a needle at ``depth``.

        That share of them, as nearly as a word ends there; or where the nearest sentence or line ends, if that is
        within a twentieth of them.
        """
        wanted = round(depth * len(excerpt))
        if depth in (0, 1):
            return wanted
        words = np.flatnonzero(self._begins_word[excerpt])
        sentences = words[self._ends_sentence[excerpt[words - 1]] & (words > 0)]
        for ends, reach in ((sentences, len(excerpt) / 20), (words, len(excerpt))):
            if len(ends):
                nearest = int(ends[np.abs(ends - wanted).argmin()])
                if abs(nearest - wanted) <= reach:
                    return nearest
        return wanted
