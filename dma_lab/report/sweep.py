"""What a multirun ends with: one table of its runs, and the points that failed with their reasons (status 1)."""

import sys
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from dma_lab.door import FailedPoint
from dma_lab.report.comparison import comparison_table


class SweepReport(Callback):
    """Hydra calls it after every job and at the end (``hydra.callbacks`` in conf/train.yaml)."""

    def __init__(self) -> None:
        self.finished: list[dict[str, Any]] = []
        self.failed: list[tuple[str, Exception]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        result = job_return.return_value
        if isinstance(result, FailedPoint):
            self.failed.append((" ".join(job_return.overrides or ()), result.error))
        else:
            self.finished.extend(result)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.finished:
            # Ten columns: in a file or a pipe they are not folded to the 80 characters that rich assumes there.
            console = Console()
            Console(width=None if console.is_terminal else 160).print(comparison_table(self.finished))
        for overrides, error in self.failed:
            print(f"failed: {overrides}: {error}", file=sys.stderr)
        if self.failed:
            raise SystemExit(1)
