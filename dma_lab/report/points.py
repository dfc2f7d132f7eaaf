"""Laws of anyone's table: a CSV of parameters, tokens and losses, without a run of ours."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dma_lab.messages import UserError
from dma_lab.report import tables
from dma_lab.report.document import Block, Document, Figure, Notice, Section, Series
from dma_lab.report.growth import AHEAD, optima
from dma_lab.report.laws import band, vagueness
from dma_lab.scaling.fit import ParametricFit, fit_parametric
from dma_lab.scaling.optimum import compute_optimal
from dma_lab.scaling.trainings import TrainingsFit, fit_trainings

_NUMBERS = ("parameters", "tokens", "loss")


@dataclass
class _Backend:
    """Columns of one backend's rows."""

    parameters: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    training: list[str] = field(default_factory=list)


def points_document(path: Path) -> Document:
    """What the laws fitted to the points in ``path`` say.

    Columns ``parameters``, ``tokens`` and ``loss`` (nats per token) are read and, where they exist, ``backend``, each
    of which has a law of its own, and ``training``, equal in branches of one; else every row is a training.

    Raises:
        UserError: there is no such file, or no such columns and numbers in it.
    """
    backends = _read(path)
    laws: dict[str, TrainingsFit] = {}
    published: dict[str, ParametricFit] = {}
    refused = []
    for name, own in backends.items():
        columns = own.parameters, own.tokens, own.loss
        try:
            law = fit_trainings(*columns, own.training)
            if vague := vagueness(law):
                raise UserError(vague)
            laws[name], published[name] = law, fit_parametric(*columns)
        except UserError as error:
            refused.append(f"{name}: {error}")
    blocks: list[Block] = [_figure(backends, laws)]
    if refused:
        blocks.insert(0, Notice("Where the points do not suffice, no scaling law is given.", refused))
    if laws:
        largest = max(6 * n * d for own in backends.values() for n, d in zip(own.parameters, own.tokens, strict=True))
        blocks.append(tables.law_parameters(laws, published))
        blocks.append("Below, training costs 6 N D FLOP.")
        blocks += optima({name: [compute_optimal(law, a * largest) for a in AHEAD] for name, law in laws.items()})
    count = sum(len(own.loss) for own in backends.values())
    return Document(
        f"Scaling laws of {path.name}", f"{count} points of {', '.join(backends)}.", [Section("Scaling", blocks)]
    )


def _read(path: Path) -> dict[str, _Backend]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"points={path} cannot be read ({reason}); name a CSV file.") from None
    if missing := [name for name in _NUMBERS if name not in columns]:
        raise UserError(
            f"points={path} has no column {', '.join(missing)}; its first line must name parameters, tokens and loss "
            "(nats per token), and may name backend and training."
        )
    if not rows:
        raise UserError(f"points={path} has no row below its first line; give each run one row.")
    backends: dict[str, _Backend] = {}
    for number, row in enumerate(rows, 2):
        own = backends.setdefault(row.get("backend") or "points", _Backend())
        for name in _NUMBERS:
            try:
                value = float(row[name])
            except (TypeError, ValueError):
                value = math.nan
            if not (math.isfinite(value) and value > 0):
                raise UserError(
                    f"points={path}: line {number} has {name} = {row[name]!r}, where a number above 0 must stand; "
                    "correct or remove the line."
                )
            getattr(own, name).append(value)
        own.training.append(row.get("training") or f"line {number}")
    return backends


def _figure(backends: dict[str, _Backend], laws: dict[str, TrainingsFit]) -> Figure:
    series = []
    for name, own in backends.items():
        params, tokens = np.array(own.parameters), np.array(own.tokens)
        for size in np.unique(params) if name in laws else ():
            over = np.geomspace(tokens[params == size].min(), tokens[params == size].max(), 12)
            if over[0] < over[-1]:
                low, high = band(laws[name], size, over)
                x = list(6 * size * over)
                series.append(Series(name, "band", x, list(low), list(high)))
                series.append(Series(name, "line", x, list(laws[name].predict(size, over))))
        hover = [f"{name}: {n:,.0f} parameters, {d:,.0f} tokens" for n, d in zip(params, tokens, strict=True)]
        series.append(Series(name, "points", list(6 * params * tokens), own.loss, hover=hover))
    return Figure(
        "loss",
        "Loss against compute",
        "Each point is a row of the file. A line is the law at one size, shaded: 95 % of what the rows leave open.",
        "training compute, 6 N D (FLOP)",
        "loss (nats per token)",
        series,
        x_log=True,
        unit="a point is a row of the file; shades are over its trainings",
    )
