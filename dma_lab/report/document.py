"""What a report is made of, before it is a page, a Markdown file or pictures: sections of plain blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Literal

ROWS, LINES = 20, 8
"""Longer tables and lists are folded."""


@dataclass(frozen=True)
class Notice:
    """Something that the reader must not overlook, and what it is about, a line each."""

    text: str
    items: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Cells are text; columns named in ``left`` are aligned left, the others are numbers, some with an interval."""

    title: str = field(kw_only=True)
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[str] = frozenset()
    opens: frozenset[int] = frozenset()
    """Rows that begin a new block of rows."""
    unit: str = field(kw_only=True)
    """What its numbers and intervals are over: the unit of replication, in words."""


@dataclass(frozen=True)
class Series:
    """One curve, cloud of points or band. Series of one ``group`` share colour and legend entry."""

    group: str
    kind: Literal["points", "line", "band", "intervals"]
    x: Sequence[float]
    y: Sequence[float]
    """Of a band or of intervals: the lower edge."""
    high: Sequence[float] = ()
    """Of a band or of intervals: the upper edge."""
    hover: Sequence[str] = ()
    """A line of text for every point."""
    faint: bool = False
    mark: Literal["circle", "diamond", "triangle", "cross"] = "circle"
    """Of points."""


@dataclass(frozen=True)
class Panel:
    """What is drawn below a figure's axes, over the same x."""

    y_label: str
    series: Sequence[Series]
    level: float
    """Where nothing differs: a line goes through it."""
    ratio: bool = False
    """Whether values are ratios: their axis is logarithmic."""

    @property
    def y_range(self) -> tuple[float, float]:
        """Room for lines, points and intervals; for bands as far as the last of each, which is the best known, but not
        beyond three times as far from the level as lines and points go."""
        value = log if self.ratio else float
        level = value(self.level)
        drawn = [value(y) for series in self.series if series.kind in ("points", "line") for y in series.y]
        ends = [value(y) for series in self.series if series.kind == "intervals" for y in (*series.y, *series.high)]
        ends += [
            value(end) for series in self.series if series.kind == "band" for end in (series.y[-1], series.high[-1])
        ]
        reach = 3 * max((abs(y - level) for y in drawn), default=0.0)
        shown = [level, *drawn, *(min(max(end, level - reach), level + reach) for end in ends)]
        margin = 0.06 * (max(shown) - min(shown)) or 0.1
        low, high = min(shown) - margin, max(shown) + margin
        return (exp(low), exp(high)) if self.ratio else (low, high)

    @property
    def ticks(self) -> list[float]:
        """Of ratios: three to seven round ones."""
        low, high = self.y_range
        for steps in _RATIOS:
            found = [step for step in steps if low <= step <= high]
            if len(found) >= 3:
                return found
        return [1.0]


_RATIOS = (
    (0.01, 0.1, 1, 10, 100),
    (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
    (0.125, 0.25, 0.5, 1, 2, 4, 8),
    (0.5, 0.7, 1, 1.4, 2),
    (0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.4),
    (0.9, 0.95, 1, 1.05, 1.1),
)


@dataclass(frozen=True)
class Figure:
    """Curves over a pair of axes."""

    slug: str
    """Names its files."""
    title: str
    caption: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    below: Panel | None = None
    unit: str = field(kw_only=True)
    """As a table's."""

    @property
    def all_series(self) -> list[Series]:
        """Of both panels."""
        return [*self.series, *(self.below.series if self.below else ())]

    @property
    def y_range(self) -> tuple[float, float]:
        """Room for all points and lines; a band may leave it, for bands can reach as far as ignorance does."""
        values = [value for series in self.series if series.kind != "band" for value in series.y] or [0.0, 1.0]
        margin = 0.05 * (max(values) - min(values)) or 0.5
        return min(values) - margin, max(values) + margin


@dataclass(frozen=True)
class Heatmap:
    """Values by row and column; ``rows`` are listed from the top."""

    slug: str
    title: str
    caption: str
    x_label: str
    y_label: str
    x: Sequence[float]
    """Left edges of the columns, and the right edge of the last."""
    x_ticks: dict[float, str]
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]
    """None: there is none."""
    columns: Sequence[str] = ()
    """What to call each column; without names they are lifetimes in windows."""
    scale: str = "share of keys"
    """What the values are."""
    unit: str = field(kw_only=True)
    """As a table's."""
    reach: float | None = None
    """Values go from ``-reach`` to ``reach``; None: they are shares, 0 to 1."""


@dataclass(frozen=True)
class Verdict:
    """What is known of a backend beside MHA."""

    backend: str
    state: Literal["needs more", "needs less", "open", "not known"]
    sentence: str
    further: str = ""
    """Where the same goes by extrapolation."""


@dataclass(frozen=True)
class Verdicts:
    """One per backend; the same weight for what is known and what is not."""

    items: Sequence[Verdict]


Block = str | Notice | Table | Figure | Heatmap | Verdicts


@dataclass(frozen=True)
class Section:
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Document:
    title: str
    lead: str
    sections: list[Section]

    @property
    def figures(self) -> list[Figure | Heatmap]:
        """All of them, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure | Heatmap)]

    @property
    def groups(self) -> set[str]:
        """What the figures' curves belong to."""
        return {series.group for figure in self.figures if isinstance(figure, Figure) for series in figure.all_series}
