"""Writes reference.md from the code, so that no default stands in two places: `make docs`. A test compares the two."""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic_core import PydanticUndefined

from detdistill.cli.flags import FIELDS, SHORT
from detdistill.detectors.build import DETECTORS
from detdistill.detectors.weights import TORCHVISION
from detdistill.engine.schedule import Schedule
from detdistill.methods import METHODS
from detdistill.methods.presets import told
from detdistill.recipe import Recipe

PLACE = Path(__file__).with_name("reference.md")

RECIPE = """# Reference

Written by `make docs` from the code; not to be edited. What it all means is in the [guide](guide.md).

## Fields of a recipe

`train: {lr: 0.001}` in YAML is `--train.lr 0.001` on the command line. A short flag, where there is one, means the same."""

METHODS_HEAD = """
## Methods

An option is `methods: {pkd: {weight: 4}}` in YAML, `--methods.pkd.weight 4` on the command line. What is not given is taken from the
preset of the detector (the student's for `mimicking`, the teacher's for the others), else the default.

### Options of every method

They say how its weight goes on. Where they have a preset, it stands in the method's own table."""

SHARED = r"`(?:methods\.shared\.\w+\.)?(\w+Config)`"  # another config, named in a docstring

DETECTORS_HEAD = """
## Detectors

BACKBONE is any timm model with feature maps at the strides asked for.
"""


def write() -> str:
    """The whole page."""
    lines = [RECIPE]
    for part, info in Recipe.model_fields.items():
        if part != "methods":
            lines += ["", f"### {part}", "", inspect.getdoc(info.annotation) or "", "", *_fields(part)]
    lines += [METHODS_HEAD, "", inspect.getdoc(Schedule) or "", "", *_common()]
    for name in METHODS:
        lines += ["", *_method(name)]
    heads = ((f"`{head}:BACKBONE`", _first(build)) for head, build in DETECTORS.items())
    lines += [DETECTORS_HEAD, *_table(("to train", "what it is"), heads)]
    names = ", ".join(f"`torchvision:{name}`" for name in TORCHVISION)
    return "\n".join(
        [
            *lines,
            "",
            f"To teach, to be evaluated and to predict, with COCO weights of torchvision or a file: {names}; and detectors of transformers, `hf:NAME` from the "
            "hub or `hf:FOLDER`. To teach by features alone: `timm:NAME`, `timm:NAME=FILE`, `hf:FOLDER` of a ViT.",
            "",
        ]
    )


def _fields(part: str) -> Iterator[str]:
    short = {path: f"`--{flag}`" for flag, path in SHORT.items()}
    rows = [
        (f"`{path}`", short.get(path, ""), _value(info.default), _joined(info.description, _choices(info.annotation)))
        for path, info in FIELDS.items()
        if path.startswith(f"{part}.")
    ]
    return _table(("field", "short flag", "default", "meaning"), rows)


def _common() -> Iterator[str]:
    hints = get_type_hints(Schedule)
    rows = ((f"`{item.name}`", _value(item.default), _choices(hints[item.name])) for item in fields(Schedule))
    return _table(("option", "default", "choices"), rows)


def _method(name: str) -> Iterator[str]:
    method, config = METHODS[name], METHODS[name].Config
    hints = get_type_hints(config) | get_type_hints(Schedule)
    yield f"### {name}\n\n```text\n{inspect.getdoc(inspect.getmodule(method))}\n```\n"
    yield f"Reads {method.reads}; learns {method.learns or 'nothing'}.\n"
    for meaning in _meanings(config):
        yield f"{meaning}\n"
    rows = (
        (
            f"`methods.{name}.{item.name}`",
            _value(item.default),
            told(name, item.name, item.default, _value),
            _choices(hints[item.name]),
        )
        for item in (
            *fields(config),
            *(item for item in fields(Schedule) if told(name, item.name, item.default, _value)),
        )
    )
    yield from _table(("option", "default", "presets", "choices"), rows)


def _meanings(config: type[Any]) -> Iterator[str]:
    """What a config says of its options, and then what those say whose options it shares; a reference to them becomes `below`."""
    known = vars(inspect.getmodule(config)) | {kind.__name__: kind for kind in config.__mro__}
    kinds = [kind for kind in config.__mro__ if is_dataclass(kind)]
    for kind in kinds:
        text = inspect.getdoc(kind) or ""
        for name in re.findall(SHARED, text):
            kinds += [known[name]] if known[name] not in kinds else []
        yield re.sub(SHARED, "below", text)


def _value(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _choices(kind: Any) -> str:
    return ", ".join(get_args(kind)) if get_origin(kind) is Literal else ""


def _joined(meaning: str | None, choices: str) -> str:
    return f"{meaning} ({choices})" if meaning and choices else meaning or choices


def _first(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n", 1)[0]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    PLACE.write_text(write())
