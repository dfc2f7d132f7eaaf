"""MFU: which part of what a GPU could compute a training computes (Chowdhery et al., arXiv 2204.02311)."""

from dma_lab.train.hardware import Hardware
from dma_lab.train.plan import RunPlan

_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "H200 NVL": 835e12,
    "H200": 989.4e12,
    "GH200": 989.4e12,
    "H800": 989.4e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense bf16 products with float32 sums, FLOP/s, from NVIDIA's data sheets, by the words of a device's name."""


def utilization(tokens_per_second: float | None, plan: RunPlan, devices: int, hardware: Hardware) -> dict[str, float]:
    """``mfu_executed`` and ``mfu_dense_equivalent`` of a training at that rate; neither where no peak is known.

    Forward and backward passes count, causal attention by the pairs it has, nothing that is recomputed
    (``TrainingFlops``).
    """
    peak = _peak(hardware)
    if peak is None or tokens_per_second is None:
        return {}
    tokens_at_peak = devices * peak * plan.tokens  # per FLOP of the run and second
    return {
        "mfu_executed": tokens_per_second * plan.flops.executed / tokens_at_peak,
        "mfu_dense_equivalent": tokens_per_second * plan.flops.dense_equivalent / tokens_at_peak,
    }


def _peak(hardware: Hardware) -> float | None:
    if hardware.precision != "bf16":
        return None
    words = f" {hardware.name.replace('-', ' ')} "
    if " MIG " in words:
        return None  # a part of one
    return next((peak for name, peak in _PEAKS.items() if f" {name} " in words), None)
