"""NSA's attention, branch by branch, against dense causal attention, in one run on one GPU.

"Forward" is a branch alone; "total" is forward and backward; "all" is the three with the choice of blocks and lists.
Queries, keys and values are random, so neighbouring queries choose unlike blocks: the worst case for whatever lets them
share. Compressing keys into summaries is a layer's projection and not counted. The dense figure is the fastest of
PyTorch's own kernels and the flash-attn packages that are installed.
"""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dma_lab.attention import build_attention
from dma_lab.attention.nsa import NativeSparseAttention
from dma_lab.attention.nsa_blocks import locate_blocks
from dma_lab.benchmarks.kernel_cases import Case, Functions, dense_functions
from dma_lab.benchmarks.record import write_record
from dma_lab.benchmarks.settings import NsaSettings
from dma_lab.benchmarks.timing import in_turns, progress, require_gpu
from dma_lab.kernels import causal_attention, document_bounds
from dma_lab.kernels.blocks.attention import choose_blocks, selected_attention
from dma_lab.kernels.blocks.compressed import compressed_attention


class NsaCase:
    """Inputs of one layer's three branches, bfloat16, sizes as NSA has them by itself at a context of ``N`` tokens."""

    def __init__(self, N: int, H: int, K: int, D: int) -> None:
        torch.manual_seed(0)
        shape = {"d_model": H * D, "n_heads": H, "n_kv_heads": K, "head_dim": D, "max_seq_len": N}
        with torch.device("meta"):
            layer = build_attention("nsa", **shape)
        assert isinstance(layer, NativeSparseAttention)
        self.layer = layer
        start_bn, end_bn = document_bounds(None, 1, N, torch.device("cuda"))
        first_bz, before_bn = locate_blocks(start_bn, end_bn, layer.block, layer.stride)
        self.end_bn, self.last_bz = end_bn, first_bz + layer.block - 1
        self.bounds = [bounds.to(torch.int32).contiguous() for bounds in (start_bn, end_bn, before_bn)]

        def heads(number: int, length: int) -> Tensor:
            return torch.randn(1, length, number, D, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

        Z = first_bz.shape[1]
        self.q, self.d_out = heads(H, N), heads(H, N)
        self.pairs = {
            "sliding": (heads(K, N), heads(K, N)),
            "compressed": (heads(K, Z), heads(K, Z)),
            "selected": (heads(K, N), heads(K, N)),
        }

    def sliding(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v, window=self.layer.window)

    def compressed(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return compressed_attention(q, k, v, self.last_bz, self.end_bn)

    def choose(self, q: Tensor, k: Tensor, lse: Tensor) -> Tensor:
        sizes = {"block": self.layer.block, "stride": self.layer.stride, "selected_block": self.layer.selected_block}
        return choose_blocks(q, k, lse, self.bounds[0], self.bounds[2], self.layer.selected_blocks, **sizes)

    def selected(self, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor) -> Tensor:
        return selected_attention(q, k, v, chosen, *self.bounds[:2], block=self.layer.selected_block)

    def all_branches(
        self, q: Tensor, k_sliding: Tensor, v_sliding: Tensor, k_compressed: Tensor, v_compressed: Tensor,
        k_selected: Tensor, v_selected: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """The three outputs, as a layer makes them."""
        compressed, lse = self.compressed(q, k_compressed, v_compressed)
        chosen = self.choose(q.detach(), k_compressed.detach(), lse)
        return self.sliding(q, k_sliding, v_sliding), compressed, self.selected(q, k_selected, v_selected, chosen)

    def functions(self) -> dict[tuple[str, str], Callable[[], Any]]:
        """By branch and part."""
        with torch.no_grad():
            _, lse = self.compressed(self.q, *self.pairs["compressed"])
            k_compressed = self.pairs["compressed"][0]
            chosen = self.choose(self.q, k_compressed, lse)
        branches: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
            "sliding": (self.sliding, self.pairs["sliding"]),
            "compressed": (lambda *inputs: self.compressed(*inputs)[0], self.pairs["compressed"]),
            "selected": (partial(self.selected, chosen=chosen), self.pairs["selected"]),
            "all": (self.all_branches, tuple(tensor for pair in self.pairs.values() for tensor in pair)),
        }
        found: dict[tuple[str, str], Callable[[], Any]] = {
            ("choice", "forward"): lambda: self.choose(self.q, k_compressed, lse)
        }
        for name, (attend, keys_values) in branches.items():
            for part, function in self._parts(attend, keys_values).items():
                found[name, part] = function
        return found

    def _parts(self, attend: Callable[..., Any], keys_values: tuple[Tensor, ...]) -> Functions:
        inputs = [tensor.detach().requires_grad_() for tensor in (self.q, *keys_values)]

        def total() -> tuple[Tensor, ...]:
            out = attend(*inputs)
            outs = out if isinstance(out, tuple) else (out,)
            return torch.autograd.grad(outs, inputs, [self.d_out] * len(outs))

        return {"forward": torch.no_grad()(lambda: attend(*inputs)), "total": total}


def bench_nsa(settings: NsaSettings) -> Path:
    """Measure every length; writes a record after each."""
    require_gpu()
    H, K, D = settings.heads, settings.kv_heads, settings.head_dim
    points: list[dict[str, Any]] = []
    started = datetime.now(UTC)
    with progress() as bar:
        for N in settings.lengths:
            functions: dict[tuple[str, str], Callable[[], Any]] = NsaCase(N, H, K, D).functions()
            dense = dense_functions(Case(N, N, H, K, D, "constant"))
            functions |= {(f"dense: {name}", part): run for name, parts in dense.items() for part, run in parts.items()}
            times = in_turns(functions, bar, f"{N:,} tokens")
            best = {
                part: min(time for (name, of), time in times.items() if name.startswith("dense") and of == part)
                for part in ("forward", "total")
            }
            point = {"N": N, "H": H, "K": K, "D": D, "times_faster": {p: best[p] / times["all", p] for p in best}}
            points.append(point | {"milliseconds": {f"{name}, {part}": ms for (name, part), ms in times.items()}})
            record = {"settings": dataclasses.asdict(settings), "units": "milliseconds, medians of turns"}
            path = write_record(settings.results_dir, "nsa", record | {"points": points}, started)
    Console(width=150).print(_table(points))
    print(f"recorded in {path}")
    return path


def _table(points: list[dict[str, Any]]) -> Table:
    table = Table(title="NSA's attention, bf16, milliseconds", title_justify="left")
    table.add_column("")
    for point in points:
        table.add_column(f"{point['N']:,}", justify="right")
    for name in points[0]["milliseconds"]:
        table.add_row(name, *(f"{point['milliseconds'][name]:.3g}" for point in points))
    for part in ("forward", "total"):
        table.add_row(f"times faster than dense, {part}", *(f"{point['times_faster'][part]:.2f}" for point in points))
    return table
