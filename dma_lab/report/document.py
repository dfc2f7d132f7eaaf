"""What a report is made of, before it is a page, a Markdown file or pictures: sections of plain blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Notice:
    """Something that the reader must not overlook, and what it is about, a line each."""

    text: str
    items: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Cells are text; columns named in ``left`` are aligned left, the others are numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[str] = frozenset()
    opens: frozenset[int] = frozenset()
    """Rows that begin a new block of rows."""


@dataclass(frozen=True)
class Series:
    """One curve, cloud of points or band. Series of one ``group`` share colour and legend entry."""

    group: str
    kind: Literal["points", "line", "band"]
    x: Sequence[float]
    y: Sequence[float]
    """Of a band: its lower edge."""
    high: Sequence[float] = ()
    """Of a band: its upper edge."""
    hover: Sequence[str] = ()
    """A line of text for every point."""
    faint: bool = False


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
    reach: float | None = None
    """Values go from ``-reach`` to ``reach``; None: they are shares, 0 to 1."""


Block = str | Notice | Table | Figure | Heatmap


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
        return {series.group for figure in self.figures if isinstance(figure, Figure) for series in figure.series}
