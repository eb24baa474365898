"""Writes the generated pages, and the facts for `detdistill list`, from the code (`make docs`). Tests compare them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from generate.api import overview
from generate.detectors import detector_page, detectors
from generate.methods import method_drawing, method_page, methods
from generate.recipes import recipes
from generate.reference import reference

from detdistill.cli.index import write_index
from detdistill.detectors.registry import DETECTORS
from detdistill.methods import METHODS

DOCS = Path(__file__).parent

PAGES: dict[str, Callable[[], str]] = {
    "reference.md": reference,
    "methods.md": methods,
    "detectors.md": detectors,
    "recipes.md": recipes,
    "api.md": overview,
    **{f"methods/{name}.md": partial(method_page, name) for name in METHODS},
    **{f"methods/{name}.svg": partial(method_drawing, name) for name in METHODS},
    **{f"detectors/{name}.md": partial(detector_page, name) for name in DETECTORS},
}
"""The function that writes each generated file of docs/."""

if __name__ == "__main__":
    for name, write in PAGES.items():
        path = DOCS / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(write(), encoding="utf-8")
    write_index()
