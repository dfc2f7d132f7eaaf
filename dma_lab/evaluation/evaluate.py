"""The driver of all suites: what the record does not have yet is scored, cell by cell, and everything is shown."""

from contextlib import nullcontext
from pathlib import Path

import torch

from dma_lab.evaluation.checkpoint import TrainedRun, open_run
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine, machine_of, open_model, progress_of
from dma_lab.evaluation.settings import EvaluateSettings
from dma_lab.evaluation.suite import Job, Suite
from dma_lab.messages import UserError


def evaluate(settings: EvaluateSettings) -> Path:
    """Run the suite on the run; cells finished before are kept. Returns the file of the scores.

    Raises:
        UserError: for anything in the settings, the run or the text that a user can fix.
    """
    run = open_run(Path(settings.checkpoint))
    machine = machine_of(settings.device, settings.precision, settings.batch_tokens)
    suite = settings.suite
    try:
        return _evaluate(run, suite, machine)
    except ModuleNotFoundError as error:
        raise UserError(f"suite={suite.name} needs {error.name}: pip install -e '.[eval]'.") from error
    except OSError as error:  # no room, no right, something else by a file's name: wherever it happens
        raise UserError(
            f"suite={suite.name} on {run.path} was stopped by the file system ({error}): fix that and give the same "
            "command again; it resumes."
        ) from error
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise UserError(
            f"batch_tokens={settings.batch_tokens} and the lengths of suite={suite.name} need more memory than this "
            "machine has: lower one or the other."
        ) from error


def _evaluate(run: TrainedRun, suite: Suite, machine: Machine) -> Path:
    with EvaluationRecord(run, suite.name, machine.facts()) as record, machine.autocast():
        jobs = suite.jobs(run, machine, record)
        pending = [job for job in jobs if any(record.scores(cell) is None for cell in job.cells)]
        if pending:
            _score(run, suite, machine, record, pending)
        cells = [cell for job in jobs for cell in job.cells]
        suite.show(run, [(cell, record.scores(cell) or {}) for cell in cells], record.folder)
        return record.file


def _score(run: TrainedRun, suite: Suite, machine: Machine, record: EvaluationRecord, jobs: list[Job]) -> None:
    model = open_model(run, max(job.length for job in jobs), suite.rope_base, machine)
    total, done = sum(job.cost for job in jobs), 0.0
    with progress_of(suite.title, total) if suite.title else nullcontext(lambda done: None) as advance:
        for job in jobs:
            scores = job.score(model, lambda share, done=done, cost=job.cost: advance(done + cost * share))  # type: ignore[misc]
            for cell, of_cell in zip(job.cells, scores, strict=True):
                if record.scores(cell) is None:
                    record.add(cell, of_cell)
            done += job.cost
