"""What the tuner said of each backend, of runs at tuned rates: an optimum at the grid's edge holds for them, too."""

from collections.abc import Iterable, Sequence

from dma_lab.report.collect import Run
from dma_lab.report.document import Table
from dma_lab.report.rates import is_tuned


def how_tuned(backends: Iterable[str], runs: Sequence[Run]) -> Table | None:
    """Of ``runs`` of one cohort, a row for each of their ``backends``; None where they are at no tuned rates.

    It is what their summaries keep of the file, which may be gone.
    """
    if not is_tuned(runs[0]):
        return None
    rows = []
    for backend in backends:
        own = [run for run in runs if run.backend == backend]
        kept = next((run.summary.tuning for run in own if run.summary.tuning), None)
        if kept is None:
            rows.append((backend, "unknown", "unknown", "these runs do not keep what the tuner said of it"))
            continue
        options = ", ".join(f"{name}={value}" for name, value in kept.options.items())
        rows.append((backend, options or "its own", f"{kept.trainings}", "; ".join(kept.notes) or "-"))
    return Table(
        f"Of {runs[0].config.tuned}, from which the rates are: the settings that were chosen for each attention beside "
        "its rate, the trainings that tuning spent on it, and what the tuner said of it. Unequal numbers of trainings "
        "are unequal chances to be well tuned.",
        ("attention", "settings", "trainings spent", "what the tuner said"),
        rows,
        frozenset(("attention", "settings", "what the tuner said")),
        title="How each was tuned",
        unit="trainings of the sweep behind the file",
    )
