"""Extension of griffe: the lines `name: meaning` of a docstring become a list on the site."""

import re
from typing import Any

import griffe


class NamedLines(griffe.Extension):
    """Changes the docstring of every object before mkdocstrings renders it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring in place."""
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(docstring: str) -> str:
    """The docstring in Markdown: each line that begins with names and a colon is an item of a list."""
    lines: list[str] = []
    in_list = False
    for line in docstring.splitlines():
        named = re.match(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)", line)
        if named:
            lines += [] if in_list else [""]
            names = ", ".join(f"`{name}`" for name in named[1].split(", "))
            lines.append(f"- {names}: {named[2]}")
        else:
            lines.append(line.strip() if in_list and line.strip() else line)
        in_list = bool(named) or (in_list and bool(line.strip()))
    return "\n".join(lines)
