"""Settings that every test runs under, and memory that shows what was never written."""

import gc
import os
import signal
from collections.abc import Iterator

import pytest

from tests.scripts import Scripts

# Before torch is imported: two test processes on two cores each get one, and so do the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")


def pytest_collection_finish() -> None:
    """What is imported by now is no garbage. Every run looks for some before it begins, and would look at all of it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # for libraries that look for leaks as the process ends


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    """The entry points, called as a user calls them, but in forks of a process that has everything imported."""
    return Scripts(tmp_path_factory.mktemp("said"))


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which PyTorch began with three threads."""
    import torch

    from dma_lab import threads

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(threads, "_ALL", 3)
    monkeypatch.setattr(threads, "_chosen", 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unwritten_memory_is_nan() -> Iterator[None]:
    """And the largest integer where it holds integers: what a kernel leaves unwritten, or reads unwritten, shows."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(9, device="cuda" if torch.cuda.is_available() else "cpu").isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def interrupts_heeded() -> Iterator[None]:
    """Python's own handler of SIGINT: a shell's background commands, and what they start, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
