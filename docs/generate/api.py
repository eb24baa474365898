"""The public names of the package with the first sentence of their docstrings, and the site's pages of each module."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import detdistill

from .text import NOTE, table

OVERVIEW = f"""# Python API

{NOTE} It lists the public names; the site has a page of
each module with the signatures and the whole docstrings.
[In your own training code](python.md) shows how to use them, and [your own detector](own_detector.md) is a whole
detector in one file. In every module, boxes are (x1, y1, x2, y2) in pixels of the padded batch, and the student comes
before the teacher.
"""

MODULES = {"detdistill": "The package", **{f"detdistill.{name}": name.capitalize() for name in detdistill.MODULES}}


def overview() -> str:
    """The content of api.md."""
    lines = [OVERVIEW]
    for module, title in MODULES.items():
        rows = [(f"`{name}`", _first_sentence(item)) for name, item in public_names(module)]
        lines += [f"## {title}", "", f"`{module}`:", "", *table(("name", "what it is"), rows), ""]
    return "\n".join(lines)


def site_pages() -> Iterator[tuple[str, str]]:
    """The name and the content of the page of each module; the docstrings are filled in by mkdocstrings."""
    for module, title in MODULES.items():
        blocks = [f"::: {item.__module__}.{item.__qualname__}\n" for _, item in public_names(module)]
        about = inspect.getdoc(import_module(module)) if module != "detdistill" else ""
        yield f"api/{module.rpartition('.')[2]}.md", "\n".join([f"# {title}", "", about or "", "", *blocks])


def public_names(module: str) -> list[tuple[str, Any]]:
    """The functions and classes that a module offers, in alphabetical order."""
    found = import_module(module)
    names = sorted(detdistill.__all__ if module == "detdistill" else vars(found), key=str.lower)
    items = [(name, getattr(found, name)) for name in names if not name.startswith("_")]
    return [
        (name, item)
        for name, item in items
        if (inspect.isfunction(item) or inspect.isclass(item)) and item.__module__.startswith("detdistill")
    ]


def _first_sentence(item: Any) -> str:
    text = inspect.getdoc(item) or ""
    if re.match(r"\w+(, \w+)*: ", text):  # a dataclass that explains its fields only
        text = inspect.getdoc(inspect.getmodule(item)) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
