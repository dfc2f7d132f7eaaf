"""Laws of anyone's table: a CSV of parameters, tokens and losses, without a run of ours."""

import contextlib
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
from dma_lab.scaling.noise_by_size import powers_elsewhere
from dma_lab.scaling.optimum import compute_optimal
from dma_lab.scaling.trainings import TrainingsFit, fit_trainings
from dma_lab.settings import shown

_NUMBERS = ("parameters", "tokens", "loss")
_WORDS = ("backend", "training")
_BEYOND_ANY = 1e30
_MOST_LISTED = 10


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
    backends, equal = _read(path)
    laws: dict[str, TrainingsFit] = {}
    published: dict[str, ParametricFit] = {}
    refused = []
    elsewhere = powers_elsewhere(
        {name: (own.parameters, own.tokens, own.loss, own.training) for name, own in backends.items()}
    )
    for name, own in backends.items():
        columns = own.parameters, own.tokens, own.loss
        try:
            law = fit_trainings(*columns, own.training, elsewhere=elsewhere[name])
            if vague := vagueness(law):
                raise UserError(vague)
            laws[name] = law
        except UserError as error:
            refused.append(f"{name}: {error}")
        else:
            with contextlib.suppress(UserError):  # at a bound, where least squares is not
                published[name] = fit_parametric(*columns)
    blocks: list[Block] = [_figure(backends, laws)]
    if refused:
        blocks.insert(0, Notice("Where the points do not suffice, no scaling law is given.", refused))
    if equal:
        more = [f"and {len(equal) - _MOST_LISTED} more"] if len(equal) > _MOST_LISTED else []
        said = "Equal rows count as trainings of their own: if they are copies, the intervals below are too narrow."
        blocks.insert(0, Notice(said, [*equal[:_MOST_LISTED], *more]))
    if laws:
        largest = max(6 * n * d for own in backends.values() for n, d in zip(own.parameters, own.tokens, strict=True))
        blocks.append(tables.law_parameters(laws, published))
        blocks.append("Below, training costs 6 N D FLOP.")
        blocks += optima({name: [compute_optimal(law, a * largest) for a in AHEAD] for name, law in laws.items()})
    count = sum(len(own.loss) for own in backends.values())
    return Document(
        f"Scaling laws of {path.name}", f"{count} points of {', '.join(backends)}.", [Section("Scaling", blocks)]
    )


def _read(path: Path) -> tuple[dict[str, _Backend], list[str]]:
    """The rows by backend, and in words those that stand in the file twice."""
    try:
        # utf-8-sig: what Excel writes begins with a mark.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            rows, columns = [(reader.line_num, row) for row in reader], reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"points={path} cannot be read ({reason}); name a CSV file.") from None
    if missing := [name for name in _NUMBERS if name not in columns]:
        raise UserError(
            f"points={path} has no column {', '.join(missing)} (it has: {shown(', '.join(columns))}); its first line "
            "must name parameters, tokens and loss (nats per token), and may name backend and training."
        )
    if twice := [name for name in (*_NUMBERS, *_WORDS) if list(columns).count(name) > 1]:
        raise UserError(f"points={path} has more than one column {', '.join(twice)}; leave one.")
    if not rows:
        raise UserError(f"points={path} has no row below its first line; give each run one row.")
    backends: dict[str, _Backend] = {}
    first: dict[tuple[str | None, ...], int] = {}
    sizes: dict[tuple[int, str], float] = {}
    equal = []
    for number, row in rows:
        if None in row:  # a number with a comma in it, say
            raise UserError(
                f"points={path}: line {number} has more cells than the first line has columns; write numbers with a "
                "point and without separators, and quote text that holds a comma."
            )
        cells = tuple(row.get(name) for name in (*_NUMBERS, *_WORDS))
        if (before := first.setdefault(cells, number)) != number:
            equal.append(f"line {number} is line {before}")
        own = backends.setdefault(row.get("backend") or "points", _Backend())
        for name in _NUMBERS:
            try:
                value = float(row[name])
            except (TypeError, ValueError):
                value = math.nan
            if not 0 < value < _BEYOND_ANY:
                raise UserError(
                    f"points={path}: line {number} has {name} = {row[name]!r}, where a number above 0 must stand that "
                    "a run can have; correct or remove the line."
                )
            getattr(own, name).append(value)
        own.training.append(row.get("training") or f"line {number}")
        size, earlier = own.parameters[-1], sizes.setdefault((id(own), own.training[-1]), own.parameters[-1])
        if size != earlier:  # a seed, say, which all sizes have: taken for branches, runs would share what they do not
            raise UserError(
                f"points={path}: line {number} has training = {own.training[-1]!r} with {size:g} parameters, which "
                f"stands above with {earlier:g}; rows of one training are branches of one model: give others names of "
                "their own."
            )
    return backends, equal


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
