"""How long a step takes on the device at hand, from a few real ones."""

import time

import torch

from dma_lab.train.hardware import Hardware
from dma_lab.train.optim import build_optimizers
from dma_lab.train.plan import RunPlan, build_model
from dma_lab.train.settings import TrainSettings


def probe_step_seconds(settings: TrainSettings, plan: RunPlan, hardware: Hardware, micro_batches: int = 3) -> float:
    """Seconds per optimizer step: the median micro-batch of random tokens, forward and backward, times their number.

    Compilation is left out, both from the probe's steps and from the time.
    """
    model = build_model(settings, plan.shape).to(hardware.device)
    optimizers = build_optimizers(model, settings.optimizer)
    sequences = plan.sequences_per_step // settings.trainer.devices // plan.accumulate
    size = (sequences, plan.shape.max_seq_len + 1)
    seconds = []
    for _ in range(1 + micro_batches):
        tokens = torch.randint(plan.shape.vocab_size, size, device=hardware.device)
        document_ids = torch.zeros_like(tokens[:, 1:]) if settings.data.mask_documents else None
        _synchronize(hardware)
        started = time.perf_counter()
        with torch.autocast(hardware.device.type, torch.bfloat16, enabled=hardware.precision == "bf16"):
            loss, auxiliary = model.losses(tokens[:, :-1], tokens[:, 1:], document_ids)
        (loss if auxiliary is None else loss + auxiliary).backward()
        _synchronize(hardware)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    for optimizer in optimizers:
        optimizer.step()
    _synchronize(hardware)
    update = time.perf_counter() - started
    # The first micro-batch warms caches and allocators up.
    return sorted(seconds[1:])[micro_batches // 2] * plan.accumulate + update


def _synchronize(hardware: Hardware) -> None:
    if hardware.device.type == "cuda":
        torch.cuda.synchronize()
