"""From runs to the report's sections: what is shown of them, what is refused, and what is missing."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dma_lab.report import tables
from dma_lab.report.both_rates import at_both_rates
from dma_lab.report.cache import recall_against_cache
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import BASELINE, Run, Unreadable
from dma_lab.report.comparison import NO_SPREAD, Comparison
from dma_lab.report.context_figures import loss_by_position, recall_by_gap
from dma_lab.report.control_table import control_table
from dma_lab.report.controls import content_sentences
from dma_lab.report.document import Block, Document, Figure, Heatmap, Notice, Section, Verdicts
from dma_lab.report.evaluations import evaluations
from dma_lab.report.evidence import evidence
from dma_lab.report.lifetimes import lifetimes_section
from dma_lab.report.missing import missing_points
from dma_lab.report.pairs import Difference
from dma_lab.report.predictions import predictions
from dma_lab.report.rates import is_tuned
from dma_lab.report.recall_widths import recall_by_width
from dma_lab.report.scaling_figures import envelope, isoflop, loss_against_compute
from dma_lab.report.sparsity import context_in_windows, keys_said
from dma_lab.report.splits import hidden_by_the_mean
from dma_lab.report.statistics import Statistics, compute_statistics
from dma_lab.report.training_figure import training_curves
from dma_lab.report.tuned_notes import how_tuned
from dma_lab.report.tuning_figure import learning_rates
from dma_lab.report.verdict import verdicts
from dma_lab.train.hardware import MACHINE


def build_document(
    runs: Sequence[Run], problems: Sequence[Unreadable], progress: Callable[[str], None]
) -> tuple[Document, list[tuple[Run, Difference]]]:
    """The whole report; with it the finished runs and their paired differences, cohort by cohort.

    ``progress`` is told what comes next.
    """
    groups = cohorts(runs)
    compared: list[tuple[Run, Difference]] = []
    first: list[Section] = []
    statistics: dict[str, Statistics] = {}
    sections = [_overview(runs, problems, groups)]
    for number, (name, members) in enumerate(groups.items(), 1):
        verdict, own, found = _cohort(name, members, progress)
        if found:
            statistics[name] = found
            compared += found.comparison.pairs
        title = _title(number, groups, members)
        first += [_numbered(section, number, title) for section in verdict] if len(groups) > 1 else verdict
        sections += [_numbered(section, number, title) for section in own] if len(groups) > 1 else own
    blocks: list[Block] = [tables.identities(runs)]
    if problems:
        blocks.append(tables.unreadable(problems))
    sections.append(Section("Runs", blocks))
    names = ", ".join(dict.fromkeys(run.attention for run in runs))
    lead = f"{len(compared)} of {_runs(len(runs) + len(problems))} finished: {names or 'none can be read'}."
    return Document("Attention backends at equal cost", lead, [*first, *at_both_rates(statistics), *sections]), compared


def _cohort(
    name: str, members: Sequence[Run], progress: Callable[[str], None]
) -> tuple[list[Section], list[Section], Statistics | None]:
    """What comes first of it, and the rest; with it what its finished runs come to."""
    finished = [run for run in members if run.finished]
    training = Section("Training", [training_curves(members)])
    if not finished:
        nothing = Section("Comparison", [f"Runs of {name}.", Notice("No run of this group is finished.")])
        return [], [nothing, training], None
    found = compute_statistics(finished, progress)
    sections = [_comparison(name, found.comparison), _scaling(found), training]
    if swept := learning_rates(members):
        sections.append(swept)
    if recall := recall_by_gap(finished):
        scatter = recall_against_cache(finished)
        sections.append(Section("Recall", [*recall_by_width(finished), recall, *([scatter] if scatter else [])]))
    if position := loss_by_position(finished):
        sections.append(Section("Position in the context", [position]))
    if hidden := hidden_by_the_mean(finished):
        sections.append(hidden)
    if evaluated := evaluations(finished):
        sections.append(evaluated)
    return [_verdict(name, found)], [*sections, lifetimes_section(finished, progress)], found


def _verdict(name: str, found: Statistics) -> Section:
    blocks: list[Block] = [evidence(found)]
    if said := verdicts(found):
        blocks += [Verdicts(said), *content_sentences(found.finished)]
        if len(said) > 1:
            blocks.append(f"Of intervals of 95 % one in twenty misses by chance. Runs of {name}.")
    elif BASELINE in found.backends:
        blocks.append(Notice("Only MHA is finished here, so there is no backend to hold against it."))
    else:
        blocks.append(Notice("No MHA run is finished here, so nothing is said of any backend relative to it."))
    if tuned := how_tuned(found.backends, found.finished):
        blocks.append(tuned)
    return Section("Verdict", blocks)


def _overview(runs: Sequence[Run], problems: Sequence[Unreadable], groups: dict[str, list[Run]]) -> Section:
    blocks: list[Block] = []
    if copied := [run for run in runs if run.copies]:
        listed = [f"{', '.join(run.copies)}: {run.name}" for run in copied]
        left_out = sum(len(run.copies) for run in copied)
        blocks.append(Notice(f"{_copies(left_out)} of runs left out: a run counts once, wherever it lies.", listed))
    fingerprints = Counter(run.summary.data_fingerprint[:8] for run in runs)
    if len(fingerprints) > 1:
        listed = [f"{name} ({_runs(count)})" for name, count in fingerprints.items()]
        blocks.append(Notice("The runs saw data of different fingerprints. Such runs are never compared.", listed))
    if len(groups) > 1:
        listed = [f"Group {number}: {name} ({_runs(len(groups[name]))})" for number, name in enumerate(groups, 1)]
        blocks.append(Notice(f"The runs form {len(groups)} groups that are not compared with each other.", listed))
    if losses := Counter(loses for run in runs if (loses := run.summary.tokenizer_loses) is not None):
        listed = [f"{what} ({_runs(count)})" for what, count in losses.items()]
        blocks.append(
            Notice(
                "Tokenizers of these runs lose text, which costs nothing: there are no bits per byte, and losses "
                "compare only with those of the same tokenizer. Lost are:",
                listed,
            )
        )
    commits = Counter(run.summary.git_commit for run in runs if run.finished)
    if len(commits) > 1:
        listed = [f"{tables.short_commit(name)} ({_runs(count)})" for name, count in commits.items()]
        blocks.append(
            Notice(f"The finished runs come from {len(commits)} commits. A difference may be the code's.", listed)
        )
    machines = Counter(_machine(run) for run in runs if run.finished)
    if len(machines) > 1:
        listed = [f"{name} ({_runs(count)})" for name, count in machines.items()]
        blocks.append(
            Notice(
                f"The finished runs come from {len(machines)} kinds of machine, which round differently: runs of two "
                "are never paired. Laws are fitted to runs of all of them.",
                listed,
            )
        )
    if any(name.endswith("-dirty") or name == "unknown" for name in commits):
        blocks.append(Notice("Some runs come from code that no commit holds (changed files): no one can repeat them."))
    unfinished = [run for run in runs if not run.finished]
    if unfinished or problems:
        lines = [f"{run.name}: {run.status}" for run in unfinished]
        lines += [f"{problem.name}: unreadable, {problem.reason}" for problem in problems]
        blocks.append(Notice(f"Not finished or not readable, and so in no table or fit: {_runs(len(lines))}.", lines))
    for name, members in groups.items():
        if missing := missing_points(name, members):
            blocks.append(missing)
    return Section("What to know of the runs", blocks or ["All runs are finished, of one data set and one commit."])


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count} copies"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _machine(run: Run) -> str:
    facts = [f"{getattr(run.summary, name)}" for name in MACHINE if name != "compiled"]
    earlier = run.summary.earlier_machines
    return ", ".join((*facts, *(["compiled"] if run.summary.compiled else []), *(f"before: {e}" for e in earlier)))


def _comparison(name: str, comparison: Comparison) -> Section:
    compared = comparison.pairs
    blocks: list[Block] = [f"Runs of {name}."]
    attentions = {run.attention for run, _ in compared}
    refused = Counter(difference for _, difference in compared if isinstance(difference, str) and difference)
    if len({run.backend for run, _ in compared}) == 1:
        blocks.append(Notice(f"Only {attentions.pop()} has finished runs here: there is nothing to compare it with."))
    elif BASELINE not in attentions:
        blocks.append(Notice("No MHA run is finished here, so no difference to MHA can be given."))
    elif refused:
        listed = [f"{_runs(count)}: {reason}" for reason, count in refused.items()]
        blocks.append(Notice("Not every run has a difference to MHA.", listed))
    blocks.append(tables.comparison(compared))
    runs = [run for run, _ in compared]
    blocks[1:1] = [said for said in (context_in_windows(runs), keys_said(runs)) if said]
    if comparison.has_spread:
        blocks.insert(-1, tables.over_trainings(comparison.cells))
    elif comparison.cells:
        blocks.insert(-1, Notice(NO_SPREAD))
    if controls := control_table(runs):
        blocks.insert(-1, controls)
    return Section("Comparison", blocks)


def _scaling(found: Statistics) -> Section:
    blocks: list[Block] = []
    best, finished, laws = found.best, found.finished, found.laws
    if len(best) < len(finished):
        blocks.append(
            Notice(
                f"{len(finished) - len(best)} finished runs differ from another in their learning rate or warm-up "
                "alone: of those the one of least loss stands for the point in this section, which the luck of a run "
                "lowers, too: the more of them a point has, the more."
            )
        )
    contexts = {run.summary.context for run in best}
    if len(contexts) > 1:
        listed = ", ".join(f"{context:,}" for context in sorted(contexts))
        blocks.append(
            Notice(f"Contexts differ ({listed} tokens). Laws put down to size what a longer context contributes.")
        )
    refused = [f"{backend}: {reason}" for backend, reason in laws.items() if isinstance(reason, str)]
    if refused:
        blocks.append(Notice("Where the runs do not suffice, no scaling law is given.", refused))
    blocks += [loss_against_compute(best, laws, which) for which in ("flops_executed", "flops")]
    if found.fitted:
        blocks.append(tables.law_parameters(found.fitted, found.published))
    blocks += [figure for figure in (isoflop(best), envelope(best)) if figure]
    blocks += predictions(found)
    return Section("Scaling", blocks)


def _title(number: int, groups: Mapping[str, Sequence[Run]], members: Sequence[Run]) -> str:
    """Of a group among several; where there are such at tuned rates, whether it is one."""
    if not any(is_tuned(own[0]) for own in groups.values()):
        return f"Group {number}"
    return f"Group {number}, {'each at its own tuned rate' if is_tuned(members[0]) else 'rates not tuned'}"


def _numbered(section: Section, number: int, title: str) -> Section:
    """The section of one group of several: titles say which, and figures of all lie side by side in one folder."""
    blocks: list[Block] = [
        dataclasses.replace(block, slug=f"group{number}-{block.slug}") if isinstance(block, Figure | Heatmap) else block
        for block in section.blocks
    ]
    return Section(f"{title}: {section.title}", blocks)
