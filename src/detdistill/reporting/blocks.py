"""The parts of a page. The template has one macro for each `kind`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from detdistill.reporting.content import Example


@dataclass(frozen=True)
class Cell:
    """A cell of a table. key: what it is sorted by; None: last. mark: a drawing. heat: of the background, 0..1. title:
    a hint. below: a second line.
    """

    text: str
    key: float | str | None = None
    mark: Markup | None = None
    heat: float | None = None
    title: str = ""
    below: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows. numeric: the columns that are aligned to the right."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: frozenset[int] = frozenset()
    sortable: bool = True


@dataclass(frozen=True)
class Chart:
    """A drawing with its legend: names and colors."""

    title: str
    drawing: Markup
    legend: Sequence[tuple[str, Markup]]


@dataclass(frozen=True)
class Charts:
    """Drawings side by side."""

    kind: ClassVar[str] = "charts"
    items: Sequence[Chart]


@dataclass(frozen=True)
class Text:
    """A paragraph. tone: of a box around it, or an empty text. title: of the box."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = ""
    title: str = ""


@dataclass(frozen=True)
class Points:
    """A list."""

    kind: ClassVar[str] = "points"
    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text that is to be copied."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True)
class Gallery:
    """Images, each with the boxes of several models side by side. captions: one per example."""

    kind: ClassVar[str] = "gallery"
    title: str
    examples: Sequence[Example]
    captions: Sequence[str]


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader opens and closes."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: Sequence["Block"]
    is_open: bool = False


@dataclass(frozen=True)
class Legend:
    """The colors of names."""

    kind: ClassVar[str] = "legend"
    colors: Mapping[str, str]


Block = Table | Charts | Text | Points | Code | Gallery | Fold | Legend


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)
