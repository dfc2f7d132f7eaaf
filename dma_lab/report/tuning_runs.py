"""Sweeps of the learning rate in folders of runs, which may be of a whole study: what can be tuned by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dma_lab.messages import UserError
from dma_lab.model.ladder import reference_parameters
from dma_lab.report.attention_options import attention_of
from dma_lab.report.cohorts import name_runs
from dma_lab.report.collect import Run, read_runs
from dma_lab.report.conditions import shared_by_a_study
from dma_lab.report.tuning import Tuning, seed_noise, sound_runs, swept_runs, tune

_SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")


@dataclass(frozen=True)
class Sweeps:
    """All that were found, of one study and one optimizer."""

    optimizer: str
    tuned: dict[str, dict[int, Tuning]]
    """By attention, all its options (YAML), and ``mha_parameters``, rising."""
    sound: list[Run]
    """Their runs at rates at which none diverged."""
    warnings: list[str]
    """What was left out."""


def read_sweeps(roots: Sequence[Path]) -> Sweeps:
    """Those under ``roots``.

    Where the rate was not swept at a rung, that is said and left out: the runs may be of a whole study, from which the
    recipe's own rate comes, beside a folder with the rates around it.

    Raises:
        UserError: there is none, or they are of several optimizers or studies.
    """
    read, unreadable = read_runs(*roots)
    shown = ",".join(map(str, roots))
    runs = name_runs([run for run in read if run.finished or run.summary.status == "diverged"])
    taken = {run.path for run in runs}
    warnings = [f"{run.name} is left out: {run.status}" for run in read if run.path not in taken]
    warnings += [f"{run.name} is left out: {run.reason}" for run in unreadable]
    cells: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        cells.setdefault(yaml.safe_dump(attention_of(run)), {}).setdefault(mha_parameters(run), []).append(run)
    if not any(run.finished for run in runs):
        raise UserError(f"runs={shown} holds no finished run; train the sweep first.")
    optimizers = {str(run.config.optimizer.name) for run in runs}
    if len(optimizers) > 1:
        raise UserError(f"runs={shown} holds runs of {' and '.join(sorted(optimizers))}; tune one optimizer at a time.")
    swept: dict[str, dict[int, list[Run]]] = {}
    for written, by_size in sorted(cells.items()):
        for size, own in sorted(by_size.items()):
            found = swept_runs(own)
            if isinstance(found, str):
                warnings.append(found)
            else:
                swept.setdefault(written, {})[size] = found
    if not swept:
        raise UserError(f"runs={shown} holds no sweep of the learning rate: {warnings[-1]}.")
    sound = [run for by_size in swept.values() for own in by_size.values() for run in sound_runs(own)]
    _require_one_study(sound, shown)
    tuned = {
        written: {size: tune(own, seed_noise(own, sound)) for size, own in by_size.items()}
        for written, by_size in swept.items()
    }
    return Sweeps(optimizers.pop(), tuned, sound, warnings)


def mha_parameters(run: Run) -> int:
    """Non-embedding, of its rung with MHA."""
    return reference_parameters(*(int(run.config.model[name]) for name in _SHAPE))


def _require_one_study(runs: Sequence[Run], shown: str) -> None:
    first = runs[0]
    for run in runs:
        if apart := {name for name, _ in shared_by_a_study(first.conditions) ^ shared_by_a_study(run.conditions)}:
            raise UserError(
                f"runs={shown} holds sweeps of more than one study: {first.name} and {run.name} differ in "
                f"{', '.join(sorted(apart))}; tune one at a time, each to a file of its own."
            )
