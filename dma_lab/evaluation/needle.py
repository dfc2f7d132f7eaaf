"""Needles in a haystack: facts hidden in long text and asked for, in RULER's words (``ruler.py``).

Four kinds, RULER's ``niah_single_2`` (with uuids ``niah_single_3``), ``niah_multikey_1``, ``niah_multivalue`` and
``niah_multiquery``: ``single`` (one needle), ``multikey`` (needles of other keys distract), ``multivalue`` (one key,
several values, all asked for), ``multiquery`` (several keys, all asked for). Of RULER's they differ in the text that
hides them (the run's own instead of essays), in the list of words that keys are made of, and in one needle's depth,
which is given.

A *control* is the same prompt with other values, of as many tokens, in place of those that are asked for: what a model
makes of the format and the length is the same in both, and what it makes of the values is not.
"""

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer

from dma_lab.data.spelling import eot_id_of
from dma_lab.evaluation import ruler
from dma_lab.evaluation.haystack import Haystack
from dma_lab.messages import UserError

Kind = Literal["single", "multikey", "multivalue", "multiquery"]
ValueKind = Literal["words", "numbers", "uuids"]

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
    """A fact, and the value that the control has in its place."""

    key: str
    value: str
    other: str


@dataclass(frozen=True)
class Sample:
    """One question about one haystack, as token ids."""

    prompt: list[int]
    """EOT, introduction, haystack with its needles, question and the answer's beginning."""
    control: list[int]
    """The same with other values in place of those that are asked for; of the same length."""
    answer: list[int]
    """A colon, as needles have it, and the values."""
    is_value: list[bool]
    """Of each of the answer's tokens: it spells a value, and no colon, nor a comma between two."""
    values: list[str]


class NeedleTask:
    """Samples of one kind for one tokenizer and haystack.

    Args:
        values: what the needles' values are.
        needles: how many a haystack holds, 1 in kind ``single``.
        samples: questions per cell.
        seed: with a sample's index fixes its needles, and with its length besides its excerpt; not with its depth.
    """

    def __init__(
        self,
        kind: Kind,
        values: ValueKind,
        *,
        needles: int,
        samples: int,
        seed: int,
        haystack: Haystack,
        tokenizer: Tokenizer,
    ) -> None:
        self.kind, self.values, self.seed = kind, values, seed
        self.haystack, self.tokenizer = haystack, tokenizer
        self.needles = [self._draw(1 if kind == "single" else needles, index) for index in range(samples)]
        self.answer_tokens = max(len(self._answer(self._asked(needles))[0]) for needles in self.needles)
        """Of the longest answer."""

    @property
    def shortest(self) -> int:
        """The fewest tokens that a sample can have, its answer counted."""
        return max(self._overhead(needles) for needles in self.needles) + len(self.needles[0])

    def check_length(self, length: int) -> None:
        """Raise UserError when a sample of ``length`` tokens, its answer counted, has no room for haystack."""
        if length < self.shortest:
            raise UserError(
                f"suite.lengths holds {length}, and the needles and question of kind {self.kind} with {self.values} "
                f"and {ruler.NEW_TOKENS} new tokens take {self.shortest} tokens with this tokenizer: give longer ones, "
                "or null for the shortest that do."
            )

    def sample(self, length: int, depth: float, index: int) -> Sample:
        """The ``index``-th question: prompt and answer are at most ``length`` tokens together.

        The first needle lies at ``depth`` (0 the beginning, 1 the end), others anywhere.
        """
        needles = self.needles[index]
        draw = random.Random(f"{self.seed}:{index}:{length}")
        excerpt = self.haystack.excerpt(draw.randrange(len(self.haystack.tokens)), length - self._overhead(needles))
        depths = [depth, *(draw.random() for _ in needles[1:])]
        placed = sorted(zip([self.haystack.gap(excerpt, at) for at in depths], range(len(needles)), strict=True))
        asked = self._asked(needles)
        text: list[int] = []
        control: list[int] = []
        begin = 0
        for gap, number in placed:
            needle, before = needles[number], excerpt[begin:gap].tolist()
            text += before + self._line(needle.key, needle.value)
            control += before + self._line(needle.key, needle.other if needle in asked else needle.value)
            begin = gap
        rest = excerpt[begin:].tolist() + self._question(asked)
        head = [eot_id_of(self.tokenizer), *self._introduction(asked)]
        if self.kind == "multivalue":  # nothing but the text orders them
            asked = [needles[number] for _, number in placed]
        answer, is_value = self._answer(asked)
        return Sample(
            prompt=[*head, *text, *rest],
            control=[*head, *control, *rest],
            answer=answer,
            is_value=is_value,
            values=[needle.value for needle in asked],
        )

    def _draw(self, count: int, index: int) -> list[Needle]:
        """The needles of the ``index``-th sample, whatever its length and depth: the first is the one at the depth.

        Values differ, and so do keys but in kind ``multivalue``, which has one.
        """
        draw = random.Random(f"{self.seed}:{index}:{self.kind}:{self.values}")
        names = [f"{adjective}-{noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()]
        draw.shuffle(names)
        keys = names[:1] * count if self.kind == "multivalue" else names[:count]
        fresh = iter(names[count:]) if self.values == "words" else _numerals(self.values, draw)
        return [Needle(key, *self._pair(key, fresh)) for key in keys]

    def _pair(self, key: str, fresh: Iterator[str]) -> tuple[str, str]:
        """The first two values whose needles have equally many tokens."""
        by_tokens: dict[int, str] = {}
        for value in fresh:
            if (first := by_tokens.setdefault(len(self._line(key, value)), value)) != value:
                return first, value
        raise AssertionError("there are thousands of words, of a few lengths")

    def _asked(self, needles: list[Needle]) -> list[Needle]:
        return needles if self.kind in ("multivalue", "multiquery") else needles[:1]

    def _overhead(self, needles: list[Needle]) -> int:
        """Tokens of a sample that are not haystack."""
        lines = sum(len(self._line(needle.key, needle.value)) for needle in needles)
        asked = self._asked(needles)
        around = 1 + len(self._introduction(asked)) + len(self._question(asked))
        return around + lines + max(ruler.NEW_TOKENS, self.answer_tokens)

    def _introduction(self, asked: list[Needle]) -> list[int]:
        return self._encode(ruler.introduction(self.values, len(asked)))

    def _line(self, key: str, value: str) -> list[int]:
        return self._encode(ruler.needle(self.values, key, value))

    def _question(self, asked: list[Needle]) -> list[int]:
        keys = list(dict.fromkeys(needle.key for needle in asked))
        return self._encode(ruler.question(self.values, keys, len(asked)))

    def _answer(self, asked: list[Needle]) -> tuple[list[int], list[bool]]:
        answer: list[int] = []
        is_value: list[bool] = []
        for number, needle in enumerate(asked):
            for text, spells in (("," if number else ":", False), (f" {needle.value}", True)):
                ids = self._encode(text)
                answer += ids
                is_value += [spells] * len(ids)
        return answer, is_value

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def _numerals(values: str, draw: random.Random) -> Iterator[str]:
    """Numbers of seven digits or uuids, no two alike."""
    seen: set[str] = set()
    while True:
        number = draw.randrange(10**6, 10**7) if values == "numbers" else draw.getrandbits(128)
        value = str(number) if values == "numbers" else str(uuid.UUID(int=number, version=4))
        if value not in seen:
            seen.add(value)
            yield value
