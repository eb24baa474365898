"""Tables for people: rich ones on a terminal, aligned plain columns in a file or a pipe."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, numbers to the right. Cells are wrapped to the width of a terminal; in a file or a pipe every row is a
    line, for `grep` and `sort`."""
    right = [index > 0 and all(_numeric(row[index]) for row in rows) for index in range(len(columns))]
    if console.is_terminal:
        shown = Table()
        for index, (name, number) in enumerate(zip(columns, right, strict=True)):
            shown.add_column(name, justify="right" if number else "left", no_wrap=index == 0)
        for row in rows:
            shown.add_row(*row)
        console.print(shown, soft_wrap=False)
        return
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ]
        console.print("  ".join(cells).rstrip())


def grouped(console: Console, columns: Sequence[str], blocks: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Rows under the heading of their family, on a terminal; elsewhere one table, with the family as its last column.

    The last column of rows takes what width is left, and is wrapped there.
    """
    if not console.is_terminal:
        table(console, [*columns, "family"], [[*row, family] for family, rows in blocks.items() for row in rows])
        return
    for family, rows in blocks.items():
        console.print(f"\n{family}", style="bold")
        shown = Table.grid(padding=(0, 2, 0, 0))
        for index in range(len(columns)):
            width = max(len(row[index]) for block in blocks.values() for row in block)
            shown.add_column(no_wrap=index < len(columns) - 1, min_width=width if index < len(columns) - 1 else None)
        for row in rows:
            shown.add_row(*row)
        console.print(shown, soft_wrap=False)
    console.print()


def _numeric(cell: str) -> bool:
    return not any(letter.isalpha() for letter in cell.removesuffix("M").removesuffix("G").replace("ms", ""))


def number(value: float | None, digits: int = 1) -> str:
    """`-` where nothing could be measured (no object of that size, say)."""
    return "-" if value is None else f"{value:.{digits}f}"


def metrics(console: Console, found: Mapping[str, Any]) -> None:
    """COCO's numbers, AP of each class, cost."""
    names = [name for name, value in found.items() if name.startswith("A")]
    table(console, names, [[number(found[name]) for name in names]])
    table(console, ["class", "AP"], [[name, number(value)] for name, value in found["per_class"].items()])
    if "params" in found:
        cost = f"{found['params'] / 1e6:.2f} M parameters, {found['flops'] / 1e9:.2f} GFLOPs, {found['latency_ms']:.1f} ms an image"
        console.print(cost)
