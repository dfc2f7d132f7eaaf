"""Run directories to runs: what can be read of each, what it came to, and which may stand side by side."""

import dataclasses
import fcntl
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from dma_lab.messages import UserError

IDENTITY = ("study", "model", "attention", "match", "data_fingerprint", "precision", "hardware", "torch", "git_commit")
COSTS = ("seed", "context", "params_total", "params_non_embedding", "tokens", "steps", "flops", "flops_executed")
OUTCOME = ("val_loss", "val_perplexity", "tokens_per_second", "peak_memory_bytes")
"""Of finished runs alone."""
BY_TASK = ("val_bits_per_byte", "val_text_bits_per_byte", "val_accuracy")
"""Of finished runs of text, and of recall."""
_SCORES = {"document_nats", "document_tokens", "position_nats", "position_tokens"}


@dataclass(frozen=True)
class Run:
    """A run directory that could be read."""

    path: Path
    name: str
    """Its path below the directory that was read."""
    summary: dict[str, Any]
    """As written; ``run`` is the directory where it was found."""
    config: DictConfig
    metrics: list[dict[str, Any]]
    scores: dict[str, NDArray[Any]] | None
    """validation.npz; None where there is none that can be read."""
    status: str
    """``finished``, or in words what became of it."""
    backend: str
    """The attention's name, and the options that tell it from other runs of that name in its cohort."""

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def attention(self) -> str:
        return self.summary["attention"]

    @property
    def params(self) -> int:
        """Non-embedding."""
        return self.summary["params_non_embedding"]

    @property
    def point(self) -> tuple[str, int, int]:
        """What the run shares with the runs of other backends: rung, tokens, seed."""
        return self.summary["model"], self.summary["tokens"], self.summary["seed"]

    @property
    def label(self) -> str:
        """Says in a line which run it is."""
        model, tokens, seed = self.point
        return f"{self.backend}, {model}, {tokens:,} tokens, seed {seed}"


@dataclass(frozen=True)
class Unreadable:
    """A run directory that could not be read, and why."""

    name: str
    reason: str


def read_runs(root: Path) -> tuple[list[Run], list[Unreadable]]:
    """All runs under ``root``, by size, budget, seed and backend.

    Raises:
        UserError: there is no such directory, or no run in it.
    """
    if not root.is_dir():
        raise UserError(f"runs={root}: there is no such directory; train.py writes runs to output_dir, outputs/.")
    # A run's directory has a lock from its first moment, and a summary soon after.
    paths = sorted({file.parent for name in ("run.lock", "summary.json") for file in root.rglob(name)})
    if not paths:
        raise UserError(f"runs={root}: it holds no run; `python train.py output_dir={root}` makes one.")
    read = [_read(path, str(path.relative_to(root))) for path in paths]
    runs = [run for run in read if isinstance(run, Run)]
    size: dict[str, int] = {}
    for run in runs:
        size[run.summary["model"]] = min(run.params, size.get(run.summary["model"], run.params))
    runs.sort(key=lambda run: (size[run.summary["model"]], *run.point, run.attention != "mha", run.attention, run.name))
    return runs, [problem for problem in read if isinstance(problem, Unreadable)]


def cohorts(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that may share a table and a figure: of one study, one data fingerprint, one way of matching, one precision,
    scored on as many validation tokens. The name says what tells the cohort apart."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        summary = run.summary
        key = (
            summary["study"],
            f"data {summary['data_fingerprint'][:8]}",
            f"matched by {summary['match']}",
            summary["precision"],
            f"{run.config.trainer.validation_tokens:,} validation tokens",
        )
        groups.setdefault(", ".join(key), []).append(run)
    return {name: _name_variants(members) for name, members in groups.items()}


def _name_variants(runs: Sequence[Run]) -> list[Run]:
    """The runs, their ``backend`` naming the options (and, within a rung, the contexts) that vary for its attention."""
    options = [_options(run) for run in runs]
    named = []
    for run, own in zip(runs, options, strict=True):
        peers = [o for other, o in zip(runs, options, strict=True) if other.attention == run.attention]
        varied = [f"{name}={value}" for name, value in own.items() if any(peer.get(name) != value for peer in peers)]
        contexts = {other.summary["context"] for other in runs if other.summary["model"] == run.summary["model"]}
        if len(contexts) > 1:
            varied.append(f"context={run.summary['context']}")
        named.append(dataclasses.replace(run, backend=" ".join((run.attention, *varied))))
    return named


def _options(run: Run) -> dict[str, Any]:
    return {str(name): value for name, value in run.config.attention.items() if name != "name"}


def _read(path: Path, name: str) -> Run | Unreadable:
    try:
        summary = json.loads((path / "summary.json").read_text())
        status = summary["status"]
        wrong = [key for key in IDENTITY if not isinstance(summary.get(key), str)]
        numbers = [*COSTS, *(OUTCOME if status == "finished" else ()), *(key for key in BY_TASK if key in summary)]
        wrong += [key for key in numbers if not isinstance(summary.get(key), int | float)]
        if wrong:
            return Unreadable(name, f"summary.json gives no usable {', '.join(wrong)}")
        config = OmegaConf.load(path / "config.yaml")
        if OmegaConf.select(config, "trainer.validation_tokens") is None or "attention" not in config:
            return Unreadable(name, "config.yaml lacks trainer.validation_tokens or attention")
        assert isinstance(config, DictConfig)
        metrics = _metrics(path / "metrics.jsonl")
    except FileNotFoundError as error:
        return Unreadable(name, f"{Path(error.filename).name} is missing")
    except Exception as error:  # whatever a damaged file raises in the parsers: the others are reported all the same
        return Unreadable(name, " ".join(f"{type(error).__name__}: {error}".split()))
    summary["run"] = str(path)
    scores = _scores(path / "validation.npz")
    return Run(path, name, summary, config, metrics, scores, _status(path, summary), summary["attention"])


def _status(path: Path, summary: dict[str, Any]) -> str:
    status = summary["status"]
    if status == "finished":
        return status if math.isfinite(summary["val_loss"]) else f"diverged: val_loss is {summary['val_loss']}"
    if status in ("failed", "diverged"):
        return f"{status}: {summary.get('reason', 'no reason given')}"
    if status == "running":
        return "running" if _is_held(path / "run.lock") else "killed before its end; the same command continues it"
    if status == "interrupted":
        return f"interrupted at step {summary.get('step', '?')} of {summary['steps']}; the same command continues it"
    return str(status)


def _is_held(lock: Path) -> bool:
    """Whether a process holds the run."""
    try:
        with lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines written, each with its tokens and loss; a last one that was cut off is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    parsed = []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"line {number} of metrics.jsonl is damaged") from error
            continue
        if not {"tokens", "loss"} <= line.keys():
            raise ValueError(f"line {number} of metrics.jsonl has no tokens or no loss")
        parsed.append(line)
    return parsed


def _scores(path: Path) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(path) as file:
            scores = dict(file)
    except Exception:  # a damaged archive raises what zipfile, zlib and NumPy raise; the run is shown without
        return None
    return scores if scores.keys() >= _SCORES else None
