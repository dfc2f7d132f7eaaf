"""Multi-query associative recall (MQAR; Arora et al. 2023, arXiv 2312.04927, section 4.1), generated on the fly.

An example first binds keys to values, then asks for each key once. This is example 0 of seed 0: 3 keys in 20 tokens of
a vocabulary of 16, whose keys are 1 to 7 and whose values 8 to 15. A dot is filler, ``blank`` (token 0) here, or a
target that no loss counts:

    tokens   2 13  4 10  7  9  2  .  .  .  .  .  .  .  4  .  7  .  .  .
    targets  .  .  .  .  .  . 13  .  .  .  .  .  .  . 10  .  9  .  .  .

The tokens behind the bindings are cut into slots of two, and the queries fall into distinct slots: slot s = 1, 2, …
with a chance in proportion to s^(a - 1), drawn one after the other without replacement. So a key is mostly asked for
soon, and sometimes very late: the gaps of a power law. Key 4 stands at 2 and its query at 14: its gap is 12 tokens.

All this is as in the authors' ``multiquery_ar`` (HazyResearch/zoology, ``zoology/data/multiquery_ar.py``), and so are
the settings: ``power`` is their ``power_a``, ``filler`` their ``random_non_queries``, which their generator takes as
true and the configuration of their figure 2 as false.

Example i is a pure function of (settings, seed, i): it reads its own stretch of a counter-based generator.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dma_lab.data.batches import IGNORED_TARGET
from dma_lab.data.digests import text_digest
from dma_lab.messages import UserError

FORMAT_VERSION = 1
"""To be raised whenever the same settings would give other examples."""

BLANK = 0
_TRAINING, _VALIDATION = 0, 1


@dataclass(frozen=True)
class RecallSize:
    """How hard an example is."""

    length: int
    """Tokens; the trainer's context."""
    pairs: int | list[int]
    """Keys that are bound and asked for. Of several numbers, example i has the (i modulo their count)-th."""


@dataclass(frozen=True)
class RecallSettings:
    """The `data` node of the configuration where ``source`` is mqar.

    Raises:
        UserError: a setting that contradicts another or lies outside of what it may be.
    """

    name: str
    source: Literal["mqar"]
    size: RecallSize
    vocab_size: int
    """Filler 0, keys 1 … vocab_size / 2 - 1, values vocab_size / 2 … vocab_size - 1."""
    power: float = 0.01
    """a of the gaps' power law; 1 makes all slots equally likely."""
    filler: Literal["random", "blank", "noise"] = "random"
    """What stands where neither a binding nor a query does: ``random`` (any token at all, so that a key may turn up
    where it is neither bound nor asked for; zoology's ``random_non_queries=True``), ``blank`` (token 0; theirs when
    false) or ``noise`` (any token but the example's keys)."""
    validation_pairs: list[int] | None = None
    """Numbers of pairs that are validated, in equal shares; without it those of ``size.pairs``."""

    mask_documents: ClassVar[bool] = False  # an example is a whole sequence

    def __post_init__(self) -> None:
        length, vocab_size = self.size.length, self.vocab_size
        if length % 2 or length < 4:
            raise UserError(
                f"data.size.length={length} is odd or less than 4; bindings and queries take two tokens each: make it "
                "even and at least 4."
            )
        if vocab_size % 2:
            raise UserError(
                f"data.vocab_size={vocab_size} is odd; keys and values take a half each, so make model.vocab_size even."
            )
        if not self.power > 0:
            raise UserError(f"data.power={self.power} must be above 0; the paper's is 0.01, and 1 makes gaps uniform.")
        for setting, values in (("size.pairs", self.pairs), ("validation_pairs", self.validated_pairs)):
            if not values or min(values) < 1 or len(set(values)) < len(values):
                raise UserError(f"data.{setting}={values}: give numbers of at least 1, each once.")
            if 4 * max(values) > length:
                raise UserError(
                    f"data.{setting}={max(values)} needs {4 * max(values)} tokens (two to bind a key and two to ask "
                    f"for it) and data.size.length={length}: give at most {length // 4} pairs or a greater length."
                )
            if max(values) > vocab_size // 2 - 1:
                raise UserError(
                    f"data.{setting}={max(values)} needs as many keys and data.vocab_size={vocab_size} has "
                    f"{max(0, vocab_size // 2 - 1)}: set model.vocab_size to at least {2 * (max(values) + 1)}."
                )

    @property
    def pairs(self) -> list[int]:
        """Numbers of pairs trained on."""
        return self.size.pairs if isinstance(self.size.pairs, list) else [self.size.pairs]

    @property
    def validated_pairs(self) -> list[int]:
        return self.pairs if self.validation_pairs is None else self.validation_pairs

    @property
    def fingerprint(self) -> str:
        """Digest of all that fixes the examples: equal fingerprints and seeds, equal batches."""
        return text_digest(repr((FORMAT_VERSION, self)).encode())


def recall_sequences(settings: RecallSettings, *, seed: int, first: int, count: int) -> dict[str, Tensor | None]:
    """Training examples ``first`` … ``first + count - 1`` of the run's seed.

    Returns:
        ``tokens`` and ``targets`` int64 (count, length), targets -100 but at queries; ``document_ids`` None.
    """
    tokens_bn, targets_bn, _ = _examples(settings, settings.pairs, (seed, _TRAINING), first, count)
    return {"tokens": torch.from_numpy(tokens_bn), "targets": torch.from_numpy(targets_bn), "document_ids": None}


def recall_validation(settings: RecallSettings, *, examples: int, sequences: int) -> Iterator[dict[str, Tensor]]:
    """The first ``examples`` examples of a stream that no seed trains on, the same for every run of these settings.

    Yields:
        ``tokens`` and ``targets`` int64 (≤ sequences, length) as in training; ``gaps`` int64 of the same shape: at a
        query, how many tokens before it its key was bound, and 0 elsewhere; ``pairs`` int64 (≤ sequences,).
    """
    for first in range(0, examples, sequences):
        count = min(sequences, examples - first)
        arrays = _examples(settings, settings.validated_pairs, (0, _VALIDATION), first, count)
        tokens, targets, gaps = (torch.from_numpy(array) for array in arrays)
        yield {"tokens": tokens, "targets": targets, "gaps": gaps, "pairs": (gaps > 0).sum(1)}


def _examples(
    settings: RecallSettings, pairs: list[int], stream: tuple[int, int], first: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """tokens, targets and gaps, int64 (count, length) each, of the examples from ``first`` on."""
    length = settings.size.length
    # NumPy promises that a bit generator's raw numbers stay the same between its versions, and promises nothing for
    # the distributions drawn from them; so these are made here. An example owns two raw numbers per token: a quarter of
    # the length for keys, one for values, half for slots, and the whole length for filler.
    per_example = 2 * length
    generator = np.random.Philox(key=np.array(stream, dtype=np.uint64))
    generator.advance(first * per_example // 4)  # a counter is four numbers
    raw = generator.random_raw(count * per_example).reshape(count, per_example)
    tokens_bn = np.full((count, length), BLANK, dtype=np.int64)
    targets_bn = np.full((count, length), IGNORED_TARGET, dtype=np.int64)
    gaps_bn = np.zeros((count, length), dtype=np.int64)
    number = np.array(pairs)[(first + np.arange(count)) % len(pairs)]
    for n in np.unique(number):
        rows = np.flatnonzero(number == n)
        tokens_bn[rows], targets_bn[rows], gaps_bn[rows] = _with_pairs(settings, int(n), raw[rows])
    return tokens_bn, targets_bn, gaps_bn


def _with_pairs(settings: RecallSettings, n: int, raw: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """Examples of ``n`` pairs from the raw numbers (B, 2 · length) that are theirs."""
    length, half, rows = settings.size.length, settings.vocab_size // 2, np.arange(len(raw))[:, None]
    raw_keys, raw_values, raw_slots, raw_filler = np.split(raw, [length // 4, length // 4 * 2, length], axis=1)
    keys = 1 + _distinct(raw_keys[:, :n], half - 1)
    values = half + _distinct(raw_values[:, :n], half)
    queries = 2 * n + 2 * _slots(raw_slots[:, : length // 2 - n], n, settings.power)
    bound = 2 * np.arange(n)

    tokens, targets, gaps = (np.full((len(raw), length), blank) for blank in (BLANK, IGNORED_TARGET, 0))
    if settings.filler == "random":
        tokens = (raw_filler % settings.vocab_size).astype(np.int64)
    elif settings.filler == "noise":
        tokens = _other_than(keys, raw_filler, settings.vocab_size)
    tokens[:, bound], tokens[:, bound + 1] = keys, values
    tokens[rows, queries] = keys
    targets[rows, queries] = values
    gaps[rows, queries] = queries - bound
    return [tokens, targets, gaps]


def _distinct(raw: NDArray[np.uint64], choices: int) -> NDArray[np.int64]:
    """Numbers below ``choices``, as many a row as ``raw`` has, no two alike: the first steps of Fisher and Yates."""
    rows, n = np.arange(len(raw)), raw.shape[1]
    pool = np.tile(np.arange(choices), (len(raw), 1))
    for step in range(n):
        # The remainder favours small numbers by less than one part in 2^48.
        other = step + (raw[:, step] % (choices - step)).astype(np.int64)
        pool[rows, step], pool[rows, other] = pool[rows, other], pool[rows, step]
    return pool[:, :n]


def _slots(raw: NDArray[np.uint64], n: int, power: float) -> NDArray[np.int64]:
    """``n`` distinct slots per row, of the number in ``raw``, drawn one by one in proportion to (slot + 1)^(power - 1).

    An exponential race: where slot s finishes after a time of rate p_s, the order of arrival is a draw without
    replacement with weights p (Efraimidis and Spirakis 2006).
    """
    weights = np.arange(1, raw.shape[1] + 1) ** (power - 1.0)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.argsort(-np.log(uniform) / weights, axis=1, kind="stable")[:, :n]


def _other_than(keys: NDArray[np.int64], raw: NDArray[np.uint64], vocab_size: int) -> NDArray[np.int64]:
    """Tokens of the shape of ``raw``, uniform over the vocabulary but for the row's ``keys``."""
    n = keys.shape[1]
    drawn = (raw % (vocab_size - n)).astype(np.int64)
    # The r-th token that is no key is r + (the number of keys k_0 < k_1 < … with k_i - i <= r).
    passed = np.sort(keys, axis=1) - np.arange(n)
    skipped = [np.searchsorted(row, r, side="right") for row, r in zip(passed, drawn, strict=True)]
    others: NDArray[np.int64] = drawn + np.stack(skipped)
    return others
