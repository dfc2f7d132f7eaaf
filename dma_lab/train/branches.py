"""Many budgets from one training: runs that share a warm-up and a stable phase, and decay each at its own budget.

Until its decay begins, a warmup-stable-decay run does not know its budget (arXiv 2405.18392): batches are a function of
(data, seed, step), and the learning rate of warm-up and peak alone. So the branch at ``b`` times the budget *is* the
plain run of that budget with the first budget's warm-up, and may take its first steps from any shorter branch. Shortest
first, every branch keeps its state where its decay begins, and the next one continues from a copy of that, in a run
directory of its own that is resumed, found finished, evaluated and reported like any other.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dma_lab.data.mqar import RecallSettings
from dma_lab.messages import UserError
from dma_lab.run_summary import Summary
from dma_lab.train.fit_run import fit_run
from dma_lab.train.hardware import Hardware, resolve_hardware
from dma_lab.train.optim import schedule_phases
from dma_lab.train.plan import RunPlan, budget_tokens, padded_vocabulary, plan_run
from dma_lab.train.ranks import find_ranks
from dma_lab.train.settings import TrainSettings
from dma_lab.train.task import prepare_task
from dma_lab.train.trackers import require_logger


@dataclass(frozen=True)
class Branch:
    """The run that decays at ``multiple`` times the budget."""

    multiple: float
    settings: TrainSettings
    """Of the plain run that the branch equals."""
    plan: RunPlan
    decay_start: int
    """Steps before the decay; what longer branches share."""
    first_step: int
    """Steps that a shorter branch takes for it."""

    @property
    def own_share(self) -> float:
        """The part of its steps that the branch takes itself."""
        return 1 - self.first_step / self.plan.steps


def plan_branches(settings: TrainSettings, vocab_size: int, hardware: Hardware) -> list[Branch]:
    """The runs that ``schedule.branches`` asks for, shortest first.

    Raises:
        UserError: a branch is too short for warm-up and decay, equals another, or would train on other data.
    """
    multiples = settings.schedule.branches
    assert multiples, "read_settings lets no empty list through"
    steps = budget_tokens(_at(settings, 1.0, None), vocab_size) // settings.trainer.tokens_per_step
    warmup, _ = schedule_phases(settings.schedule, steps)
    branches: list[Branch] = []
    for multiple in sorted(multiples):
        # The branch at 1 keeps the setting as it stands: it has the plain run's name because it is the plain run.
        own = _at(settings, multiple, settings.schedule.warmup_steps if multiple == 1 else warmup)
        plan = plan_run(_at(settings, multiple, None), vocab_size, hardware)
        decay_start = plan.steps - schedule_phases(own.schedule, plan.steps)[1]
        if decay_start < warmup:
            raise UserError(
                f"schedule.branches={multiples}: the branch at {multiple:g} has {plan.steps:,} steps and would decay "
                f"from step {decay_start:,} on, within the {warmup:,} steps of warm-up that all branches share; leave "
                "it out or shorten the warm-up."
            )
        if branches and branches[-1].plan.steps == plan.steps:
            raise UserError(
                f"schedule.branches={multiples}: the branches at {branches[-1].multiple:g} and {multiple:g} both come "
                f"to {plan.steps:,} steps of trainer.tokens_per_step={settings.trainer.tokens_per_step}; leave one out."
            )
        first_step = branches[-1].decay_start if branches else 0
        branches.append(Branch(multiple, own, plan, decay_start, first_step))
    _refuse_data_cut_by_budget(settings, branches[-1].plan.tokens)
    return branches


def _at(settings: TrainSettings, multiple: float, warmup_steps: int | None) -> TrainSettings:
    """The plain run at ``multiple`` times the budget."""
    schedule = dataclasses.replace(settings.schedule, branches=None, warmup_steps=warmup_steps)
    if multiple == 1:
        return dataclasses.replace(settings, schedule=schedule)
    if settings.tokens is not None:
        return dataclasses.replace(settings, schedule=schedule, tokens=round(multiple * settings.tokens))
    if settings.flops is not None:
        return dataclasses.replace(settings, schedule=schedule, flops=multiple * settings.flops)
    return dataclasses.replace(
        settings, schedule=schedule, tokens_per_parameter=multiple * settings.tokens_per_parameter
    )


def _refuse_data_cut_by_budget(settings: TrainSettings, tokens: int) -> None:
    data = settings.data
    if not isinstance(data, RecallSettings) and data.source == "hub" and data.max_tokens is None:
        raise UserError(
            f"schedule.branches={settings.schedule.branches}: data={data.name} is read as far as a run's budget, so "
            f"every branch would train on another corpus; set data.max_tokens={tokens + 1} (or more) for the branches "
            "and for every run that they are compared with."
        )


def fit_branches(settings: TrainSettings) -> list[Summary]:
    """Train the branches that are not finished, each from the longest finished part of a shorter one.

    A branch that was finished as a plain run kept no state to continue from: the next one then starts further back.

    Returns:
        Their summaries, shortest first. ``tokens``, ``flops``, ``seconds`` and ``tokens_per_second`` are those of the
        whole trajectory, the steps that a shorter branch took (``steps_shared``) included.

    Raises:
        UserError: before anything is trained, for whatever is wrong with any of the branches; later for what befell
            one, with the summaries of those that were ``finished`` before it.
    """
    hardware = resolve_hardware(settings.trainer)
    require_logger(settings.logger)
    branches = plan_branches(settings, settings.model.vocab_size, hardware)
    task = prepare_task(settings, branches[-1].plan.tokens)
    branches = plan_branches(settings, padded_vocabulary(task.vocab_size), hardware)
    for branch in branches:
        task.draw(branch.plan)  # else a corpus too small for the last branch would be noticed after all the others
    if find_ranks(settings.trainer.devices, settings.trainer.num_nodes).first:
        print_branches(branches, console=Console(file=sys.stderr, width=None if sys.stderr.isatty() else 120))
    summaries: list[Summary] = []
    shorter: list[tuple[Path, int]] = []
    for branch in branches:
        try:
            summaries.append(fit_run(branch.settings, keep_step=branch.decay_start, shorter=shorter))
        except UserError as error:
            error.finished = summaries
            raise
        shorter.insert(0, (Path(summaries[-1].run), branch.decay_start))
    return summaries


def branch_steps(branches: list[Branch]) -> int:
    """Steps that training all of them takes."""
    return sum(branch.plan.steps - branch.first_step for branch in branches)


def print_branches(branches: list[Branch], console: Console) -> None:
    """What every branch is, and what they cost together and one by one."""
    table = Table(title="branches of one training", title_justify="left")
    for column in ("budget", "tokens", "steps", "decays from", "own steps", "own FLOP executed"):
        table.add_column(column, justify="right")
    for branch in branches:
        plan = branch.plan
        table.add_row(
            f"{branch.multiple:g}",
            f"{plan.tokens:,}",
            f"{plan.steps:,}",
            f"{branch.decay_start:,}",
            f"{plan.steps - branch.first_step:,}",
            f"{branch.own_share * plan.flops.executed:.3g}",
        )
    together = math.fsum(branch.own_share * branch.plan.flops.executed for branch in branches)
    apart = math.fsum(branch.plan.flops.executed for branch in branches)
    table.add_section()
    table.add_row("all", "", "", "", f"{branch_steps(branches):,}", f"{together:.3g}")
    console.print(table)
    console.print(
        f"{together:.3g} FLOP executed for all; as separate runs {apart:.3g} ({apart / together:.2f} times as much)"
    )
