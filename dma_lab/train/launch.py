"""The processes that train one run together: how they are started, meet, and end together.

``hold_run`` is all that a run of one process needs of this file: there it claims the run, and that is all.
"""

import atexit
import dataclasses
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from dma_lab.messages import RunHeldError, UserError, leave_to_the_first
from dma_lab.train.peers import LostRankError, Peers
from dma_lab.train.ranks import Ranks
from dma_lab.train.runs import RunDirectory

_TIMEOUT = timedelta(minutes=5)
"""To meet: processes that are started together import and prepare at different speeds."""
_SECONDS_TO_NOTICE = 15.0
"""After one process ended, for the others to find it out by themselves (on NCCL they would wait minutes)."""


@contextmanager
def hold_run(run: RunDirectory, ranks: Ranks, device: torch.device, train: Callable[..., object]) -> Iterator[Peers]:
    """Hold ``run`` within the context, where all of its processes are: the first claims it, the others follow.

    Args:
        train: what the others call with ``ranks`` of their own, where this process starts them; they get it pickled.

    Raises:
        RunHeldError: another training holds it.
        LostRankError: a process ended before all had met.
        UserError: the run's directory cannot be written, processes were given different runs, or did not meet.
    """
    peers = Peers(run, ranks)
    with ExitStack() as stack:
        if not ranks.launched:
            stack.enter_context(run.claimed())
        if ranks.count > 1:
            stack.enter_context(_met(peers, device, train))
            refusal: UserError | None = None
            if ranks.launched and ranks.first:
                try:
                    stack.enter_context(run.claimed())
                except UserError as error:
                    refusal = error
            held = isinstance(refusal, RunHeldError)
            name, held, said = peers.first_has((run.path.name, held, refusal and str(refusal)))
            if held:
                raise RunHeldError(run.path)
            if said:
                raise UserError(said)
            if name != run.path.name:
                raise UserError(f"Process {ranks.rank} was given {run.path.name} to train, and the first one {name}.")
        yield peers


@contextmanager
def _met(peers: Peers, device: torch.device, train: Callable[..., object]) -> Iterator[None]:
    """All processes of the run, connected within the context; those that are started here end with it."""
    ranks = peers.ranks
    if ranks.launched:
        # For as long as this process lives: a launcher's processes train their next run together too.
        if not dist.is_initialized():
            _connect(peers, _launchers_store(ranks), device)
            atexit.register(dist.destroy_process_group)
        yield
        return
    store = dist.TCPStore(ranks.address, 0, ranks.count, True, _TIMEOUT, wait_for_workers=False)
    spawn = multiprocessing.get_context("spawn")
    watch = threading.Thread(target=_end_with_lost, args=(peers, over := threading.Event()), daemon=True)
    try:
        # Ctrl-C reaches all processes of a terminal: those that are still being imported heed it after that.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for rank in range(1, ranks.count):
                own = dataclasses.replace(ranks, rank=rank, launched=True, port=store.port)
                started = spawn.Process(target=_follow, args=(train, own))
                started.start()
                peers.started.append(started)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        watch.start()
        _connect(peers, store, device)
        yield
        # With the others, which do so as they exit: NCCL waits for all of a group to leave it.
        dist.destroy_process_group()
        for process in peers.started:
            process.join(_SECONDS_TO_NOTICE)
    finally:
        over.set()
        for process in peers.started:
            process.kill()
            process.join()
        if dist.is_initialized():  # after a failure, and the others will not come
            dist.distributed_c10d._abort_process_group()


def _follow(train: Callable[..., object], ranks: Ranks) -> None:
    """The life of a process that the first one started."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_first() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_first, daemon=True).start()
    leave_to_the_first()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        train(ranks=ranks)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except LostRankError:
        raise SystemExit(1) from None  # the first one says it
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None


def _end_with_lost(peers: Peers, over: threading.Event) -> None:
    """End this process some time after one that it started failed: it may wait for that one forever."""
    while not over.wait(1.0):
        lost = peers.lost()
        if lost is None:
            continue
        if not over.wait(_SECONDS_TO_NOTICE):
            end = peers.end_of(lost)
            print(f"error: {end}", file=sys.stderr, flush=True)
            for process in peers.started:
                process.kill()
            os._exit(int(end.code or 0) if isinstance(end, SystemExit) else end.exit_status)


def _launchers_store(ranks: Ranks) -> dist.Store:
    """Where processes meet that a launcher started.

    Raises:
        UserError: the first one cannot listen there, or none does in time.
    """
    if dist.is_torchelastic_launched():  # torchrun listens there itself
        store: dist.Store = next(dist.rendezvous("env://", ranks.rank, ranks.count, timeout=_TIMEOUT))[0]
        return store
    where = f"{ranks.address}:{ranks.port}"
    if not ranks.first:
        deadline = time.monotonic() + _TIMEOUT.total_seconds()
        while True:
            try:
                socket.create_connection((ranks.address, ranks.port), timeout=1).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"The first of {ranks.count} processes does not listen at {where} ({error}); "
                        "see what it said, or set MASTER_ADDR and MASTER_PORT to where it can."
                    ) from error
                time.sleep(0.1)
    try:
        return dist.TCPStore(ranks.address, ranks.port, ranks.count, ranks.first, _TIMEOUT, wait_for_workers=False)
    except dist.DistError as error:
        raise UserError(f"MASTER_PORT={ranks.port} is not free or not open: set it to one that is.") from error


def _connect(peers: Peers, store: dist.Store, device: torch.device) -> None:
    """Make the process group, once everyone is there. (Waited for here, where signals are heeded.)"""
    ranks = peers.ranks
    store.set(f"dma_lab/{ranks.rank}", "here")
    deadline = time.monotonic() + _TIMEOUT.total_seconds()
    while not store.check([f"dma_lab/{rank}" for rank in range(ranks.count)]):
        if (lost := peers.lost()) is not None:
            raise peers.end_of(lost)
        if time.monotonic() > deadline:
            raise UserError(
                f"Some of {ranks.count} processes did not connect within "
                f"{_TIMEOUT.total_seconds():.0f} s: start that many with the launcher, or one process without it, "
                "which starts the others itself."
            )
        time.sleep(0.02)
    if device.type == "cuda":
        device = torch.device("cuda", ranks.local)
        torch.cuda.set_device(device)
        # Objects and signals go over the CPU, where nobody has to wait for the GPU.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl", store=store, rank=ranks.rank, world_size=ranks.count, device_id=device
        )
    else:
        dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=ranks.count)
