"""One thread for little work, all for much; said by the user, neither."""

import pytest
import torch

from dma_lab import threads
from dma_lab.train.hardware import resolve_hardware
from dma_lab.train.plan import plan_run


@pytest.fixture
def after(read, three_threads):
    """``after(overrides)``: threads that the run computes with, and what its hardware is called."""

    def threads_after(*overrides: str) -> int:
        settings = read([*overrides, "trainer.device=cpu"])
        hardware = resolve_hardware(settings.trainer)
        plan = plan_run(settings, settings.model.vocab_size, hardware)
        threads.use_threads(plan.micro_batch_flops, hardware.device)
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
