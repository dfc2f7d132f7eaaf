"""A run for TensorBoard: event files in its directory, under ``tensorboard/``."""

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from dma_lab.train.run_log import RunLog, numbers
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import TrainSettings


@contextmanager
def tensorboard_log(settings: TrainSettings, run: RunDirectory) -> Iterator[RunLog]:
    """A file of events for every process that trains the run.

    Each begins with all lines so far and purges what earlier files hold, so that a step stands there once, whatever a
    killed process had left unwritten.
    """
    with SummaryWriter(run.path / "tensorboard", purge_step=0) as writer:

        def write(line: dict[str, object], step: int) -> None:
            for name, value in numbers(line).items():
                writer.add_scalar(name, value, step, new_style=True, double_precision=True)
            writer.flush()

        config = OmegaConf.to_yaml(OmegaConf.create(settings.written()))
        writer.add_text("config", "".join(f"    {row}\n" for row in config.splitlines()))
        yield RunLog(write)
