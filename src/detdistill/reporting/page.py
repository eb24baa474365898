"""The page: one HTML file with its style, its script and its pictures inside. It reads nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from detdistill.reporting import quality_blocks, run_blocks
from detdistill.reporting.blocks import Block, Section
from detdistill.reporting.content import Story
from detdistill.reporting.words import verdict

TEMPLATES = files("detdistill.reporting") / "templates"
SECTIONS: dict[str, tuple[str, Callable[[Story], list[Block]]]] = {
    "result": ("Did it help?", quality_blocks.result),
    "pictures": ("Images", quality_blocks.pictures),
    "classes": ("Classes and sizes", quality_blocks.by_class),
    "precision": ("Precision and recall", quality_blocks.precision),
    "errors": ("Kinds of errors", quality_blocks.errors),
    "confusion": ("Confused classes", quality_blocks.confusions),
    "speed": ("Speed and size", run_blocks.speed),
    "curves": ("Training curves", run_blocks.curves),
    "origin": ("Recipes, environment, commands", run_blocks.origin),
}


def page(stories: Sequence[Story]) -> str:
    """The whole page as HTML. Every text is escaped, and the page's policy forbids other scripts and any request."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader({"page": (TEMPLATES / "report.html.jinja").read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page").render(
        title=f"{stories[0].student}: {verdict(stories[0]).title}" if len(stories) == 1 else "Report of several runs",
        stories=[(story, _sections(story, number, len(stories))) for number, story in enumerate(stories, start=1)],
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=version("detdistill"),
    )


def _sections(story: Story, number: int, count: int) -> list[Section]:
    prefix = f"part{number}-" if count > 1 else ""
    return [Section(prefix + id, title, build(story)) for id, (title, build) in SECTIONS.items()]
