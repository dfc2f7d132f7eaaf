"""Where a run's lines go beside its own directory (conf/logger/): a tracker's run for every run directory.

A continued run goes on in its tracker's run, where every step stands once.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec

from dma_lab.messages import UserError, warn_once
from dma_lab.train.run_log import RunLog
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import LoggerSettings, TrainSettings

_TAKEN = {"wandb": {"project", "entity"}, "trackio": {"project"}}


def require_logger(logger: LoggerSettings) -> None:
    """Tell the user of settings that ``logger`` does not take. Raises UserError where its package is not installed."""
    for name in ("project", "entity"):
        if (value := getattr(logger, name)) is not None and name not in _TAKEN.get(logger.name, ()):
            warn_once(f"logger.{name}={value} changes nothing: logger={logger.name} has no {name}.")
    if logger.name != "local" and find_spec(logger.name) is None:
        raise UserError(
            f"logger={logger.name} needs the package {logger.name}, which is not installed: "
            f"pip install 'dma-lab[{logger.name}]', or pip install {logger.name}."
        )


@contextmanager
def run_log(settings: TrainSettings, run: RunDirectory, logged: int) -> Iterator[RunLog]:
    """The log of a run that is about to train.

    Lines that ``run`` holds already and the tracker does not (a branch's, from the shorter one) are logged first.

    Args:
        settings, run: of the run; its lines are those that training goes on from.
        logged: ``last_step`` of the run, taken before lines were dropped that training will repeat.
    """
    with _tracked(settings, run, logged) as log:
        log.add_written(run)
        yield log


def _tracked(settings: TrainSettings, run: RunDirectory, logged: int) -> AbstractContextManager[RunLog]:
    if run.writer and settings.logger.name == "wandb":
        from dma_lab.train.wandb_run import wandb_log

        return wandb_log(settings, run, logged)
    if run.writer and settings.logger.name == "tensorboard":
        from dma_lab.train.tensorboard_run import tensorboard_log

        return tensorboard_log(settings, run)
    if run.writer and settings.logger.name == "trackio":
        from dma_lab.train.trackio_run import trackio_log

        return trackio_log(settings, run, logged)
    return _nothing()


@contextmanager
def _nothing() -> Iterator[RunLog]:
    yield RunLog()
