"""Which part of a run this process is: all of it, or one of those that train it together, one for each of
``trainer.devices`` of each of ``trainer.num_nodes`` machines.

The settings decide, not the environment: with one device of one machine every process is its run's only one and claims
what it trains, however many a launcher started. Lightning is imported where several machines are asked for alone: it
reads the same variables as it is imported and holds every process but the first for a silent helper of that one.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from dma_lab.messages import UserError


@dataclass(frozen=True)
class _Launcher:
    """Where the processes of a launcher find who they are: names of environment variables, of several the first set."""

    name: str
    rank: str
    counts: tuple[str, ...]
    local_rank: str
    hosts: tuple[str, ...] = ()
    step: str | None = None
    """Set where it started the process. (In a batch script a job's other variables are set too, and nobody else comes.)
    """

    @property
    def numbers(self) -> tuple[str, ...]:
        return (self.rank, *self.counts, self.local_rank, *self.hosts)


# torchrun first: it may run within the others.
_LAUNCHERS = (
    _Launcher("torchrun", "RANK", ("WORLD_SIZE",), "LOCAL_RANK", ("GROUP_WORLD_SIZE",)),
    _Launcher(
        "srun",
        "SLURM_PROCID",
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        "SLURM_LOCALID",
        ("SLURM_STEP_NUM_NODES", "SLURM_NNODES"),
        step="SLURM_STEP_ID",
    ),
    _Launcher("jsrun", "JSM_NAMESPACE_RANK", ("JSM_NAMESPACE_SIZE",), "JSM_NAMESPACE_LOCAL_RANK"),
    _Launcher("mpirun", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_LOCAL_RANK"),
)


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    count: int = 1
    launched: bool = False
    """Whoever started this process starts the others; else the first starts them."""
    address: str = "127.0.0.1"
    port: int = 0
    """Where the first listens."""
    num_nodes: int = 1

    @property
    def devices(self) -> int:
        """Processes of one machine."""
        return self.count // self.num_nodes

    @property
    def local(self) -> int:
        """This process's place among those of its machine."""
        return self.rank % self.devices

    @property
    def first(self) -> bool:
        """The process that claims the run and writes its files."""
        return self.rank == 0


def find_ranks(devices: int, num_nodes: int = 1) -> Ranks:
    """This process's part in a run on ``devices`` devices of each of ``num_nodes`` machines.

    Raises:
        UserError: a launcher started several processes, and not those that the run needs; or none did, and the run
            needs several machines.
    """
    needed = devices * num_nodes
    if needed == 1:
        return Ranks()
    asked = f"trainer.devices={devices}" + (f" on each of trainer.num_nodes={num_nodes}" if num_nodes > 1 else "")
    one = num_nodes == 1
    for launcher in _LAUNCHERS:
        rank, count, hosts = _number([launcher.rank]), _number(launcher.counts), _number(launcher.hosts)
        if rank is None or (rank + 1 if count is None else count) == 1:
            continue
        if launcher.step is not None and launcher.step not in os.environ:
            continue
        named = [name for name in (launcher.rank, *launcher.counts, *launcher.hosts) if name in os.environ]
        told = ", ".join(f"{name}={os.environ[name]}" for name in named)
        there = f"have {launcher.name} start {devices} on {'one' if one else f'each of {num_nodes}'}"
        mend = f"{there}, or start one process, which starts the others itself" if one else there
        if count != needed or not 0 <= rank < count or (hosts or 1) != num_nodes:
            are = "are processes of one machine" if one else f"are {needed} processes"
            raise UserError(f"{asked} {are}, and that is not what {launcher.name} started ({told}): {mend}.")
        address, port = os.environ.get("MASTER_ADDR"), _number(["MASTER_PORT"])
        if launcher.name == "srun":
            if port is None:  # one that all tasks of a job know, and other jobs hardly use
                port = 15_000 + (_number(["SLURM_JOB_ID"]) or 0) % 10_000
            if address is None and not one and (machines := os.environ.get("SLURM_STEP_NODELIST")):
                address = _first_machine(machines)
        if port is None or (address is None and not one):
            variable = "MASTER_PORT" if port is None else "MASTER_ADDR"
            raise UserError(f"{variable} is not set, and {launcher.name} started {count} processes ({told}): {mend}.")
        ranks = Ranks(rank, count, True, address or "127.0.0.1", port, num_nodes)
        place = _number([launcher.local_rank])
        if not one and place not in (None, ranks.local):
            raise UserError(
                f"{launcher.local_rank}={place} of {launcher.rank}={rank}: processes are counted machine by machine; "
                "start them so (srun --distribution=block)."
            )
        return ranks
    if _number(["LOCAL_RANK"]):
        raise UserError(f"LOCAL_RANK={os.environ['LOCAL_RANK']} is set without RANK and WORLD_SIZE: unset it.")
    if not one:
        raise UserError(f"{asked} machines: start them there, with torchrun --nnodes={num_nodes} or srun.")
    return Ranks(count=devices)


def _first_machine(machines: str) -> str:
    """The first of ``node[07-08],other``, as SLURM writes it."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    return SLURMEnvironment.resolve_root_node_address(machines)


def is_launched_first() -> bool:
    """Whether no launcher started this process, or before all others."""
    return not any(_number([launcher.rank]) for launcher in _LAUNCHERS)


def local_rank() -> int:
    """The place of this process among those that a launcher started on this machine; 0 without a launcher."""
    return _number([launcher.local_rank for launcher in _LAUNCHERS]) or 0


def refuse_unreadable_ranks() -> None:
    """End with one sentence where a launcher's variable holds no number, of which Lightning would make a traceback."""
    try:
        for launcher in _LAUNCHERS:
            for name in launcher.numbers:
                _number([name])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _number(names: Iterable[str]) -> int | None:
    """What the first variable of ``names`` that is set holds."""
    for name in names:
        if name in os.environ:
            try:
                return int(os.environ[name])
            except ValueError:
                raise UserError(f"{name}={os.environ[name]} in the environment is no number: unset it.") from None
    return None
