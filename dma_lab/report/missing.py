"""Points at which some backend of a cohort has a run and another has no finished one."""

from collections.abc import Sequence

from dma_lab.report.collect import Run
from dma_lab.report.conditions import SHAPED, without
from dma_lab.report.document import Notice


def missing_points(name: str, runs: Sequence[Run]) -> Notice | None:
    """What is missing of a cohort called ``name``: counts by backend, and a line for every rung; None: nothing."""
    # Without what makes a variant of a backend: no variant has the other's context.
    point_of = {run.path: without(run.conditions, SHAPED) for run in runs}
    finished = {(run.backend, point_of[run.path]) for run in runs if run.finished}
    state = {(run.backend, point_of[run.path]): run.status for run in runs if not run.finished}
    seeds: dict[tuple[str, str, str, str], dict[int, list[int]]] = {}
    counts: dict[str, int] = {}
    for point, run in {point_of[run.path]: run for run in runs}.items():
        for backend in dict.fromkeys(run.backend for run in runs):
            if (backend, point) not in finished:
                what = backend, run.rung, run.setting, state.get((backend, point), "not run")
                by_tokens = seeds.setdefault(what, {})
                by_tokens.setdefault(run.summary.tokens, []).append(run.summary.seed)
                counts[backend] = counts.get(backend, 0) + 1
    if not counts:
        return None
    # Budgets that lack the same seeds share a line.
    lines: dict[tuple[str, str, str, str, tuple[int, ...]], list[int]] = {}
    for what, by_tokens in seeds.items():
        for tokens, of in by_tokens.items():
            lines.setdefault((*what, tuple(sorted(of))), []).append(tokens)
    total = sum(counts.values())
    by_backend = ", ".join(f"{backend} {count}" for backend, count in counts.items())
    return Notice(
        f"{total} {'point is' if total == 1 else 'points are'} missing where another backend has a run ({by_backend}), "
        f"in {name}.",
        [_line(*what, tokens) for what, tokens in lines.items()],
    )


def _line(backend: str, rung: str, setting: str, why: str, seeds: tuple[int, ...], tokens: list[int]) -> str:
    budgets = " and ".join(f"{count:,}" for count in sorted(tokens))
    of = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"{backend} at rung {rung}, {budgets} tokens{f', {setting}' if setting else ''}, {of}: {why}"
