"""Run directories to runs: what can be read of each, and what it came to."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from dma_lab.attention import later_options
from dma_lab.messages import UserError
from dma_lab.report.conditions import TUNED, Conditions, conditions_of, of_the_model, without
from dma_lab.report.copies import content_of, without_copies
from dma_lab.run_summary import Summary, UnusableSummaryError
from dma_lab.train.rung import rung_name
from dma_lab.train.status import status_in_words

BASELINE = "mha"
_NEEDED = ("attention", "model.name", "optimizer.learning_rate", "schedule", "trainer.validation_tokens")
_SCORES = {"document_nats", "document_tokens", "position_nats", "position_tokens"}


@dataclass(frozen=True)
class Run:
    """A run directory that could be read."""

    path: Path
    name: str
    """Its path below the directory that was read."""
    summary: Summary
    """As written; ``run`` is the directory where it was found."""
    config: DictConfig
    metrics: list[dict[str, Any]]
    scores: dict[str, NDArray[Any]] | None
    """validation.npz; None where there is none that can be read."""
    status: str
    """``finished``, or in words what became of it."""
    conditions: Conditions
    """All that decides the result but the attention."""
    rung: str
    """What the model is called; two models may share it, where ``conditions`` do not."""
    backend: str
    """The attention's name, and the options that tell it from other runs of that name in its cohort."""
    content: str = ""
    """The same of copies of the run (``copies.content_of``)."""
    copies: tuple[str, ...] = ()
    """Names of those that were left out."""
    options: frozenset[str] = frozenset()
    """Of the attention, those that ``backend`` says."""
    untuned: str = ""
    """``backend`` without the options that a file of tuned rates chose (``chosen``)."""
    setting: str = ""
    """What else tells it from other runs of its rung and budget in its cohort: a learning rate, say."""

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def attention(self) -> str:
        return self.summary.attention

    @property
    def chosen(self) -> dict[str, Any]:
        """Options of the attention that a file of tuned rates chose for it in place of the backend's own."""
        return {} if self.summary.tuning is None else self.summary.tuning.options

    @property
    def params(self) -> int:
        """Non-embedding."""
        return self.summary.params_non_embedding

    @property
    def loss(self) -> float:
        """Of a finished run, nats per token of the validation data; of recall per query."""
        assert self.summary.val_loss is not None, "it is finished"
        return self.summary.val_loss

    @property
    def accuracy(self) -> float:
        """Of a finished run of recall."""
        assert self.summary.val_accuracy is not None, "it is finished, and of recall"
        return self.summary.val_accuracy

    @property
    def point(self) -> frozenset[tuple[str, Any]]:
        """What the run shares with the runs of other backends that it may be compared with, by value."""
        return without(self.conditions)

    @property
    def tuned_point(self) -> frozenset[tuple[str, Any]]:
        """The same for runs that were searched for the best learning rate."""
        return without(self.conditions, TUNED)

    @property
    def model(self) -> frozenset[tuple[str, Any]]:
        """Its rung, by value."""
        return of_the_model(self.conditions)

    @property
    def place(self) -> str:
        """Says in words at which point it is."""
        place = f"{self.rung}, {self.summary.tokens:,} tokens, seed {self.summary.seed}"
        return f"{place}, {self.setting}" if self.setting else place

    @property
    def label(self) -> str:
        """Says in a line which run it is."""
        return f"{self.backend}, {self.place}"


@dataclass(frozen=True)
class Unreadable:
    """A run directory that could not be read, and why."""

    name: str
    reason: str


def read_runs(*roots: Path) -> tuple[list[Run], list[Unreadable]]:
    """All runs under ``roots``, by size, budget, seed and backend; a folder below another's is read once, and so is a
    run that lies in several folders: with its evaluations, weights and metrics, if any of the copies has them.

    Raises:
        UserError: there is no such directory, or no run in one of them.
    """
    names: dict[Path, str] = {}
    base = Path(os.path.commonpath([root.absolute() for root in roots]))
    for root in roots:
        if not root.is_dir():
            raise UserError(f"runs={root}: there is no such directory; train.py writes runs to output_dir, outputs/.")
        # A run's directory has a lock from its first moment, and a summary soon after.
        paths = sorted({file.parent for name in ("run.lock", "summary.json") for file in root.absolute().rglob(name)})
        if not paths:
            raise UserError(f"runs={root}: it holds no run; `python train.py output_dir={root}` makes one.")
        names |= {path: str(path.relative_to(base)) for path in paths}
    read = [read_run(path, name) for path, name in names.items()]
    single = without_copies((run for run in read if isinstance(run, Run)), lambda run: run.content, _worth)
    runs = with_rates_by_hand(
        [dataclasses.replace(run, copies=tuple(other.name for other in copies)) for run, copies in single]
    )
    size: dict[frozenset[tuple[str, Any]], int] = {}
    for run in runs:
        size[run.model] = min(run.params, size.get(run.model, run.params))
    runs.sort(key=lambda run: (size[run.model], run.rung, *_order(run)))
    return runs, [problem for problem in read if isinstance(problem, Unreadable)]


def _worth(run: Run) -> tuple[Any, ...]:
    """Of copies the one to read: what others lack cannot be computed again, or takes weights to compute."""
    evaluations = sum(file.stat().st_size for file in (run.path / "evaluation").glob("*.json"))
    return evaluations, (run.path / "checkpoints" / "last.ckpt").exists(), len(run.metrics)


def with_rates_by_hand(runs: list[Run]) -> list[Run]:
    """The runs, those that name a file of tuned rates and have another rate as what they are, at a rate given by hand.

    The command that repeats a run names both, and its rate may be changed. The file's is what its summary's multiplier
    makes of the recipe's; where runs of one attention and model differ and none keeps that, nothing tells which it is.
    """
    rates: dict[Any, set[float]] = {}
    of_file: dict[Any, set[float]] = {}
    for run in runs:
        rates.setdefault(_in_the_file(run), set()).add(run.config.optimizer.learning_rate)
        if run.summary.tuning is not None:
            of_file.setdefault(_in_the_file(run), set()).add(run.config.optimizer.learning_rate)
    found = []
    for run in runs:
        rate, entry = run.config.optimizer.learning_rate, _in_the_file(run)
        if run.config.get("tuned") is not None and len(rates[entry]) > 1 and of_file.get(entry) != {rate}:
            run = dataclasses.replace(run, conditions=run.conditions | {"optimizer.learning_rate": rate})
        found.append(run)
    return found


def _in_the_file(run: Run) -> Any:
    """What decides which rate a file of tuned rates has for a run."""
    conditions = run.conditions
    of_recipe = conditions.get("optimizer.name"), conditions["optimizer.learning_rate"]
    return run.config.get("tuned"), repr(run.config.attention), run.model, *of_recipe


def _order(run: Run) -> tuple[Any, ...]:
    """Within a rung: by budget and seed, then what else was set, MHA first."""
    tuned = run.config.optimizer.learning_rate
    return run.summary.tokens, run.summary.seed, tuned, run.attention != BASELINE, run.attention, run.name


def read_run(path: Path, name: str) -> Run | Unreadable:
    """The run in the directory ``path``, called ``name``, or why it cannot be read."""
    try:
        summary = Summary.read(path)
    except FileNotFoundError:
        return Unreadable(name, "summary.json is missing")
    except UnusableSummaryError as error:
        return Unreadable(name, f"summary.json gives no usable {', '.join(error.keys)}")
    except (OSError, ValueError) as error:
        return Unreadable(name, f"summary.json cannot be believed: {error}")
    try:
        config = OmegaConf.load(path / "config.yaml")
        lacking = [node for node in _NEEDED if OmegaConf.select(config, node) is None]
        if lacking or not isinstance(config, DictConfig):
            return Unreadable(name, f"config.yaml lacks {', '.join(lacking)}")
        config = DictConfig(OmegaConf.merge({"attention": later_options(config.attention.name)}, config))
        conditions, rung = conditions_of(config, summary), rung_name(config.model)
        metrics, content = _metrics(path / "metrics.jsonl"), content_of(path, summary)
    except Exception as error:  # whatever a damaged file raises in the parsers: the others are reported all the same
        return Unreadable(name, " ".join(f"{type(error).__name__}: {error}".split()))
    scores = _scores(path / "validation.npz")
    status = status_in_words(path, summary)
    summary = dataclasses.replace(summary, run=str(path))
    return Run(path, name, summary, config, metrics, scores, status, conditions, rung, summary.attention, content)


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
            arrays = dict(file)
    except Exception:  # a damaged archive raises what zipfile, zlib and NumPy raise; the run is shown without
        return None
    # An archive has sums in single precision, or as counts of a step (dma_lab/report/thinned.py).
    steps = {name: arrays.pop(name) for name in [*arrays] if name.endswith("_step")}
    arrays = {name: sums.astype(np.float64) if sums.dtype.kind == "f" else sums for name, sums in arrays.items()}
    scores = arrays | {name: arrays[name] * step for key, step in steps.items() if (name := key.removesuffix("_step"))}
    return scores if scores.keys() >= _SCORES else None
