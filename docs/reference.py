"""Writes reference.md, methods.md and the facts for `detdistill list` from the code (`make docs`).

Tests compare them with the code.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic_core import PydanticUndefined

from detdistill.cli.flags import FIELDS, SHORT
from detdistill.cli.index import write_index
from detdistill.detectors.registry import DETECTORS
from detdistill.detectors.weights import TORCHVISION
from detdistill.engine.schedule import Schedule
from detdistill.methods import METHODS, by_group
from detdistill.methods.method import option_meanings
from detdistill.methods.presets import published_values
from detdistill.recipe import ModelConfig, Recipe
from detdistill.run.pairing import served

DOCS = Path(__file__).parent

REFERENCE = """# Reference

`make docs` writes this page from the code; do not edit it. The [guide](guide.md) explains how to use it.

## Fields of a recipe

`train: {lr: 0.001}` in YAML is `--train.lr 0.001` on the command line. A short flag sets the same field."""

METHODS_HEADING = """
## Methods

An option is `methods: {pkd: {weight: 4}}` in YAML and `--methods.pkd.weight 4` on the command line. An option that
you do not set has its published value for the detector (the student's head for `mimicking` and `ld`, the teacher's
head for the others), or else its default.

### Options of every method

They change the weight of the method during the run. If one has a published value, it is in the table of that method."""

DETECTORS_HEADING = """
## Detectors

BACKBONE is any timm model with feature maps at the strides of the pyramid. The fields are those of `model` above; the
options of one detector alone are set with `--model.options.NAME VALUE`.
"""

METHODS_PAGE = """# Methods

`make docs` writes this page from the code; do not edit it. The [guide](guide.md#methods-and-when-each-applies)
explains when each method applies, the [reference](reference.md#methods) has the equations and options, and
[conformance](conformance.md) the pairs that were tried.
"""

MATRIX = """
## Detectors and methods

A cell says whether the method can distill between two detectors with this head, with its published options. `edges`:
yes if both are built with `--model.edges`. `part`: yes with `--methods.detrdistill.weight-assignment 0`, since these
detectors choose their queries from the image (so does a two-stage Deformable DETR).

For two detectors with different heads: the methods for neck features serve any pair with a level of equal stride
(`frs` also needs a teacher with dense scores or an RPN). For other methods, see what they need above: the methods for
RoI heads, for example, need two-stage detectors on both sides. If a method can't serve a pair, the command stops
before training and says why.
"""


def reference() -> str:
    """The content of reference.md."""
    lines = [REFERENCE]
    for part, info in Recipe.model_fields.items():
        if part != "methods":
            lines += ["", f"### {part}", "", inspect.getdoc(info.annotation) or "", "", *_recipe_fields(part)]
    lines += [METHODS_HEADING, "", *_schedule()]
    for name in METHODS:
        lines += ["", *_method(name)]
    lines += [DETECTORS_HEADING, *_detectors()]
    names = ", ".join(f"`torchvision:{name}`" for name in TORCHVISION)
    families = ", ".join(f"`{name}`" for name, record in DETECTORS.items() if record.host is not None)
    lines += [
        "",
        "Pretrained detectors can teach, be evaluated and predict. Of torchvision, with its COCO weights or with a "
        f"file: {names}. Of "
        f"transformers, as `hf:NAME` from the hub or `hf:FOLDER`: {families}. A ViT teaches by features alone: "
        "`timm:NAME`, "
        "`timm:NAME=FILE`, or `hf:FOLDER`.",
    ]
    return "\n".join(lines) + "\n"


def methods() -> str:
    """The content of methods.md."""
    lines = [METHODS_PAGE]
    for group, members in by_group().items():
        lines += [f"## {group[:1].upper()}{group[1:]}", ""]
        columns = (
            "method",
            "the student copies",
            "student and teacher need",
            "learns",
            "published AP on COCO",
            "paper",
        )
        rows = [
            (f"`{m.name}`", m.copies, m.requires, m.learns or "nothing", m.gain or "-", _paper(m.paper))
            for m in members
        ]
        lines += [*_table(columns, rows), ""]
    lines += [MATRIX.strip(), ""]
    heads, table = list(DETECTORS), served()
    rows = [(f"`{name}`", *(_cell(name, head, table[name]) for head in heads)) for name in METHODS]
    lines += _table(("method", *(f"`{head}`" for head in heads)), rows)
    return "\n".join(lines) + "\n"


def _cell(method: str, head: str, heads: Sequence[str]) -> str:
    if head in heads:
        return "yes"
    record = DETECTORS[head]
    if method == "ld" and "edges" in record.options:
        return "edges"
    if method == "detrdistill" and record.group == "queries":
        return "part"
    return "no"


def _paper(paper: str) -> str:
    """The paper, linked if it is on arXiv."""
    first, _, rest = paper.partition(",")
    if not first.startswith("arXiv:"):
        return paper
    number = first.removeprefix("arXiv:")
    return f"[{first}](https://arxiv.org/abs/{number})" + (f",{rest}" if rest else "")


def _recipe_fields(part: str) -> Iterator[str]:
    short = {path: f"`--{flag}`" for flag, path in SHORT.items()}
    rows = [
        (
            f"`{path}`",
            short.get(path, ""),
            _value(info.default),
            _joined(info.description, _choices(info.annotation)),
        )
        for path, info in FIELDS.items()
        if path.startswith(f"{part}.")
    ]
    return _table(("field", "short flag", "default", "meaning"), rows)


def _schedule() -> Iterator[str]:
    hints, meanings = get_type_hints(Schedule), option_meanings(Schedule)
    rows = [
        (f"`{item.name}`", _value(item.default), _joined(meanings[item.name], _choices(hints[item.name])))
        for item in fields(Schedule)
    ]
    return _table(("option", "default", "meaning"), rows)


def _method(name: str) -> Iterator[str]:
    method, config = METHODS[name], METHODS[name].Config
    hints = get_type_hints(config) | get_type_hints(Schedule)
    meanings = option_meanings(config) | option_meanings(Schedule)
    yield f"### {name}\n\n```text\n{inspect.getdoc(inspect.getmodule(method))}\n```\n"
    yield f"Reads: {method.reads}. Learns: {method.learns or 'nothing'}.\n"
    published = [item for item in fields(Schedule) if published_values(name, item.name, item.default, _value)]
    rows = [
        (
            f"`methods.{name}.{item.name}`",
            _value(item.default),
            published_values(name, item.name, item.default, _value),
            _joined(meanings[item.name], _choices(hints[item.name])),
        )
        for item in (*fields(config), *published)
    ]
    yield from _table(("option", "default", "published", "meaning"), rows)


def _detectors() -> Iterator[str]:
    default = ModelConfig.model_fields["strides"].default
    rows = []
    for name, record in DETECTORS.items():
        kind = record.options_class()
        fields_read = [f"`{field}`" for field in ModelConfig.model_fields if field in record.options]
        fields_read += [f"`options.{item.name}`" for item in fields(kind)] if kind is not None else []
        strides = ", ".join(map(str, record.strides or default))
        rows.append((f"`{name}:BACKBONE`", record.summary, strides, ", ".join(fields_read)))
    return _table(("detector", "description", "default strides", "fields of its own"), rows)


def _value(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _choices(kind: Any) -> str:
    return ", ".join(get_args(kind)) if get_origin(kind) is Literal else ""


def _joined(meaning: str | None, choices: str) -> str:
    return f"{meaning} ({choices})" if meaning and choices else meaning or choices


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


PAGES = {"reference.md": reference, "methods.md": methods}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (DOCS / name).write_text(write(), encoding="utf-8")
    write_index()
