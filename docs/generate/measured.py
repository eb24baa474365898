"""Our own measurements of one method, read from the tables of docs/results.md."""

import re
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results.md"


@dataclass(frozen=True)
class Row:
    """One row of a table. heading: of the section. columns, cells: of equal length, the first one is the method."""

    heading: str
    columns: tuple[str, ...]
    cells: tuple[str, ...]

    @property
    def anchor(self) -> str:
        """The anchor of the section in results.md."""
        return re.sub(r"[^\w -]", "", self.heading.lower()).replace(" ", "-")


def measurements(method: str, gained: bool = True) -> list[Row]:
    """The rows whose first cell is the method. gained: only of tables with the column `gain`."""
    return [row for row in _rows() if row.cells[0] in (method, f"`{method}`") and ("gain" in row.columns) == gained]


def _rows() -> list[Row]:
    rows, heading, columns = [], "", ()
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        if title := re.match(r"#+ (.+)", line):
            heading, columns = title[1], ()
        elif not line.startswith("|"):
            columns = ()
        elif not columns:
            columns = _cells(line)
        elif not line.startswith("|---"):
            rows.append(Row(heading, columns, _cells(line)))
    return rows


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
