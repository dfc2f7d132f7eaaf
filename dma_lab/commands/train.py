"""Train one run: ``python train.py experiment=chinchilla_dma``. Every setting of conf/ is an override."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dma_lab.entry_point import run_entry_point
from dma_lab.messages import UserError, leave_to_the_first
from dma_lab.phases import phase
from dma_lab.run_summary import Summary
from dma_lab.train.ranks import is_launched_first
from dma_lab.train.timing import note_imports


def main(config: DictConfig) -> Sequence[Summary]:
    if not is_launched_first():
        leave_to_the_first()
    with phase("importing PyTorch"):  # seconds, for which --help and a mistaken setting need not wait
        from dma_lab.train.reading import read_settings, say_unused_window
    settings = read_settings(config, HydraConfig.get().overrides.task)
    if HydraConfig.get().mode is not RunMode.MULTIRUN:
        say_unused_window(config)
    with phase("importing Lightning"):
        from dma_lab.train.branches import fit_branches
        from dma_lab.train.fit_run import fit_run
        from dma_lab.train.summary import print_summary
    note_imports()
    summaries: Sequence[Summary] = ()
    try:
        summaries = fit_branches(settings) if settings.schedule.branches else [fit_run(settings)]
    except UserError as error:
        summaries = error.finished
        raise
    finally:
        alone = HydraConfig.get().mode is not RunMode.MULTIRUN and not settings.schedule.branches
        for summary in summaries:
            if alone or not summary.finished_before:  # of which a line says what it came to
                print_summary(summary)
    return summaries


def show_runs(directories: Sequence[Path]) -> None:
    from dma_lab.report.sweep import show_runs  # SciPy, a second that a run need not wait for

    show_runs(directories)


def run() -> None:
    run_entry_point(main, "train", show_runs)
