"""A run for trackio: on this machine, or wherever trackio's own environment variables send it (TRACKIO_SPACE_ID)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import trackio
from trackio.sqlite_storage import SQLiteStorage

from dma_lab.files import write_whole
from dma_lab.messages import UserError
from dma_lab.train.run_log import RunLog, group_of, numbers
from dma_lab.train.runs import RunDirectory
from dma_lab.train.settings import TrainSettings


@contextmanager
def trackio_log(settings: TrainSettings, run: RunDirectory, logged: int) -> Iterator[RunLog]:
    """trackio's run has the directory's name, and is taken up again by it.

    Args:
        settings, run, logged: as ``run_log`` takes them.
    """
    noted = run.path / "trackio.json"
    before = noted.exists()
    with redirect_stdout(sys.stderr):  # results are what is printed there
        try:
            tracked: Any = trackio.init(  # not all of it is typed
                project=settings.logger.project or "dma_lab",
                name=run.path.name,
                group=group_of(run),
                config=settings.written(),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        except ValueError as error:
            raise UserError(f"logger=trackio refuses logger.project={settings.logger.project} ({error}).") from error
    write_whole(noted, "{}\n")

    def write(line: dict[str, Any], step: int) -> None:
        # ``step`` is a name of trackio's own.
        tracked.log({name: value for name, value in numbers(line).items() if name != "step"}, step=step)

    # What was logged may not have been sent: it goes out twice a second, which a killed process did not live to see.
    if before and tracked._is_local:
        logged = SQLiteStorage.get_max_step_for_run(tracked.project, run.path.name) or 0
    log = RunLog(write, logged if before else 0)
    try:
        yield log
    finally:
        with redirect_stdout(sys.stderr):
            tracked.finish()
