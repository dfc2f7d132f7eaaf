"""What the mean hides, size by size: the difference to MHA by kind of target at every rung's largest budget."""

from collections.abc import Sequence

from dma_lab.report.comparison import Comparison, OverTrainings
from dma_lab.report.document import Table
from dma_lab.report.rates import precedence
from dma_lab.scaling.replicates import MeanDifference


def by_size(kinds: Sequence[tuple[str, Comparison]]) -> Table | None:
    """Of each kind of target, by name, its comparison; None where they are of one rung, whose table has it all."""
    found = [{(cell.run.path, cell.beside): cell.difference for cell in own.cells} for _, own in kinds]
    chosen = _largest(kinds[0][1].cells)
    if len({cell.run.model for cell in chosen}) < 2:
        return None
    settings = any(cell.run.setting for cell in chosen)
    rows = []
    for cell in chosen:
        of_kinds = (own.get((cell.run.path, cell.beside)) for own in found)
        rows.append(
            (
                *(cell.run.backend, cell.beside, cell.run.rung, *([cell.run.setting] if settings else [])),
                *(f"{cell.run.summary.tokens:,}", f"{cell.difference.seeds}"),
                *("-" if own is None else told(own) for own in of_kinds),
            )
        )
    return Table(
        "Loss minus MHA's in nats per token at the largest budget of every rung, with 95 % over trainings and "
        "documents (*: over trainings, on these few documents). Where a rung has one seed the spread over trainings "
        "is that of others. Last columns: targets predicted from so few tokens of their document, or so many.",
        (
            *("attention", "beside", "rung", *(["setting"] if settings else [])),
            *("tokens", "seeds", *(name for name, _ in kinds)),
        ),
        rows,
        frozenset(("attention", "beside", "rung", "setting")),
        title="The same, size by size",
        unit="trainings (seeds), crossed with documents",
    )


def told(difference: MeanDifference) -> str:
    """Its mean, and its interval where it has one."""
    if difference.interval is None:
        return f"{difference.difference:+.4f}"
    low, high = difference.interval
    return f"{difference.difference:+.4f} [{low:+.4f}, {high:+.4f}]{'' if difference.over_documents else '*'}"


def _largest(cells: Sequence[OverTrainings]) -> list[OverTrainings]:
    """Of every rung, backend and MHA the cell that precedes (``precedence``), in the order that they came in."""
    best: dict[tuple[object, str, str], OverTrainings] = {}
    for cell in cells:
        key = cell.run.model, cell.run.backend, cell.beside
        if key not in best or precedence(cell.run) > precedence(best[key].run):
            best[key] = cell
    return list(best.values())
