"""The processes that train one run together: what they tell each other, and what the end of one means to the others."""

import time
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment

from dma_lab.messages import MishapError
from dma_lab.train.ranks import Ranks
from dma_lab.train.runs import RunDirectory
from dma_lab.train.signals import STOPPING

_CONTINUES = "the same command continues from the last checkpoint"


class LostRankError(MishapError):
    """Another process of the run ended before the run did."""


class OneRun(ClusterEnvironment):
    """Tells Lightning about this process, so that it does not look for a launcher or a cluster itself."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.ranks.address

    @property
    def main_port(self) -> int:
        return self.ranks.port

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return self.ranks.count

    def set_world_size(self, size: int) -> None:
        assert size == self.ranks.count

    def global_rank(self) -> int:
        return self.ranks.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.ranks.rank

    def local_rank(self) -> int:
        return self.ranks.local

    def node_rank(self) -> int:
        return self.ranks.rank // self.ranks.devices


class Peers:
    """The processes that train a run, as one of them sees them."""

    def __init__(self, run: RunDirectory, ranks: Ranks) -> None:
        self.run, self.ranks = run, ranks
        self.started: list[BaseProcess] = []
        """By this process."""

    def agree_on_signal(self, number: int | None) -> int | None:
        """The signal that asked any of the processes to stop. All of them call this, after the same step."""
        if self.ranks.count == 1:
            return number
        highest = torch.tensor(number or 0)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest) or None

    def first_has(self, value: Any) -> Any:
        """The first process's ``value``. All of them call this."""
        values = [value]
        try:
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        except RuntimeError as error:
            raise self.explain(error) from error
        return values[0]

    def wait(self) -> None:
        """Until all of them are here."""
        if self.ranks.count > 1:
            self.first_has(None)

    def explain(self, error: BaseException) -> BaseException:
        """What ``error`` came of: itself, or a process that ended, which may have been asked to."""
        if self.ranks.count == 1 or not isinstance(error, RuntimeError):
            return error
        deadline = time.monotonic() + 3  # the connection breaks before the process has ended
        while (lost := self.lost()) is None and self.started and time.monotonic() < deadline:
            time.sleep(0.05)
        if lost is not None:
            return self.end_of(lost)
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            return LostRankError(f"Another process that trains {self.run.path} ended; {_CONTINUES}.")
        return error

    def lost(self) -> BaseProcess | None:
        """A process that was started here and failed."""
        return next((process for process in self.started if process.exitcode), None)

    def end_of(self, lost: BaseProcess) -> SystemExit | LostRankError:
        """What the end of one process means to the others."""
        code = lost.exitcode or 0
        number = -code if code < 0 else code - 128
        if number in STOPPING:
            return SystemExit(128 + number)
        how = f"was killed by signal {number}" if code < 0 else f"ended with status {code}"
        return LostRankError(
            f"Process {lost.pid}, one of the {self.ranks.count} that train {self.run.path}, {how}; {_CONTINUES}."
        )
