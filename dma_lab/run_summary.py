"""``summary.json``: a run's results, with a digest of itself and, once the run has ended, of the files beside it.

They come in stages, each a class here: ``Known`` before anything is written, ``Begun`` when the run's start is found,
``End`` when training is over. The file has them side by side, in the order of the fields; what is None has no key.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dma_lab.files import write_whole
from dma_lab.seals import sealed, unsealed
from dma_lab.settings import Count, Positive

SUMMARY = "summary.json"
BESIDE = ("config.yaml", "metrics.jsonl", "speed.jsonl", "validation.npz")
"""Files that no longer change once a run has ended. Checkpoints vouch for themselves."""
LIFETIMES = "lifetimes.npz"
"""How long DMA's keys live, once that was measured (dma_lab/evaluation/lifetimes.py)."""
OUTCOME = ("val_loss", "val_perplexity", "tokens_per_second", "peak_memory_bytes")
"""What every finished run has."""
_FILES = "files"
_OF_NO_FILE = ("further", "finished_before")
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # and other keys are let be, which a later version may write


@dataclass(frozen=True)
class Tuned:
    """What one run takes of a file of tuned rates (dma_lab/train/tuned.py), which may be gone when the run is read."""

    __pydantic_config__ = _STRICT
    multiplier: Positive
    """Of the recipe's rate."""
    options: dict[str, Any]
    """Of the attention, that the file chose in place of the backend's own."""
    trainings: Count
    """That were spent on the backend."""
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Known:
    """Of a run before anything of it is written."""

    run: str
    """Its directory."""
    study: str
    model: str
    rung: str
    """What the model is called by its shape, whatever its name."""
    attention: str
    """The backend's name, with what makes a control of it."""
    match: str
    seed: int
    params_total: int
    params_non_embedding: int
    d_ff: int
    """Width of the feed-forward layer, as matching found it."""
    context: int
    """Tokens per sequence."""
    steps: int
    """Of the whole run."""
    tokens: int
    """Of the whole run."""
    recipe_learning_rate: float | None = None
    """For its rung, budget, batch and optimizer; None of runs from before that was written."""
    tuning: Tuned | None = None
    """None of a run at no tuned rate."""
    flops: int
    """Of the whole training, as if every query saw all keys before it."""
    flops_executed: int
    """Of the whole training, as the backend computes it."""
    unigram_entropy: float
    """Nats per token: what knowing frequencies alone gives."""
    data_fingerprint: str
    tokenizer_loses: str | None = None
    """What the tokenizer loses of text, in words: such a run has no bits per byte. None of one that loses nothing."""
    hardware: str
    """Devices, by number and name."""
    cpu_capability: str
    """AVX2, AVX512, …: it counts on a GPU too, since initial weights are drawn on the CPU."""
    precision: str
    """``fp32`` or ``bf16``."""
    compiled: bool
    torch: str
    """PyTorch's version."""
    git_commit: str
    init_from_digest: str | None = None
    """Of the weights that the run began with; None of one that began with chance, of the next two, too."""
    init_from_anew: tuple[str, ...] | None = None
    """Parameters that these had not."""
    init_from_left: tuple[str, ...] | None = None
    """Those of theirs that the model has no place for."""


@dataclass(frozen=True, kw_only=True)
class Begun(Known):
    """Of a run whose start is found."""

    steps_shared: int
    """How many of its steps another run took (dma_lab/train/branches.py)."""
    earlier_machines: tuple[str, ...]
    """In words, those other than this one that took steps."""


Status = Literal["running", "finished", "interrupted", "failed", "diverged"]


@dataclass(frozen=True, kw_only=True)
class End:
    """What training adds. Until it is over that is the status."""

    step: int | None = None
    """The last step taken; None where it was not told."""
    steps_skipped: int | None = None
    """Those whose loss or gradient was not finite."""
    tokens_per_second: float | None = None
    """Of steps alone, once compiled, the median over the run; None where no step was taken after compiling. It has a
    key, null, wherever ``seconds`` has."""
    mfu_executed: float | None = None
    """Part of the peak, by ``flops_executed``; None where no peak is known."""
    mfu_dense_equivalent: float | None = None
    """The same by ``flops``."""
    seconds: dict[str, float] | None = None
    """By part (``dma_lab.train.timing.PARTS``), over all processes that trained the run one after another."""
    peak_memory_bytes: int | None = None
    """On one device."""
    val_loss_at_start: float | None = None
    """Nats per token, of a run that began with the weights of another."""
    kernels: str | None = None
    """What the attention ran on."""
    val_loss: float | None = None
    """Nats per token; of recall per query."""
    val_perplexity: float | None = None
    val_bits_per_byte: float | None = None
    """Of text, with what says where documents end."""
    val_text_bits_per_byte: float | None = None
    """Of the text alone."""
    val_accuracy: float | None = None
    """Of recall: the share of queries answered right."""
    val_accuracy_by_pairs: dict[str, float] | None = None
    """The same by number of pairs."""
    val_accuracy_by_gap: dict[str, float] | None = None
    """The same by octave of the gap from a key to its query, in tokens: ``"5-8"``."""
    status: Status
    reason: str | None = None
    """Why it failed or diverged."""
    signal: int | None = None
    """That interrupted it."""
    batch: dict[str, Any] | None = None
    """Of a run that diverged, the first batch that shows it: ``step``, ``sequences``, and of text ``documents``."""


@dataclass(frozen=True, kw_only=True)
class Summary(End, Begun):
    """All of it."""

    __pydantic_config__ = _STRICT
    process: dict[str, Any] | None = None
    """While it is running, the process that trains it (dma_lab/train/process.py), and ``device``."""
    further: dict[str, Any] = field(default_factory=dict)
    """Keys that this version does not know: kept, so that an archive loses nothing that another version wrote."""
    finished_before: bool = field(default=False, compare=False)
    """Whether an earlier command trained it. Of no file."""

    @property
    def has_ended(self) -> bool:
        """Whether it took all its steps or was given up: it will not be trained on."""
        return self.status in ("finished", "diverged")

    def written(self) -> dict[str, Any]:
        """As the file has it, but for digests."""
        found = {name: value for name, value in asdict(self).items() if name not in _OF_NO_FILE}
        absent = {name for name, value in found.items() if value is None}
        if self.seconds is not None:
            absent -= {"tokens_per_second"}
        return {name: value for name, value in found.items() if name not in absent} | self.further

    def write(self, run: Path) -> None:
        """Write the summary of the run in the directory ``run``.

        Raises:
            OSError: as the system reports it.
        """
        content = self.written()
        if self.has_ended:
            content[_FILES] = {name: _digest(run / name) for name in BESIDE if (run / name).exists()}
        write_whole(run / SUMMARY, sealed(content))

    @classmethod
    def read(cls, run: Path, *, beside: Sequence[str] = BESIDE) -> "Summary":
        """What was written last for the run in the directory ``run``.

        Args:
            beside: the files that have to be what they were when the run ended.

        Raises:
            UnusableSummaryError: it lacks what every run of its status has, or has something of another type.
            ValueError: the summary, or one of these files, is not what was written.
            OSError: as the system reports it.
        """
        content = unsealed((run / SUMMARY).read_text(encoding="utf-8"))
        for name, digest in content.pop(_FILES, {}).items():
            if name not in beside:
                continue
            if not (run / name).exists():
                raise ValueError(f"{name} beside it is missing")
            if _digest(run / name) != digest:
                raise ValueError(f"{name} beside it is not what was written")
        return cls.of(content)

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Summary":
        """What ``written`` made ``content`` of. Raises UnusableSummaryError."""
        known = {name: value for name, value in content.items() if name in _KEYS}
        further = {name: value for name, value in content.items() if name not in _KEYS}
        unusable = _lacking(content) if content.get("status") == "finished" else []
        try:
            summary = _ADAPTER.validate_json(json.dumps(known))  # as JSON, whose arrays it takes for tuples
        except ValidationError as error:
            unusable += dict.fromkeys(str(own["loc"][0]) for own in error.errors())
        if unusable:
            raise UnusableSummaryError(unusable)
        return replace(summary, further=further)


class UnusableSummaryError(ValueError):
    """A summary that somebody wrote so, of a run that this version cannot use."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(f"it gives no usable {', '.join(keys)}")
        self.keys = keys


_KEYS = {own.name for own in fields(Summary)} - set(_OF_NO_FILE)
_ADAPTER = TypeAdapter(Summary)


def _lacking(content: dict[str, Any]) -> list[str]:
    """Of what every finished run has."""
    null = {"tokens_per_second"} & content.keys()
    return [name for name in OUTCOME if content.get(name) is None and name not in null]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
