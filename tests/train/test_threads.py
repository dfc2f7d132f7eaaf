"""One thread for little work, all for much; said by the user, neither."""

import pytest
import torch

from dma_lab.train import threads
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import plan_run


@pytest.fixture
def three(monkeypatch):
    """A process in which PyTorch began with three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(threads, "_ALL", 3)
    monkeypatch.setattr(threads, "_chosen", 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def after(read, three):
    """``after(overrides)``: threads that the run computes with, and what its hardware is called."""

    def threads_after(*overrides: str) -> int:
        settings = read([*overrides, "trainer.device=cpu"])
        hardware = resolve_hardware(settings.trainer)
        threads.use_threads(plan_run(settings, settings.model.vocab_size, hardware), hardware)
        assert f"{torch.get_num_threads()} threads" in resolve_hardware(settings.trainer).name
        return torch.get_num_threads()

    return threads_after


def test_small_runs_take_one_thread_and_large_ones_all_again(after):
    assert after("model=14k", "attention=mha") == 1
    assert after("model=10m", "attention=mha") == 3
    assert after("model=14k", "attention=dma") == 1
    # 13 sequences at once, or one by one: what counts is what is computed at a time.
    large = ["model=440k", "attention=mha", "trainer.context=256", "trainer.tokens_per_step=8192"]
    assert after(*large) == 3
    assert after(*large, "trainer.micro_batch_sequences=1") == 1


def test_what_the_user_said_stays(after, monkeypatch):
    torch.set_num_threads(2)
    assert after("model=14k") == 2
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert after("model=14k") == 3
