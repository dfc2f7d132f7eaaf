"""The memory that a plan says, against the largest that was allocated on GPUs.

Of runs of ``docs/study-gpu/points.csv`` and records of ``benchmarks/results``, all compiled, in bf16, with Muon.
"""

import pytest
import torch

from dma_lab.model.accounting import estimate_memory
from dma_lab.train.plan import matched_model, optimizer_bytes

SMALL = ["model.vocab_size=8192", "trainer.context=2048"]
SPARSE = [*SMALL, "attention.window=512"]
WIDE = ["model=1.7b", "model.n_layers=8"]


@pytest.mark.parametrize(
    ("given", "sequences", "micro_batches", "gib"),
    [
        (["model=1m", "attention=mha", *SMALL], 4, 1, 0.684),
        (["model=3m", "attention=mha", *SMALL], 8, 1, 1.305),
        (["model=3m", "attention=nsa", *SPARSE], 8, 1, 1.420),
        (["model=10m", "attention=mha", *SMALL], 16, 1, 4.073),
        (["model=10m", "attention=mla", *SMALL], 16, 1, 4.273),
        (["model=10m", "attention=nsa", *SPARSE], 16, 1, 4.873),
        (["model=30m", "attention=mha", *SMALL], 32, 1, 12.245),
        (["model=30m", "attention=dma", *SPARSE], 32, 1, 12.519),
        (["model=30m", "attention=nsa", *SPARSE], 32, 1, 16.08),
        (["model=80m", "attention=mha"], 16, 1, 13.086),
        (["model=80m", "attention=mha"], 32, 2, 24.257),
        (["model=80m", "attention=mha"], 64, 1, 43.02),
        (["model=200m", "attention=mha"], 32, 2, 42.35),
        ([*WIDE, "attention=dma", "trainer.context=8192", "attention.window=2048"], 8, 1, 46.30),
        ([*WIDE, "attention=mla", "trainer.context=8192"], 8, 1, 46.37),
        (["model=1.7b", "attention=mha", "trainer.context=8192"], 2, 4, 53.91),
        (["model=1.7b", "attention=mha"], 16, 32, 86.71),
    ],
)
def test_a_tenth_is_the_most_that_the_estimate_is_off(read, given, sequences, micro_batches, gib):
    settings = read(given)
    model = matched_model(settings, settings.model.vocab_size)
    context = settings.trainer.context
    memory = estimate_memory(model, sequences, context, torch.bfloat16, accumulates=micro_batches > 1)
    total = memory.total - memory.optimizer + optimizer_bytes(model, settings.optimizer)
    assert total / 2**30 == pytest.approx(gib, rel=0.1)
