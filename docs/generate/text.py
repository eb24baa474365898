"""Markdown of values, tables and docstrings."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

NOTE = "`make docs` writes this page from the code; do not edit it."


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def value(item: Any) -> str:
    """A default as text: lower-case truth values, lists without brackets, nothing for a missing default."""
    if item is PydanticUndefined:
        return ""
    if isinstance(item, tuple):
        return ", ".join(map(str, item))
    if item is None:
        return "none"
    return str(item).lower() if isinstance(item, bool) else str(item)


def choices(kind: Any) -> str:
    """The values of a Literal, separated by commas; empty for another type."""
    return ", ".join(get_args(kind)) if get_origin(kind) is Literal else ""


def joined(meaning: str | None, options: str) -> str:
    """A meaning followed by its possible values in parentheses."""
    return f"{meaning} ({options})" if meaning and options else meaning or options


def paper_link(paper: str) -> str:
    """The paper, linked if it is on arXiv."""
    first, _, rest = paper.partition(",")
    if not first.startswith("arXiv:"):
        return paper
    number = first.removeprefix("arXiv:")
    return f"[{first}](https://arxiv.org/abs/{number})" + (f",{rest}" if rest else "")


def prose(docstring: str) -> str:
    """A plain-text docstring as Markdown: equations stay code, lists get a blank line before them.

    Four spaces of indent are code in Markdown, too. Outside of code, `*` and `<` are escaped.
    """
    lines: list[str] = []
    in_list = False
    for line in docstring.splitlines():
        is_code = line.startswith("    ") and not in_list
        is_item = bool(re.match(r"[-*] ", line))
        if is_item and lines and lines[-1] and not in_list:
            lines.append("")
        in_list = is_item or (in_list and line.startswith("  "))
        lines.append(line if is_code else _escaped(line))
    return "\n".join(lines)


def _escaped(line: str) -> str:
    marker = re.match(r"[-*] ", line)
    start = line[:2] if marker else ""
    parts = re.split(r"(`[^`]*`)", line[len(start) :])
    changed = [part if part.startswith("`") else part.replace("*", "\\*").replace("<", "&lt;") for part in parts]
    return start.replace("*", "-") + "".join(changed)
