"""Which part of a corpus validates where nobody set one apart: documents if there are enough of them, else stretches.

A pure function of what the documents hold: neither their order nor the files they lie in matter. Equal texts have equal
digests and fall on one side.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dma_lab.data.digests import text_digest
from dma_lab.data.readers import Document
from dma_lab.messages import UserError

ENOUGH_DOCUMENTS = 24
"""Effective ones that validate: the report gives no interval of fewer than 20, counted in tokens and not in bytes."""
ENOUGH_BYTES = 1 << 14
LARGEST_SHARE = 0.1
"""Of the documents that validate, unless more are asked for: a corpus that needs more is cut into stretches."""
LONGEST_STRETCH = 6000  # characters: several contexts of the small rungs
_SHORTEST_STRETCH = 256
_STRETCHES = 400
"""About how many a corpus too small for long ones is cut into."""
_MOST_BYTES = 0.2
"""Of a corpus that stretches are taken from, unless more is asked for."""
_KEPT = 100_000
"""Digests are looked at, the smallest, so that memory does not grow with the corpus."""

_ENDS = [re.compile(mark) for mark in (r"\n\s*\n", r"\n", r"[.!?…。]\s", r"\s")]


@dataclass(frozen=True)
class Split:
    """What validates: every document, or stretch of one, whose digest is below ``threshold`` (of 2**64)."""

    by: str
    """``documents`` or ``stretches``."""
    threshold: int
    documents: int
    """Of the corpus, copies counted and empty ones not."""
    stretch_characters: int | None = None

    def validates(self, digest: str) -> bool:
        return _number(digest) < self.threshold

    def recorded(self) -> dict[str, Any]:
        """As meta.json has it."""
        return asdict(self) | {"share": self.threshold / 2**64}


def choose_split(documents: Callable[[], Iterable[Document]], fraction: float) -> Split:
    """By documents if ``fraction`` of them, or up to a tenth, are ``ENOUGH_DOCUMENTS`` effective ones and
    ``ENOUGH_BYTES``, and no more than a fifth of all bytes; else by stretches, as many as are enough in that sense.

    Args:
        documents: the corpus, from its start at every call; read once, or twice.
        fraction: the least share of the digests that validates.

    Raises:
        UserError: there is no text, or too little to cut in two.
    """
    found = _Found()
    for document in documents():
        found.add(document.digest, document.size)
    share = max(fraction, LARGEST_SHARE)
    if (threshold := found.enough(fraction, share)) is not None:
        return Split("documents", threshold, found.units)
    if not found.bytes:
        raise UserError("data=local has no text at all: check data.path and data.text_field.")
    characters = min(LONGEST_STRETCH, max(_SHORTEST_STRETCH, found.bytes // _STRETCHES))
    cut = _Found()
    for document in documents():
        for stretch in stretches(document.chunks, characters):
            encoded = stretch.encode("utf-8")
            cut.add(text_digest(encoded), len(encoded))
    threshold = cut.enough(fraction, 1.0) or cut.most(max(fraction, _MOST_BYTES))
    if threshold is None:
        raise UserError(
            f"{cut.bytes:,} bytes of text are too little to validate on a part of them: give more, or give "
            "data.validation_path."
        )
    return Split("stretches", threshold, found.units, characters)


def stretches(chunks: Iterable[str], characters: int) -> Iterator[str]:
    """The text of ``chunks``, however they are cut, in parts of two thirds to four thirds of ``characters``.

    A part ends behind the last empty line within these bounds; without one behind a line, a sentence, a word. A text of
    at most four thirds is one part, and the last part may be shorter.
    """
    shortest, longest = 2 * characters // 3, 4 * characters // 3
    held = ""
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start > longest:
            end = _end(held, start + shortest, start + longest)
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def parts_of(document: Document, split: Split) -> Iterator[tuple[Document, bool]]:
    """A document, or its stretches, each with whether it validates; what lies between those that do is whole."""
    if split.stretch_characters is None:
        yield document, split.validates(document.digest)
        return
    between: list[str] = []
    for stretch in stretches(document.chunks, split.stretch_characters):
        encoded = stretch.encode("utf-8")
        digest = text_digest(encoded)
        if not split.validates(digest):
            between.append(stretch)
            continue
        if between:
            yield _joined(between), False
            between = []
        yield Document((stretch,), digest, len(encoded)), True
    if between:
        yield _joined(between), False
    elif not document.size:
        yield document, False  # which whoever packs it counts


class _Found:
    """Distinct documents, or stretches, by digest: the smallest digests, and how many bytes each has."""

    def __init__(self) -> None:
        self.units, self.bytes = 0, 0
        self._sizes: dict[int, int] = {}
        self._limit = 2**64

    def add(self, digest: str, size: int) -> None:
        if not size:
            return
        self.units += 1
        self.bytes += size
        if (number := _number(digest)) < self._limit:
            self._sizes[number] = size
            if len(self._sizes) > _KEPT:
                self._limit = sorted(self._sizes)[_KEPT // 2]
                self._sizes = {number: size for number, size in self._sizes.items() if number < self._limit}

    def enough(self, least: float, most: float) -> int | None:
        """The threshold below which are the fewest that are enough, at least the share ``least``."""
        weight = max(_MOST_BYTES, 2 * least) * self.bytes
        for threshold, _, total, squares in self._thresholds(int(least * 2**64)):
            if threshold > most * 2**64 or total > weight:
                return None
            if squares and total >= ENOUGH_BYTES and total**2 / squares >= ENOUGH_DOCUMENTS:
                return threshold
        return None

    def most(self, share: float) -> int | None:
        """That of as many as are at most ``share`` of the bytes, at least one; None where that is all there are."""
        best = None
        for threshold, count, total, _ in self._thresholds(0):
            if 0 < count < len(self._sizes) and (best is None or total <= share * self.bytes):
                best = threshold
        return best

    def _thresholds(self, least: int) -> Iterator[tuple[int, int, int, int]]:
        """Threshold, number, bytes, squared bytes: of all below ``least``, then of one more each time."""
        below = [size for number, size in self._sizes.items() if number < least]
        count, total, squares = len(below), sum(below), sum(size**2 for size in below)
        yield least, count, total, squares
        for number, size in sorted((number, size) for number, size in self._sizes.items() if number >= least):
            count, total, squares = count + 1, total + size, squares + size**2
            yield number + 1, count, total, squares


def _number(digest: str) -> int:
    return int(digest[:16], 16)


def _joined(texts: list[str]) -> Document:
    text = "".join(texts)
    encoded = text.encode("utf-8")
    return Document((text,), text_digest(encoded), len(encoded))


def _end(text: str, low: int, high: int) -> int:
    for mark in _ENDS:
        ends = [match.end() for match in mark.finditer(text, low, high)]
        if ends:
            return ends[-1]
    return high
