"""RULER's needles in its own words (Hsieh et al., arXiv 2404.06654, as lm-eval's tasks ``niah_…`` have them).

A prompt is an introduction, text with needles in it, a question, and the beginning of the answer::

    A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the
    number afterwards.
    …text. One of the special magic numbers for quiet-river is: 5812046. Text…
    What is the special magic number for quiet-river mentioned in the provided text? The special magic number for
    quiet-river mentioned in the provided text is
"""

from collections.abc import Sequence
from statistics import fmean

NEW_TOKENS = 128
"""Greedy tokens that an answer has; fewer only where the model ends its text."""


def introduction(values: str, asked: int) -> str:
    """``values`` (numbers, words, uuids), of which ``asked`` are asked for."""
    if asked == 1:
        what, hidden = values[:-1], f"A special magic {values[:-1]} is"
    else:
        what, hidden = values, f"Some special magic {values} are"
    return (
        f"{hidden} hidden within the following text. Make sure to memorize it. I will quiz you about the {what} "
        "afterwards.\n"
    )


def needle(values: str, key: str, value: str) -> str:
    """Stands between two sentences, a space before it."""
    return f" One of the special magic {values} for {key} is: {value}."


def question(values: str, keys: Sequence[str], asked: int) -> str:
    """About ``keys``, which have ``asked`` values together; the answer follows after a space."""
    named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    if asked == 1:
        what, ask, begin = values[:-1], "is the", "is"
    else:
        what, ask, begin = values, "are all the", "are"
    about = f"special magic {what} for {named} mentioned in the provided text"
    return f"\nWhat {ask} {about}? The {about} {begin}"


def string_match(text: str, values: Sequence[str]) -> float:
    """RULER's score (``string_match_all``): the share of ``values`` that ``text`` has somewhere, whatever the case."""
    return fmean(value.lower() in text.lower() for value in values)
