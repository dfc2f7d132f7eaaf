"""What ``report.py status`` prints: one table, and a line on what is left and until when."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dma_lab.report.status import RunStatus, Status
from dma_lab.run_summary import Summary

_SHOWN = 12
"""Points of one sweep that are named; the others are counted."""
_SILENT = 20
"""Times as long as ten of its steps take, without a line: then a run is said to be silent."""


def status_page(status: Status, now: float) -> RenderableType:
    """The table and the forecast; ``now`` in seconds since 1970."""
    table = Table(title=_title(status), title_justify="left")
    for column in ("", "run", "where", "steps", "tokens/s", "loss", "time", "why"):
        table.add_column(column, justify="right" if column in ("steps", "tokens/s", "loss", "time") else "left")
    sections = (
        [
            *(_running(run) for run in status.runs if run.state in ("running", "starting")),
            *(("starting", point.overrides, _where(point.process or {}), *5 * [""]) for point in status.preparing),
        ],
        [*map(_stopped, _stopped_runs(status)), *(("failed", point.overrides, *5 * [""], point.failure or "")
           for point in status.failed)],
        list(_finished(status)),
        list(_left(status)),
    )  # fmt: skip
    for rows in filter(None, sections):
        table.add_section()
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
    return Group(table, Text(_forecast(status, now)))


def _title(status: Status) -> str:
    counts = {
        "running": sum(run.state in ("running", "starting") for run in status.runs) + len(status.preparing),
        "finished": sum(run.state == "finished" for run in status.runs),
        "failed or stopped": len(_stopped_runs(status)) + len(status.failed),
        "points left": sum(len(group.overrides) for group in status.left),
    }
    if status.copies:
        counts["copies of these left out" if status.copies > 1 else "copy of these left out"] = status.copies
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _stopped_runs(status: Status) -> list[RunStatus]:
    return [run for run in status.runs if run.state not in ("running", "starting", "finished")]


def _running(run: RunStatus) -> tuple[str, ...]:
    left = run.seconds_left
    why = ""
    if run.seconds_per_step is not None and run.since_line > max(60.0, _SILENT * 10 * run.seconds_per_step):
        why = f"silent for {_span(run.since_line)}: does it still train?"
    steps = f"{run.step:,}/{run.summary.steps:,} {run.step / run.summary.steps:4.0%}" if run.summary else ""
    return (
        run.state, run.path.name, _where(run.process), steps, _rate(run), _loss(run),
        "" if left is None else f"{_span(left)} left", why,
    )  # fmt: skip


def _where(process: dict[str, Any]) -> str:
    said = (process.get("host"), process.get("device"), f"process {process['pid']}" if "pid" in process else None)
    return ", ".join(filter(None, said))


def _stopped(run: RunStatus) -> tuple[str, ...]:
    what, _, why = (
        run.state.partition(": ") if run.state.startswith(("failed", "diverged")) else ("stopped", "", run.state)
    )
    steps = f"{run.step:,}/{run.summary.steps:,}" if run.summary else ""
    left = run.seconds_left if what == "stopped" else None
    return (what, run.path.name, "", steps, _rate(run), _loss(run), "" if left is None else f"{_span(left)} left", why)


def _finished(status: Status) -> Iterator[tuple[str, ...]]:
    """A row for the runs of one rung, backend and budget: their losses from the least on, for they may differ in more
    than their seeds, and a mean over rates, options or texts is no loss of anything."""
    groups: dict[tuple[str, str, int], list[tuple[RunStatus, Summary]]] = {}
    for run in status.runs:
        if run.state == "finished" and (summary := run.summary) is not None:
            groups.setdefault((summary.rung, summary.attention, summary.tokens), []).append((run, summary))
    for (rung, attention, tokens), runs in sorted(groups.items(), key=lambda group: (group[0][2], group[0])):
        losses = [run.loss for run, _ in runs if run.loss is not None]
        took = [run.seconds_per_step * own.steps for run, own in runs if run.seconds_per_step is not None]
        rates = [own.tokens_per_second for _, own in runs if own.tokens_per_second is not None]
        name = f"{rung} {attention}, {tokens:,} tokens"
        yield (
            "finished", name if len(runs) == 1 else f"{name} ({len(runs)} runs)", "", "",
            f"{sum(rates) / len(rates):,.0f}" if rates else "",
            " to ".join(dict.fromkeys(f"{loss:.4f}" for loss in (min(losses), max(losses)))) if losses else "",
            _span(sum(took) / len(took)) if took else "", "",
        )  # fmt: skip


def _left(status: Status) -> Iterator[tuple[str, ...]]:
    for group in status.left:
        why = (
            "" if group.alive else f"its sweep was stopped: the same command goes on; delete {group.sweep} to forget it"
        )
        for overrides in group.overrides[:_SHOWN]:
            yield ("left", _varied(overrides, group.overrides), "", "", "", "", "", why)
        if more := group.overrides[_SHOWN:]:
            yield ("left", f"and {len(more):,} more", "", "", "", "", "", why)


def _varied(overrides: str, group: list[str]) -> str:
    """Of a point's overrides those that not all points of its sweep share."""
    shared = set.intersection(*(set(other.split()) for other in group))
    own = [part for part in overrides.split() if part not in shared]
    return " ".join(own) or overrides


def _forecast(status: Status, now: float) -> str:
    points = "" if status.points is None else f"{status.points[0]} of {status.points[1]} points of the sweep are done. "
    running = status.preparing or any(run.state in ("running", "starting") for run in status.runs)
    if status.seconds_left is None:
        return points + ("Nothing was measured yet that tells when it ends." if running else "Nothing is running.")
    end = now + status.seconds_left
    form = "%H:%M" if status.seconds_left < 12 * 3600 else "%a %d %b %H:%M"
    said = f"{points}All done in about {_span(status.seconds_left)}, at {time.strftime(form, time.localtime(end))}"
    if status.unmeasured:
        return f"{said}, and {status.unmeasured} more that nothing measured tells the time of."
    return f"{said}."


def _rate(run: RunStatus) -> str:
    if run.seconds_per_step is None or run.summary is None:
        return ""
    return f"{run.summary.tokens / run.summary.steps / run.seconds_per_step:,.0f}"


def _loss(run: RunStatus) -> str:
    return "" if run.loss is None else f"{run.loss:.4f}"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
