"""One run from settings to summary: prepare the data, find the run's directory, train or continue, score, sum up."""

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from dma_lab.checkpoints import DamagedCheckpointError, read_checkpoint
from dma_lab.messages import warn_once
from dma_lab.run_summary import Begun, Known, Summary
from dma_lab.train.continuing import prepare_start
from dma_lab.train.divergence import DivergedError
from dma_lab.train.hardware import machine_in_words
from dma_lab.train.identity import state_identity
from dma_lab.train.launch import hold_run
from dma_lab.train.memory import refuse_beyond_memory
from dma_lab.train.micro_batches import train_within_memory
from dma_lab.train.peers import Peers
from dma_lab.train.plan_table import short_plan
from dma_lab.train.prepared import PreparedRun, prepare_run
from dma_lab.train.process import device_in_words, this_process
from dma_lab.train.ranks import Ranks, find_ranks
from dma_lab.train.run_log import last_step
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import TrainSettings
from dma_lab.train.signals import StopRequest
from dma_lab.train.stopped import stopped_neighbour
from dma_lab.train.summary import of_another_run
from dma_lab.train.timing import Timing
from dma_lab.train.trackers import run_log
from dma_lab.train.training import Training


def fit_run(
    settings: TrainSettings,
    *,
    keep_step: int | None = None,
    shorter: Sequence[tuple[Path, int]] = (),
    ranks: Ranks | None = None,
) -> Summary:
    """Train the run that ``settings`` define, or continue it where it was cut; returns its summary.

    A finished run is not trained again. A run that is asked to stop (``signals.STOPPING``) ends this process, if it
    trains after saving. It is held while it trains: of several processes that are given one run, one trains it.

    Args:
        settings: of one run: ``schedule.branches`` is for ``branches.fit_branches``.
        keep_step: a step after which the state is kept for longer branches.
        shorter: runs that this one equals up to a step, each with that step, the furthest first: a run that has not
            begun begins from the state that the first of them kept.
        ranks: this process's part in the run; found out unless given.

    Raises:
        UserError: for anything in the settings or the data that a user can fix.
        RunHeldError: another process trains the run.
        DivergedError: the run diverged, now or before.
    """
    with StopRequest() as stop:
        timing = Timing()
        ranks = ranks or find_ranks(settings.trainer.devices, settings.trainer.num_nodes)
        rank_zero_only.rank = ranks.rank  # type: ignore[attr-defined] # Lightning took it from any launcher's variables
        prepared = prepare_run(settings, ranks, timing)
        if not ranks.launched and (finished := _ended_before(prepared.run, settings, prepared.known)):
            return finished
        if ranks.first:
            print(short_plan(settings, prepared.plan), file=sys.stderr)
        refuse_beyond_memory(prepared.plan, settings.model.name, settings.trainer, prepared.hardware)
        others = partial(fit_run, settings, keep_step=keep_step, shorter=shorter)
        with hold_run(prepared.run, ranks, prepared.hardware.device, others) as peers:
            # Again, for whoever held it until now may have finished it.
            if finished := _ended_before(prepared.run, settings, prepared.known):
                return finished
            summary = _train_or_continue(settings, prepared, peers, stop, timing, keep_step, shorter)
        diverged = _diverged("diverged", prepared.run, summary, settings) if summary.status == "diverged" else None
        if stop.number is not None:  # also of a finished run: what would come after it was not to begin
            if ranks.first:
                how = "finished before it stopped" if summary.status == "finished" else "stopped and saved"
                print(diverged or f"{how}; the same command continues {prepared.run.path}", file=sys.stderr)
            raise SystemExit(128 + stop.number)
    if diverged:
        raise diverged
    return summary


def _train_or_continue(
    settings: TrainSettings,
    prepared: PreparedRun,
    peers: Peers,
    stop: StopRequest,
    timing: Timing,
    keep_step: int | None,
    shorter: Sequence[tuple[Path, int]],
) -> Summary:
    """The summary of a run that is held, written at its beginning and at its end, however it ends."""
    task, plan, hardware, run = prepared.task, prepared.plan, prepared.hardware, prepared.run
    if run.writer and (neighbour := stopped_neighbour(run, settings.written())):
        run.say(neighbour)
    peers.wait()  # all have looked, before the writer changes what they look at
    identity_at = partial(state_identity, settings, plan.steps, task.fingerprint, hardware.precision, prepared.digest)
    logged = last_step(run)
    start = prepare_start(run, identity_at, shorter)
    peers.wait()  # the others find the checkpoint that the writer chose
    machine = machine_in_words(prepared.known)
    earlier = sorted(set(start.machines) - {machine})
    if run.writer and earlier:
        warn_once(
            f"earlier steps of {run.path} were taken on {'; '.join(earlier)}: machines round differently, so the "
            "report will compare this run with no other."
        )
    begun = Begun(**vars(prepared.known), steps_shared=start.steps_shared, earlier_machines=tuple(earlier))
    summary = Summary(**vars(begun), status="running")
    device = device_in_words(hardware.device.type, hardware.device.index, settings.trainer.processes)
    run.write_summary(replace(summary, process=this_process() | {"device": device}))
    try:
        with run_log(settings, run, logged) as log:
            training = Training(
                settings=settings,
                plan=plan,
                task=task,
                run=run,
                hardware=hardware,
                peers=peers,
                stop=stop,
                start=replace(start, machines=sorted({*start.machines, machine})),
                identity_at=identity_at,
                keep_step=keep_step,
                beginning=prepared.beginning,
                timing=timing,
                log=log,
            )
            micro = start.micro_batch_sequences if peers.ranks.count == 1 else None
            end = train_within_memory(training, micro, partial(prepare_start, run, identity_at, shorter))
            summary = replace(summary, **vars(end))
            log.exit_code = 0 if summary.status == "finished" else 1
        run.write_summary(summary)
    except BaseException as error:
        cause = stop.came_of(error) or peers.explain(error)
        with suppress(OSError):  # the disk may be what failed
            run.write_summary(_cut_off(summary, run, cause))
        raise cause from (None if cause is error else error)
    return summary


def _ended_before(run: RunDirectory, settings: TrainSettings, known: Known) -> Summary | None:
    """The summary of a run that took all its steps, None of one that is to be trained.

    Raises:
        DivergedError: it diverged.
    """
    summary = run.summary()
    if summary is None or not summary.has_ended:
        return None
    if wrong := of_another_run(summary, known):
        run.say(f"{run.path / 'summary.json'} is of another run: it has another {', '.join(wrong)}; it is made again")
        return None
    if summary.status == "finished" and summary.step != summary.steps:
        run.say(f"{run.path / 'summary.json'} was written at step {summary.step} of {summary.steps}")
        return None
    with suppress(FileNotFoundError):  # weights may have been removed to save room
        try:
            read_checkpoint(run.checkpoint, mmap=True)
        except DamagedCheckpointError:
            return None  # preparing the start says so, and takes the one before
    if summary.status == "diverged":
        raise _diverged("diverged before", run, summary, settings)
    loss = f"{summary.val_loss:.4f} nats per token"
    print(f"finished before: {run.path}, {loss} (delete it to train again)", file=sys.stderr)
    return replace(summary, finished_before=True)


def _cut_off(summary: Summary, run: RunDirectory, end: BaseException) -> Summary:
    """How a run stands that ended by an exception: what was saved last is what it continues from."""
    if isinstance(end, Exception):
        return replace(summary, status="failed", reason=f"{type(end).__name__}: {end}")
    number = end.code - 128 if isinstance(end, SystemExit) and isinstance(end.code, int) else int(signal.SIGINT)
    begun = run.checkpoint.exists()  # whose step is not read: there may be seconds left
    return replace(summary, status="interrupted", signal=number, step=summary.step if begun else 0)


def _diverged(when: str, run: RunDirectory, summary: Summary, settings: TrainSettings) -> BaseException:
    if not run.writer:  # one process speaks for all
        return SystemExit(DivergedError.exit_status)
    return DivergedError(
        f"{run.path} {when}, at step {summary.step} of {summary.steps}: {summary.reason}; give a smaller "
        f"optimizer.learning_rate than {settings.optimizer.learning_rate:g}, or delete it to train it once more."
    )
