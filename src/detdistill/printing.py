"""Tables in text: rich on a terminal, aligned plain text in a file or a pipe. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table


def table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with numbers aligned to the right.

    On a terminal, cells wrap at its width; a table of few rows that is still too wide is turned: its columns become
    rows. In a file or a pipe every row is one line, for `grep` and `sort`.
    """
    right = [index > 0 and all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    if console.is_terminal:
        shown = _framed(columns, rows, right)
        if not _fits(shown, console) and len(rows) < len(columns):
            first, *others = [list(cells) for cells in zip(columns, *rows, strict=True)]
            turned = _framed(first, others, [False, *[True] * len(rows)])
            shown = turned if _fits(turned, console) else shown
        console.print(shown, soft_wrap=False)
        return
    lines = [columns, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, right, strict=True)
        ]
        console.print("  ".join(cells).rstrip())


def _framed(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Table:
    """A table for a terminal. right: whether each column is aligned to the right."""
    framed = Table()
    for index, (name, is_right) in enumerate(zip(columns, right, strict=True)):
        # A cell that is too wide goes on in the next line: a cut number would be a wrong one.
        justify: Literal["left", "right"] = "right" if is_right else "left"
        framed.add_column(name, justify=justify, no_wrap=index == 0, overflow="fold")
    for row in rows:
        framed.add_row(*row)
    return framed


def _fits(framed: Table, console: Console) -> bool:
    """True if the terminal is wide enough for the longest word of each column."""
    unlimited = console.options.update(width=10_000)  # or the measure is cut at the width
    return console.measure(framed, options=unlimited).minimum <= console.width


def grouped(console: Console, columns: Sequence[str], blocks: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Print rows under the heading of their group; in a file or a pipe as one table with the group as last column.

    On a terminal, the last column takes the width that is left and wraps there.
    """
    if not console.is_terminal:
        table(console, [*columns, "group"], [[*row, group] for group, rows in blocks.items() for row in rows])
        return
    last = len(columns) - 1
    for group, rows in blocks.items():
        console.print(f"\n{group}", style="bold")
        grid = Table.grid(padding=(0, 2, 0, 0))
        for index in range(len(columns)):
            width = max(len(row[index]) for block in blocks.values() for row in block)
            grid.add_column(no_wrap=index < last, min_width=width if index < last else None)
        for row in rows:
            grid.add_row(*row)
        console.print(grid, soft_wrap=False)
    console.print()


def number(value: float | None, digits: int = 1) -> str:
    """The number, or `-` if it could not be measured (no object of that size, for example)."""
    return "-" if value is None else f"{value:.{digits}f}"


def _is_number(cell: str) -> bool:
    return not any(
        letter.isalpha() for letter in cell.removesuffix(" MiB").removesuffix("M").removesuffix("G").replace("ms", "")
    )
