"""A run before it trains: its data, its plan, its directory, and what is known of it."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dma_lab.run_summary import Known
from dma_lab.threads import use_threads
from dma_lab.train.beginning import Beginning, prepare_beginning
from dma_lab.train.hardware import Hardware, resolve_hardware
from dma_lab.train.identity import run_name
from dma_lab.train.plan import RunPlan, budget_tokens, matched_model, padded_vocabulary, plan_run
from dma_lab.train.ranks import Ranks
from dma_lab.train.reading import recipe_rate
from dma_lab.train.rung import rung_name
from dma_lab.train.runs import RunDirectory, git_commit
from dma_lab.train.settings import TrainSettings
from dma_lab.train.task import Task, TextTask, prepare_task
from dma_lab.train.timing import Timing
from dma_lab.train.trackers import require_logger


@dataclass(frozen=True)
class PreparedRun:
    """What is known of a run before anything is written."""

    task: Task
    plan: RunPlan
    hardware: Hardware
    beginning: Beginning | None
    run: RunDirectory
    known: Known

    @property
    def digest(self) -> str | None:
        """Of the weights that it begins with, if those are another run's."""
        return None if self.beginning is None else self.beginning.digest


def prepare_run(settings: TrainSettings, ranks: Ranks, timing: Timing) -> PreparedRun:
    """Prepare the data, plan the run, and find its directory.

    Raises:
        UserError: for anything in the settings or the data that a user can fix.
    """
    hardware = resolve_hardware(settings.trainer)
    require_logger(settings.logger)
    matched_model(settings, settings.model.vocab_size)  # what cannot be is refused before a corpus is read
    with timing.measured("data"):
        task = prepare_task(settings, budget_tokens(settings, settings.model.vocab_size))
        plan = plan_run(settings, padded_vocabulary(task.vocab_size), hardware)
        task.draw(plan)  # what it refuses is said before anything is written
    use_threads(plan.micro_batch_flops, hardware.device)
    hardware = resolve_hardware(settings.trainer)  # whose name says how many
    tokenizer_file = task.data.tokenizer_file if isinstance(task, TextTask) else None
    beginning = prepare_beginning(settings, plan, say=ranks.first, tokenizer_file=tokenizer_file)
    digest = None if beginning is None else beginning.digest
    name = run_name(settings, task.fingerprint, hardware.precision, digest)
    run = RunDirectory(Path(settings.output_dir) / name, writer=ranks.first)
    known = _known_before(run, settings, plan, task, hardware)
    if beginning is not None:
        known = replace(known, init_from_digest=digest, init_from_anew=beginning.anew, init_from_left=beginning.left)
    return PreparedRun(task, plan, hardware, beginning, run, known)


def _known_before(run: RunDirectory, settings: TrainSettings, plan: RunPlan, task: Task, hardware: Hardware) -> Known:
    return Known(
        run=str(run.path),
        study=settings.study,
        model=settings.model.name,
        rung=rung_name(vars(settings.model)),
        attention=settings.attention.label,
        match=settings.match,
        seed=settings.seed,
        params_total=plan.parameters.total,
        params_non_embedding=plan.parameters.non_embedding,
        d_ff=plan.shape.d_ff,
        context=plan.shape.max_seq_len,
        steps=plan.steps,
        tokens=plan.tokens,
        recipe_learning_rate=recipe_rate(settings),
        tuning=settings.tuning,
        flops=plan.flops.dense_equivalent,
        flops_executed=plan.flops.executed,
        unigram_entropy=task.unigram_entropy,
        data_fingerprint=task.fingerprint,
        tokenizer_loses=task.tokenizer_loses,
        hardware=f"{settings.trainer.processes} x {hardware.name}",
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        precision=hardware.precision,
        compiled=hardware.compile,
        torch=str(torch.__version__),
        git_commit=git_commit(),
    )
