"""Needles in a haystack, after RULER (Hsieh et al., arXiv 2404.06654): facts hidden in long text, and asked for.

A needle is a line ``One of the special magic numbers for quiet-river is: 5812046.``; the question follows the haystack,
and the answer is already begun::

    …text, needle, text…
    What is the special magic number for quiet-river mentioned in the text? The special magic number for quiet-river
    mentioned in the text is: 5812046

Four kinds: ``single`` (one needle), ``multikey`` (needles of other keys distract), ``multivalue`` (one key, several
values, all asked for), ``multiquery`` (several keys, all asked for). RULER's introduction before the haystack is left
out: it speaks to models that follow instructions. The colon before the answer is the needle's own: small models, which
cannot answer in words, continue what they have seen.
"""

import random
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dma_lab.data.digests import text_digest
from dma_lab.data.readers import FORMATS, format_of, read_documents
from dma_lab.data.store import TokenData
from dma_lab.data.tokenizer import separator_of, vocabulary_size
from dma_lab.messages import UserError

KINDS = ("single", "multikey", "multivalue", "multiquery")
VALUES = ("words", "numbers", "uuids")

_ADJECTIVES = (
    "amber ancient autumn bitter bright broken calm clever cold crimson damp dark deep distant dry early eager faint "
    "fierce frozen gentle golden grand green hidden hollow humble icy late little lively lonely loud lucky misty "
    "narrow noble odd old pale patient plain polite proud quick quiet rapid rough round royal rusty shy silent silver "
    "small smooth soft steep still strange sweet tall tender tiny warm weary white wild windy wise young"
)
_NOUNS = (
    "anchor apple arrow badger barn basket bell bridge candle canyon castle cherry cloud copper cottage desert dune "
    "eagle falcon feather fern field flute forest fountain garden glacier harbor hill island ivy kettle lake lantern "
    "leaf lemon lighthouse marble meadow mirror moon mountain oak ocean orchard otter owl paper pebble pine planet "
    "pond raven reef river rocket saddle shadow ship sparrow spoon spring star stone storm summit thunder tower "
    "trumpet tulip valley violin whale willow window winter wolf"
)


@dataclass(frozen=True)
class Needle:
    """``draw_needles`` makes them."""

    key: str
    value: str


@dataclass(frozen=True)
class Sample:
    """One question about one haystack, as token ids."""

    prompt: list[int]
    """Separator, haystack with its needles, question and the answer's beginning."""
    without: list[int]
    """The same without the needles."""
    answer: list[int]
    is_value: list[bool]
    """Of each of the answer's tokens: it spells a value, and no comma between two."""
    values: list[str]


class Haystack:
    """Text as tokens, in which a needle may lie anywhere; repeated when a context asks for more than there is."""

    def __init__(self, tokens: NDArray[np.int64], tokenizer: Tokenizer) -> None:
        """``tokens`` is one text: separators of documents become empty lines, or attention would end at them."""
        blank = np.array(tokenizer.encode("\n\n", add_special_tokens=False).ids)
        parts = np.split(tokens, np.flatnonzero(tokens == separator_of(tokenizer)))
        joined = [parts[0], *(piece for part in parts[1:] for piece in (blank, part[1:]))]
        self.tokens = np.concatenate(joined).astype(np.int64)
        pieces = [tokenizer.decode([token], skip_special_tokens=False) for token in range(vocabulary_size(tokenizer))]
        self._ends_sentence = np.array(["\n" in piece or piece.endswith((".", "!", "?")) for piece in pieces])

    @classmethod
    def of_validation(cls, data: TokenData) -> "Haystack":
        """The validation documents, one after another."""
        return cls(data.validation_tokens[1:].astype(np.int64), data.load_tokenizer())

    @classmethod
    def of_file(cls, path: Path, tokenizer: Tokenizer) -> "Haystack":
        """The text of a file that ``data=local`` could train on. Raises UserError when it cannot be read as UTF-8."""
        if not path.is_file() or format_of(path) is None:
            raise UserError(f"haystack={path} is no file that can be read as text: give one of {', '.join(FORMATS)}.")
        tokens: list[int] = []
        for document in read_documents(path, "text", digest="", on_bytes=lambda count: None):
            ids = tokenizer.encode("".join(document.chunks), add_special_tokens=False).ids
            tokens += [separator_of(tokenizer), *ids] if tokens else ids
        if not tokens:
            raise UserError(f"haystack={path} has no text; give a file that has, or null for the validation documents.")
        return cls(np.array(tokens), tokenizer)

    @property
    def digest(self) -> str:
        """Names the text and its tokens."""
        return text_digest(self.tokens.tobytes())

    def excerpt(self, start: int, count: int) -> NDArray[np.int64]:
        """``count`` tokens from the ``start``-th on."""
        return self.tokens[np.arange(start, start + count) % len(self.tokens)]

    def gap(self, excerpt: NDArray[np.int64], depth: float) -> int:
        """How many tokens of ``excerpt`` come before a needle at ``depth``.

        That share of them; or where the nearest sentence or line ends, if that is within a twentieth of them.
        """
        wanted = round(depth * len(excerpt))
        ends = np.flatnonzero(self._ends_sentence[excerpt]) + 1
        if depth in (0, 1) or not len(ends):
            return wanted
        nearest = int(ends[np.abs(ends - wanted).argmin()])
        return nearest if abs(nearest - wanted) <= len(excerpt) / 20 else wanted


def draw_needles(kind: str, values: str, count: int, seed: int, index: int) -> list[Needle]:
    """The needles of the ``index``-th sample, whatever its length and depth: the first is the one placed at the depth.

    Values differ, and so do keys but in kind ``multivalue``, which has one.
    """
    draw = random.Random(f"{seed}:{index}:{kind}:{values}")
    count = 1 if kind == "single" else count
    names = draw.sample(
        [f"{adjective}-{noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()], 2 * count
    )
    if values == "words":
        drawn = names[count:]
    elif values == "numbers":
        drawn = [str(number) for number in draw.sample(range(1_000_000, 10_000_000), count)]
    else:
        drawn = [str(uuid.UUID(int=draw.getrandbits(128), version=4)) for _ in range(count)]
    keys = names[:1] * count if kind == "multivalue" else names[:count]
    return [Needle(key, value) for key, value in zip(keys, drawn, strict=True)]


class NeedleTask:
    """Samples of one kind for one tokenizer and haystack.

    Args:
        kind: one of ``KINDS``.
        values: one of ``VALUES``: what the needles' values are.
        needles: how many a haystack holds, 1 in kind ``single``.
        samples: questions a cell.
        seed: with a sample's index fixes its needles, and with its length besides its excerpt; not with its depth.
    """

    def __init__(
        self, kind: str, values: str, *, needles: int, samples: int, seed: int, haystack: Haystack, tokenizer: Tokenizer
    ) -> None:
        self.kind, self.values, self.seed = kind, values, seed
        self.haystack, self.tokenizer = haystack, tokenizer
        self.needles = [draw_needles(kind, values, needles, seed, index) for index in range(samples)]
        self.new_tokens = 8 + max(len(self._answer(asked)[0]) for asked in map(self._asked, self.needles))
        """Tokens that are generated for an answer: the longest answer, and some for words before it."""

    def check_length(self, length: int) -> None:
        """Raise UserError when a sample of ``length`` tokens, its answer counted, has no room for haystack."""
        needed = max(self._overhead(needles) for needles in self.needles) + len(self.needles[0])
        if length < needed:
            raise UserError(
                f"lengths holds {length}, and the needles and question of kind {self.kind} with {self.values} take "
                f"{needed} tokens with this tokenizer: give longer ones, shorter values or fewer needles."
            )

    def sample(self, length: int, depth: float, index: int) -> Sample:
        """The ``index``-th question: prompt and ``new_tokens`` are ``length`` tokens together.

        The first needle lies at ``depth`` (0 the beginning, 1 the end), others anywhere.
        """
        needles = self.needles[index]
        draw = random.Random(f"{self.seed}:{index}:{length}")
        excerpt = self.haystack.excerpt(draw.randrange(len(self.haystack.tokens)), length - self._overhead(needles))
        depths = [depth, *(draw.random() for _ in needles[1:])]
        placed = sorted(zip([self.haystack.gap(excerpt, at) for at in depths], range(len(needles)), strict=True))
        text: list[int] = []
        begin = 0
        for gap, number in placed:
            text += excerpt[begin:gap].tolist() + self._line(needles[number])
            begin = gap
        text += excerpt[begin:].tolist()
        # Asked for in the order in which the text has them.
        asked = [needles[number] for _, number in placed if number == 0 or self.kind in ("multivalue", "multiquery")]
        question, separator = self._question(asked), separator_of(self.tokenizer)
        answer, is_value = self._answer(asked)
        return Sample(
            prompt=[separator, *text, *question],
            without=[separator, *excerpt.tolist(), *question],
            answer=answer,
            is_value=is_value,
            values=[needle.value for needle in asked],
        )

    def _asked(self, needles: list[Needle]) -> list[Needle]:
        return needles if self.kind in ("multivalue", "multiquery") else needles[:1]

    def _overhead(self, needles: list[Needle]) -> int:
        """Tokens of a sample that are not haystack."""
        lines = sum(len(self._line(needle)) for needle in needles)
        return 1 + lines + len(self._question(self._asked(needles))) + self.new_tokens

    def _line(self, needle: Needle) -> list[int]:
        return self._encode(f"\nOne of the special magic {self.values} for {needle.key} is: {needle.value}.\n")

    def _question(self, asked: list[Needle]) -> list[int]:
        keys = list(dict.fromkeys(needle.key for needle in asked))
        named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
        verb, what = ("is", self.values[:-1]) if len(asked) == 1 else ("are", self.values)
        about = f"the special magic {what} for {named} mentioned in the text"
        return self._encode(f"\nWhat {verb} {about}? {about.capitalize()} {verb}:")

    def _answer(self, asked: list[Needle]) -> tuple[list[int], list[bool]]:
        answer: list[int] = []
        is_value: list[bool] = []
        for number, needle in enumerate(asked):
            for text, spells in ((",", False), (f" {needle.value}", True))[number == 0 :]:
                ids = self._encode(text)
                answer += ids
                is_value += [spells] * len(ids)
        return answer, is_value

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids
