"""One new token: DMA's bounded cache, whose cost does not know how long the text is, beside attention over it all."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel

from dma_lab.benchmarks.figure import draw_decode
from dma_lab.benchmarks.goals import judge_decode, verdict_table
from dma_lab.benchmarks.record import write_record
from dma_lab.benchmarks.settings import DecodeSettings
from dma_lab.benchmarks.timing import milliseconds, progress, require_gpu
from dma_lab.kernels import admit_key, interval_attention_decode
from dma_lab.messages import warn_once

_DENSE = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def bench_decode(settings: DecodeSettings) -> Path:
    """Measure every batch and history of ``settings``; prints tables, writes a record and a figure."""
    require_gpu()
    points = [(batch, history) for batch in settings.batches for history in settings.histories]
    measured = []
    with progress() as bar:
        for batch, history in bar.track(points, description="decoding"):
            measured.append({"batch": batch, "history": history, **_measure(batch, history, settings)})
    record = {"settings": dataclasses.asdict(settings), "units": "milliseconds, medians", "points": measured}
    path = write_record(settings.results_dir, "decode", record)
    table = Table(title="one token, bf16, milliseconds", title_justify="left")
    for column in ("batch", "history", "admit", "attend", "both", "dense", "times faster", "cache, MiB", "dense, MiB"):
        table.add_column(column, justify="right")
    for point in measured:
        dense = point["dense"]
        times = "-" if dense is None else f"{dense / point['both']:.1f}"
        figures = [f"{point[part]:.4f}" for part in ("admit", "attend", "both")]
        figures += ["does not fit" if dense is None else f"{dense:.4f}", times]
        mebibytes = (f"{point[part] / 2**20:,.0f}" for part in ("cache_bytes", "dense_cache_bytes"))
        table.add_row(str(point["batch"]), str(point["history"]), *figures, *mebibytes)
    console = Console(width=120)
    console.print(table)
    console.print(verdict_table(judge_decode(measured)))
    draw_decode(measured, path.with_suffix(".svg"))
    print(f"recorded in {path}")
    return path


def _measure(B: int, history: int, settings: DecodeSettings) -> dict[str, Any]:
    H, K, D, S = settings.heads, settings.kv_heads, settings.head_dim, settings.window
    torch.manual_seed(0)

    def noise(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    caches = noise(B, K, S, D), noise(B, K, S, D), noise(B, K, S, dtype=torch.float32)
    # A full cache: the window's keys arrived anywhere in the history.
    arrived = torch.rand(B, K, history, device="cuda").topk(S).indices.to(torch.int32)
    new = noise(B, K, D), noise(B, K, D), noise(B, K, dtype=torch.float32)
    q = noise(B, H, 1, D)

    def admit() -> None:
        admit_key(*caches, arrived, *new, history, S)

    def attend() -> torch.Tensor:
        return interval_attention_decode(q, caches[0], caches[1], arrived, bias=caches[2])

    def both() -> torch.Tensor:
        admit()
        return attend()

    with torch.no_grad():
        ours = {"admit": milliseconds(admit), "attend": milliseconds(attend), "both": milliseconds(both)}
        held = sum(tensor.untyped_storage().nbytes() for tensor in (*caches, arrived))
        dense_bytes = 2 * B * K * history * D * 2
        dense, by_backend = None, {}
        if dense_bytes < 0.8 * torch.cuda.mem_get_info()[0]:
            k, v = noise(B, K, history, D), noise(B, K, history, D)
            by_backend = {name: _dense(backend, q, k, v) for name, backend in _DENSE.items()}
            dense = min((time for time in by_backend.values() if time is not None), default=None)
            del k, v
    torch.cuda.empty_cache()
    sizes = {"cache_bytes": held, "dense_cache_bytes": dense_bytes}
    return {**ours, "dense": dense, "dense_by_backend": by_backend, **sizes}


def _dense(backend: SDPBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float | None:
    """Milliseconds; None where the backend does not take one query with grouped heads."""
    with sdpa_kernel(backend):
        try:
            F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as refusal:
            warn_once(f"{backend.name} is left out of the dense figures: {str(refusal).splitlines()[0]}")
            return None
        return milliseconds(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
