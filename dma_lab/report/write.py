"""A directory of runs to a directory with the whole report."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from dma_lab.figures.palette import colours_of
from dma_lab.progress import WorkProgress
from dma_lab.report.cohorts import cohorts
from dma_lab.report.collect import read_runs
from dma_lab.report.document import Document
from dma_lab.report.draw import draw
from dma_lab.report.forecast import forecast_section, read_forecast, register
from dma_lab.report.markdown import figures_linked, write_markdown
from dma_lab.report.page import write_page
from dma_lab.report.points import points_document
from dma_lab.report.sections import build_document
from dma_lab.report.settings import Larger
from dma_lab.report.tables import write_points

_NO_RUN = Larger(None, None, None)


def write_report(roots: Sequence[Path], output: Path, forecasts: Sequence[Path] = (), larger: Larger = _NO_RUN) -> Path:
    """Write index.html, report.md, points.csv and figures/ of the runs under ``roots`` to ``output``.

    Args:
        roots: where runs are.
        output: what is written to.
        forecasts: files that the report scores; to one that is not there, the forecast of ``larger`` is written.
        larger: a run that is to be trained.

    Returns:
        The page.

    Raises:
        UserError: there is no run under one of ``roots``; nothing can be forecast.
    """
    runs, problems = read_runs(*roots)
    groups = cohorts(runs)
    register(forecasts, larger, groups)
    # Fits and lifetimes take the time; that a fit is refused at once only shows when it is tried.
    finished = [run for members in groups.values() for run in members if run.finished]
    steps = 3 * len({run.backend for run in finished}) + sum(run.attention == "dma" for run in finished)
    with WorkProgress("fitting") as progress:
        done = itertools.count(1)
        document, compared = build_document(
            runs, problems, lambda name: progress.update(next(done) / max(1, steps), name)
        )
    # Before the list of runs.
    document.sections[-1:-1] = [forecast_section(read_forecast(file), groups) for file in forecasts]
    _write_document(document, output)
    write_points(output / "points.csv", compared)
    return output / "index.html"


def write_laws(points: str, output: Path) -> Path:
    """Write index.html, report.md and figures/ of the laws of the CSV ``points`` to ``output``.

    Returns:
        The page.

    Raises:
        UserError: the file cannot be read as points.
    """
    _write_document(points_document(Path(points)), output)
    return output / "index.html"


def _write_document(document: Document, output: Path) -> None:
    """The page, the Markdown and the figures."""
    folder = output / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    # A figure of the last report that these runs no longer give must not lie there as if they did.
    for slug in figures_linked(output / "report.md"):
        for kind in ("svg", "png"):
            (folder / f"{slug}.{kind}").unlink(missing_ok=True)
    colours = colours_of(document.groups)
    with WorkProgress("drawing") as progress:
        for number, figure in enumerate(document.figures, 1):
            draw(figure, folder, colours)
            progress.update(number / len(document.figures), figure.slug)
    write_markdown(document, output / "report.md")
    write_page(document, output / "index.html")
