"""The page of all fields of a recipe, and of the options that every method has."""

import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import get_type_hints

from detdistill.cli.flags import FIELDS, SHORT
from detdistill.engine.schedule import Schedule
from detdistill.methods.method import option_meanings
from detdistill.recipe import Recipe

from .text import NOTE, choices, joined, table, value

REFERENCE = f"""# Reference

{NOTE} The [guide](guide.md) explains
how to use it. Each [method](methods.md) and each [detector](detectors.md) has a page with its options.

## Fields of a recipe

`train: {{lr: 0.001}}` in YAML is `--train.lr 0.001` on the command line. A short flag sets the same field."""

OPTIONS = """
## Options of every method

An option is `methods: {pkd: {weight: 4}}` in YAML and `--methods.pkd.weight 4` on the command line. An option that
you do not set has its published value for the detector (the student's head for `mimicking` and `ld`, the teacher's
head for the others), or else its default. [Methods](methods.md) links the page of each method with its own options.

The following options change the weight of the method during the run. If one has a published value, it is in the table
of that method.
"""


def reference() -> str:
    """The content of reference.md."""
    lines = [REFERENCE]
    for part, info in Recipe.model_fields.items():
        if part != "methods":
            lines += ["", f"### {part}", "", inspect.getdoc(info.annotation) or "", "", *_recipe_fields(part)]
    lines += [OPTIONS, *_schedule()]
    return "\n".join(lines) + "\n"


def _recipe_fields(part: str) -> Iterator[str]:
    short = {path: f"`--{flag}`" for flag, path in SHORT.items()}
    rows = [
        (
            f"`{path}`",
            short.get(path, ""),
            value(info.default),
            joined(info.description, choices(info.annotation)),
        )
        for path, info in FIELDS.items()
        if path.startswith(f"{part}.")
    ]
    return table(("field", "short flag", "default", "meaning"), rows)


def _schedule() -> Iterator[str]:
    hints, meanings = get_type_hints(Schedule), option_meanings(Schedule)
    rows = [
        (f"`{item.name}`", value(item.default), joined(meanings[item.name], choices(hints[item.name])))
        for item in fields(Schedule)
    ]
    return table(("option", "default", "meaning"), rows)
