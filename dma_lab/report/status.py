"""A directory of runs while sweeps fill it: what runs where, what is finished, what failed and why, what is left.

Reads files alone, and no checkpoint: runs go on undisturbed. Without PyTorch, so that it answers at once.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dma_lab.messages import UserError
from dma_lab.report.copies import content_of, without_copies
from dma_lab.report.remaining import Cost, cost_of, seconds_of
from dma_lab.run_summary import Summary
from dma_lab.train.status import status_in_words
from dma_lab.train.sweep_points import Point, SweepRecord, read_sweep

_LINES = 20
"""Of speed.jsonl, by which a run's rate is measured: its last ones."""


@dataclass(frozen=True)
class RunStatus:
    """A run directory as it stands."""

    path: Path
    summary: Summary | None
    """None where none can be read yet."""
    state: str
    """``running``, ``finished``, ``starting``, or in words what became of it."""
    step: int = 0
    loss: float | None = None
    seconds_per_step: float | None = None
    """Validation and checkpoints included."""
    since_line: float = 0.0
    """Seconds since the last line was written."""
    cost: Cost | None = None
    attention: str = ""
    """The backend's name, without what makes a control of it."""
    content: str = ""
    """The same of copies of the run (``copies.content_of``)."""

    @property
    def process(self) -> dict[str, Any]:
        """That trains it; empty where its summary names none."""
        return {} if self.summary is None else self.summary.process or {}

    @property
    def seconds_left(self) -> float | None:
        """None where no step has been measured."""
        if self.state == "finished":
            return 0.0
        if self.seconds_per_step is None or self.summary is None:
            return None
        expected = (self.summary.steps - self.step) * self.seconds_per_step
        return max(0.0, expected - (self.since_line if self.state == "running" else 0.0))


@dataclass(frozen=True)
class PointsLeft:
    """Points of sweeps that nobody has begun, or that were stopped."""

    sweep: Path
    alive: bool
    """Whether a process goes through them now."""
    overrides: list[str]


@dataclass(frozen=True)
class Status:
    """Everything that ``report.py status`` says."""

    runs: list[RunStatus]
    """A run that lies in several folders stands here once."""
    failed: list[Point]
    """Points of sweeps that failed."""
    left: list[PointsLeft] = field(default_factory=list)
    points: tuple[int, int] | None = None
    """Of the living sweeps: points that are done, and all; None where nobody knows how many there are."""
    preparing: list[Point] = field(default_factory=list)
    """Points whose process trains no run at the moment: it reads data, or goes from one branch to the next."""
    seconds_left: float | None = None
    """Until everything that runs, and every point of a living sweep, is done; None where nothing runs."""
    unmeasured: int = 0
    """Runs and points that ``seconds_left`` knows nothing of."""
    copies: int = 0
    """Of runs in ``runs``, left out."""


def read_status(root: Path) -> Status:
    """How the runs under ``root`` stand.

    Raises:
        UserError: there is no such directory.
    """
    if not root.is_dir():
        raise UserError(f"runs={root}: there is no such directory; train.py writes runs to output_dir, outputs/.")
    paths = sorted({file.parent for name in ("run.lock", "summary.json") for file in root.rglob(name)})
    # Of a run that is being trained, and what was copied of it just now, the one that is.
    single = without_copies(
        map(_read_run, paths), lambda run: run.content or run.path, lambda run: run.state == "running"
    )
    runs = [run for run, _ in single]
    sweeps = [read_sweep(folder) for folder in sorted(root.rglob(".sweep-*"))]
    done = {point.overrides for sweep in sweeps for point in sweep.begun if _is_done(point)}
    failed = {
        point.overrides: point
        for sweep in sweeps
        for point in sweep.begun
        if point.failure is not None and point.overrides not in done
    }
    at_work = {point.overrides: point for sweep in sweeps if sweep.alive for point in sweep.begun if not point.ended}
    over = done | failed.keys() | at_work.keys()
    left, listed = [], set(over)
    for sweep in sorted(sweeps, key=lambda sweep: not sweep.alive):
        own = [overrides for overrides in _points(sweep) if overrides not in listed]
        listed |= set(own)
        if own:
            left.append(PointsLeft(sweep.folder, sweep.alive, own))
    alive = {overrides for sweep in sweeps if sweep.alive for overrides in sweep.all or ()}
    ended = len(alive & (done | failed.keys()))
    known = alive and not any(sweep.alive and sweep.all is None for sweep in sweeps)
    waiting = [overrides for group in left if group.alive for overrides in group.overrides]
    seconds, unmeasured = _seconds_left(runs, list(at_work.values()), waiting)
    held = {_process(run.process) for run in runs if run.state == "running"}
    preparing = [point for point in at_work.values() if _process(point.process or {}) not in held]
    points = (ended, len(alive)) if known else None
    return Status(
        runs,
        list(failed.values()),
        left,
        points,
        preparing,
        seconds,
        unmeasured,
        sum(len(copies) for _, copies in single),
    )


def _process(process: Mapping[str, Any]) -> tuple[Any, Any]:
    """What tells it from others."""
    return process.get("host"), process.get("pid")


def _points(sweep: SweepRecord) -> list[str]:
    return [point.overrides for point in sweep.begun] if sweep.all is None else sweep.all


def _is_done(point: Point) -> bool:
    if point.held is not None:
        try:
            return Summary.read(Path(point.held), beside=()).status == "finished"
        except (OSError, ValueError):
            return False
    return point.ended and point.failure is None


def _seconds_left(runs: list[RunStatus], at_work: list[Point], waiting: list[str]) -> tuple[float | None, int]:
    """Until all is done that runs or waits, and how much of it could not be measured.

    Points wait for the processes that are at work now: each takes the next one when it is done.
    """
    running = [run for run in runs if run.state in ("running", "starting")]
    if not running and not at_work:
        return None, 0
    measured = [
        (run.cost, run.attention, run.seconds_per_step * run.summary.steps)
        for run in runs
        if run.cost is not None and run.seconds_per_step is not None and run.summary is not None
    ]
    rests, unmeasured = [], 0
    by_process = {_process(point.process or {}): point.overrides for point in at_work}
    for run in running:
        rest = run.seconds_left
        later = by_process.pop(_process(run.process), None)
        if later is not None and run.cost is not None:  # of a training with branches, those after this one
            further = seconds_of(later, measured, after_tokens=run.cost.tokens)
            rest = None if rest is None or further is None else rest + further
        rests.append(rest)
    rests += [seconds_of(overrides, measured) for overrides in by_process.values()]  # between two runs
    queue = [seconds_of(overrides, measured) for overrides in waiting]
    known = [rest for rest in (*rests, *queue) if rest is not None]
    unmeasured = len(rests) + len(queue) - len(known)
    workers = max(1, len(rests))
    return max(*known, sum(known) / workers) if known else None, unmeasured


def _read_run(path: Path) -> RunStatus:
    try:
        summary = Summary.read(path, beside=())
    except FileNotFoundError:
        return RunStatus(path, None, "starting")
    except (OSError, ValueError) as error:
        return RunStatus(path, None, f"summary.json cannot be believed: {error}")
    state = status_in_words(path, summary)
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        cost, attention = cost_of(config["model"], summary.tokens), config["attention"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        cost, attention = None, ""  # not written yet, or damaged: of use to the forecast alone
    content = content_of(path, summary)
    if state == "finished":
        whole = sum((summary.seconds or {}).values()) / summary.steps
        return RunStatus(
            path, summary, state, summary.steps, summary.val_loss, whole or None, 0.0, cost, attention, content
        )
    metrics, speed = (list(_lines(path / name)) for name in ("metrics.jsonl", "speed.jsonl"))
    last = metrics[-1] if metrics else {}
    age = time.time() - (path / "metrics.jsonl").stat().st_mtime if metrics else 0.0
    step, loss = last.get("step", 0), last.get("loss")
    return RunStatus(path, summary, state, step, loss, _pace(speed), age, cost, attention, content)


def _pace(speed: list[dict[str, Any]]) -> float | None:
    """Seconds per step over the last lines of speed.jsonl, or of the steps up to the only one."""
    lines = [line for line in speed if "seconds" in line][-_LINES:]
    if not lines:
        return None
    first, last = lines[0], lines[-1]
    if len(lines) == 1:  # what came before the first step, imports and data, is over
        first, last = {"step": 0, "seconds": 0.0}, last | {"seconds": last.get("training_seconds", last["seconds"])}
    steps, seconds = last["step"] - first["step"], last["seconds"] - first["seconds"]
    return seconds / steps if steps > 0 and seconds > 0 else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Those that are whole."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for row in text.splitlines():
        try:
            line = json.loads(row)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line
