"""Interval attention with DMA's lifetimes against dense causal attention, in one run on one GPU.

"Forward" is attention alone, given its key lists; "total" is selection, index building, forward and backward. Every
dense figure is the fastest of PyTorch's own kernels, which get as many key/value heads as there are query heads: how
few they are is nothing to dense attention's arithmetic. The floor of a figure is the arithmetic of its live
(query, key) pairs at the rate of the dense kernel it stands beside.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.figure import draw_kernels
from benchmarks.goals import judge_kernels, verdict_table
from benchmarks.packages import packages_beside
from benchmarks.record import write_record
from benchmarks.timing import eager_milliseconds, forward_and_total, milliseconds, progress, require_gpu
from dma_lab.kernels import interval_attention, prefix_topk_expiry
from dma_lab.kernels.interval_triton import attend_lists, list_block
from dma_lab.kernels.key_lists import build_key_lists
from dma_lab.kernels.key_order import backward_key_order

_DENSE = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
_FLASH_UP_TO = 32_768  # tokens; beyond, seconds would go into the slower of the two
KINDS = ("random", "constant", "drifting", "sinks")


def bench_kernels(config: DictConfig) -> Path:
    """Measure ``config.shapes`` with ``config.kv_heads``, then kinds of scores; writes a record and a figure."""
    require_gpu()
    N, window = config.scores_at
    # Numbers of heads that are compared follow one another: a card that has grown warm is slower.
    points = [(n, w, K, "random") for n, w in config.shapes for K in config.kv_heads]
    points += [(N, window, config.heads, kind) for kind in KINDS]
    record: dict[str, Any] = {"settings": OmegaConf.to_container(config), "units": "milliseconds, medians"}
    measured: list[dict[str, Any]] = []
    started = datetime.now(UTC)
    with progress() as bar:
        flex = _flex(N, window, config.heads, config.head_dim) if config.flex else None
        for case in bar.track(points, description="interval attention"):
            measured.append(_measure(*case, config.heads, config.head_dim))
            # After every point, so that what was measured survives a run that is cut off.
            path = write_record(config.results_dir, "kernels", record | {"points": measured, "flex": flex}, started)
    console = Console(width=150)
    console.print(_table(measured))
    if flex is not None:
        print(f"FlexAttention, the same mask, {N} tokens, forward: {flex['forward']:.2f} ms")
    console.print(_packages_table(measured))
    console.print(verdict_table(judge_kernels(measured, flex)))
    draw_kernels(measured, path.with_suffix(".svg"))
    print(f"recorded in {path}")
    return path


def scores_of(kind: str, K: int, N: int) -> Tensor:
    """Float32 (1, K, N) scores: ``random``; ``constant``, a sliding window; ``drifting`` upwards; a few ``sinks``."""
    noise = torch.randn(1, K, N, device="cuda")
    if kind == "constant":
        return torch.ones_like(noise)
    if kind == "drifting":
        return noise + torch.linspace(-2, 2, N, device="cuda")
    return noise + 9.0 * (torch.arange(N, device="cuda") < 64) if kind == "sinks" else noise


def live_share(expiry: Tensor) -> float:
    """Live (query, key) pairs over those of causal attention, the mean over heads."""
    N = expiry.shape[-1]
    live = (expiry.long() - torch.arange(N, device=expiry.device)).sum().item()
    return live / (expiry.numel() // N * N * (N + 1) / 2)


def _measure(N: int, window: int, K: int, kind: str, H: int, D: int) -> dict[str, Any]:
    torch.manual_seed(0)
    q, k, v, d_out = (
        torch.randn(1, N, heads, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for heads in (H, K, K, H)
    )
    scores = scores_of(kind, K, N)
    expiry = prefix_topk_expiry(scores, window)
    q_, k_, v_, scores_ = inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v, scores)]
    lists = build_key_lists(expiry, list_block(q, k), window, scores)

    def total() -> tuple[Tensor, ...]:
        expiry = prefix_topk_expiry(scores_, window)
        out = interval_attention(q_, k_, v_, expiry, bias=scores_, max_live=window)
        return torch.autograd.grad(out, inputs, d_out)

    with torch.no_grad():
        ours = {
            "selection": milliseconds(lambda: prefix_topk_expiry(scores, window)),
            "key_lists": milliseconds(lambda: build_key_lists(expiry, list_block(q, k), window, scores)),
            "key_order": milliseconds(lambda: backward_key_order(expiry, lists)),
            "forward": milliseconds(lambda: attend_lists(q, k, v, lists, D**-0.5)),
        }
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    total()
    peak = torch.cuda.max_memory_allocated() - before
    ours |= {"total": milliseconds(total), "total_eager": eager_milliseconds(total)}
    backends = {name: backend for name, backend in _DENSE.items() if name == "cudnn" or N <= _FLASH_UP_TO}
    dense = {name: _dense(backend, q, k, v, d_out) for name, backend in backends.items()}
    best = {part: min(times[part] for times in dense.values()) for part in ("forward", "total")}
    share = live_share(expiry)
    return {
        "N": N,
        "window": window,
        "H": H,
        "K": K,
        "scores": kind,
        "ours": ours,
        "dense": dense,
        "packages": packages_beside(kind, q, k, v, scores, expiry, window, d_out),
        "forward_times_faster": best["forward"] / ours["forward"],
        "total_times_faster": best["total"] / ours["total"],
        "live_share": share,
        "floor": {part: best[part] * share for part in best},
        "peak_bytes_beside_inputs": peak,
    }


def _dense(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, d_out: Tensor) -> dict[str, float]:
    group = q.shape[1] // k.shape[1]
    k, v = (tensor.repeat_interleave(group, dim=1) for tensor in (k, v))
    with sdpa_kernel(backend):
        attend = partial(F.scaled_dot_product_attention, is_causal=True)
        return forward_and_total(attend, (q, k, v), d_out)


def _flex(N: int, window: int, H: int, D: int) -> dict[str, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = (torch.randn(1, H, N, D, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    scores = torch.randn(1, H, N, device="cuda")
    expiry = prefix_topk_expiry(scores, window)

    def live(b: Tensor, h: Tensor, t: Tensor, j: Tensor) -> Tensor:
        return (j <= t) & (t < expiry[b, h, j])

    def biased(score: Tensor, b: Tensor, h: Tensor, t: Tensor, j: Tensor) -> Tensor:
        return score + scores[b, h, j]

    mask = create_block_mask(live, 1, H, N, N, device="cuda", _compile=True)
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    with torch.no_grad():
        forward = eager_milliseconds(lambda: compiled(q, k, v, score_mod=biased, block_mask=mask))
    return {"N": N, "window": window, "K": H, "forward": forward}


def _table(measured: list[dict[str, Any]]) -> Table:
    table = Table(title="interval attention, bf16, milliseconds (x: times faster than dense)", title_justify="left")
    for column in ("N, w", "heads", "scores", "selection", "lists", "order", "forward", "x", "floor", "total", "x"):
        table.add_column(column, justify="left" if column in ("N, w", "scores") else "right")
    for column in ("floor", "eager", "dense fwd", "dense total"):
        table.add_column(column, justify="right")
    for point in measured:
        ours, floor = point["ours"], point["floor"]
        numbers = [ours["selection"], ours["key_lists"], ours["key_order"], ours["forward"]]
        numbers += [point["forward_times_faster"], floor["forward"], ours["total"], point["total_times_faster"]]
        numbers += [floor["total"], ours["total_eager"]]
        numbers += [min(times[part] for times in point["dense"].values()) for part in ("forward", "total")]
        shape = f"{point['N']}, {point['window']}", f"{point['H']}/{point['K']}", point["scores"]
        table.add_row(*shape, *(f"{number:.3g}" for number in numbers))
    return table


def _packages_table(measured: list[dict[str, Any]]) -> Table:
    table = Table(title="other packages, where installed, milliseconds (ours beside)", title_justify="left")
    for column in ("N, w", "heads", "scores", "package", "mask"):
        table.add_column(column)
    for column in ("forward", "ours", "total", "ours", "differs by"):
        table.add_column(column, justify="right")
    for point in measured:
        shape = f"{point['N']}, {point['window']}", f"{point['H']}/{point['K']}", point["scores"]
        for row in point["packages"]:
            times = (each[part] for part in ("forward", "total") for each in (row, point["ours"]))
            differs = row.get("differs", {}).values()
            most = "not finite" if None in differs else f"{max(differs):.1e}" if differs else ""
            table.add_row(*shape, row["package"], row["mask"], *(f"{time:.3g}" for time in times), most)
    return table
