"""Interval attention with DMA's lifetimes against dense causal attention, in one run on one GPU.

"Forward" is attention alone, given its key lists; "total" is selection, index building, forward and backward. Every
dense figure is the fastest of PyTorch's own kernels and the flash-attn packages that are installed, all of which get as
many key/value heads as there are query heads: how few they are is nothing to dense attention's arithmetic. The floor of
a figure is the arithmetic of its live (query, key) pairs at the rate of the dense kernel it stands beside. All that is
measured at one length takes turns; other packages follow it. "launch" is what Python takes to hand over a total.
"""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dma_lab.benchmarks.figure import draw_kernels
from dma_lab.benchmarks.goals import judge_kernels, verdict_table
from dma_lab.benchmarks.kernel_cases import KINDS, PARTS, Case, dense_functions, flex_function, live_share
from dma_lab.benchmarks.packages import packages_beside
from dma_lab.benchmarks.record import write_record
from dma_lab.benchmarks.settings import KernelsSettings
from dma_lab.benchmarks.timing import in_turns, launch_milliseconds, progress, require_gpu

_FLASH_UP_TO = 32_768  # tokens; beyond, seconds would go into kernels of the generation before


def bench_kernels(settings: KernelsSettings) -> Path:
    """Measure all shapes with all numbers of key/value heads, kinds of scores at one; writes a record and a figure."""
    require_gpu()
    record: dict[str, Any] = {"settings": dataclasses.asdict(settings), "units": "milliseconds, medians of turns"}
    measured: list[dict[str, Any]] = []
    flex: dict[str, Any] | None = None
    started = datetime.now(UTC)
    shapes = [tuple(shape) for shape in settings.shapes]
    of_kinds = tuple(settings.scores_at)
    with progress() as bar:
        for N, window in bar.track(list(dict.fromkeys([*shapes, of_kinds])), description="interval attention"):
            heads = list(settings.kv_heads) if (N, window) in shapes else [settings.heads]
            cases = [(K, "random") for K in heads]
            if (N, window) == of_kinds:
                cases = list(dict.fromkeys([*cases, *((settings.heads, kind) for kind in KINDS)]))
            made = {(K, kind): Case(N, window, settings.heads, K, settings.head_dim, kind) for K, kind in cases}
            points, forward = _measure(N, window, made, settings.flex and (N, window) == of_kinds, bar)
            measured += points
            if forward is not None:
                flex = {"N": N, "window": window, "K": settings.heads, "forward": forward}
            # After every shape, so that what was measured survives a run that is cut off.
            path = write_record(settings.results_dir, "kernels", record | {"points": measured, "flex": flex}, started)
    console = Console(width=150)
    console.print(_table(measured))
    if flex is not None:
        print(f"FlexAttention, the same mask, {flex['N']} tokens, forward: {flex['forward']:.2f} ms")
    console.print(_packages_table(measured))
    console.print(verdict_table(judge_kernels(measured, flex)))
    draw_kernels(measured, path.with_suffix(".svg"))
    print(f"recorded in {path}")
    return path


def _measure(
    N: int, window: int, cases: dict[tuple[int, str], Case], flex: bool, bar: Progress
) -> tuple[list[dict[str, Any]], float | None]:
    """A point of every case, by number of key/value heads and kind of scores; and FlexAttention's forward pass."""
    times = _times(N, cases, flex, bar)
    names = [key[0] for key in times if key[1:] == ("forward",)]
    dense = {name: {part: times[name, part] for part in ("forward", "total")} for name in names}
    best = {part: min(each[part] for each in dense.values()) for part in ("forward", "total")}
    points = []
    for (K, kind), case in cases.items():
        ours = {part: times[K, kind, part] for part in PARTS} | {"launch": launch_milliseconds(case.total)}
        share = live_share(case.expiry)
        point = {"N": N, "window": window, "H": case.q.shape[1], "K": K, "scores": kind, "ours": ours, "dense": dense}
        point["packages"] = packages_beside(kind, case.q, case.k, case.v, case.scores, case.expiry, window, case.d_out)
        point |= {f"{part}_times_faster": best[part] / ours[part] for part in best}
        point |= {"live_share": share, "floor": {part: best[part] * share for part in best}}
        points.append(point | {"peak_bytes_beside_inputs": case.peak_bytes()})
    return points, times.get(("flex",))


def _times(N: int, cases: dict[tuple[int, str], Case], flex: bool, bar: Progress) -> dict[tuple[Any, ...], float]:
    """Milliseconds of every case's parts, of dense attention and, if asked, of FlexAttention, all in turns."""
    functions: dict[tuple[Any, ...], Callable[[], Any]] = {}
    for (K, kind), case in cases.items():
        functions |= {(K, kind, part): function for part, function in case.functions().items()}
    like = max(cases.values(), key=lambda case: case.k.shape[1])
    for name, parts in dense_functions(like).items():
        if name in ("cudnn", "flash-attn 4") or N <= _FLASH_UP_TO:
            functions |= {(name, part): function for part, function in parts.items()}
    if flex:
        functions["flex",] = flex_function(like)
    return in_turns(functions, bar, f"{N:,} tokens")


def _table(measured: list[dict[str, Any]]) -> Table:
    table = Table(title="interval attention, bf16, milliseconds (x: times faster than dense)", title_justify="left")
    for column in ("N, w", "heads", "scores", "selection", "lists", "order", "forward", "x", "floor", "total", "x"):
        table.add_column(column, justify="left" if column in ("N, w", "scores") else "right")
    for column in ("floor", "launch", "dense fwd", "dense total"):
        table.add_column(column, justify="right")
    for point in measured:
        ours, floor = point["ours"], point["floor"]
        numbers = [ours["selection"], ours["key_lists"], ours["key_order"], ours["forward"]]
        numbers += [point["forward_times_faster"], floor["forward"], ours["total"], point["total_times_faster"]]
        numbers += [floor["total"], ours["launch"]]
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
