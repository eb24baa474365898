"""`detdistill list`: the detectors, methods, backbones and recipes, or everything about one of them."""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields
from inspect import getdoc, getmodule
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from detdistill.cli import flags
from detdistill.cli.app import ORIGIN, app, make_console
from detdistill.cli.backbones import backbones
from detdistill.errors import UserError, nearest
from detdistill.recipe import load

WIDE = 200  # terminal columns from which a method's row fits on one line


@app.command(name="list")
@flags.takes("data.image_size")
def show(
    what: Annotated[Literal["detectors", "methods", "backbones", "recipes"], Parameter(help="what to list")],
    name: Annotated[str | None, Parameter(help="one detector or method, or a pattern for backbones: 'resnet*'")] = None,
    /,
    **fields: Any,
) -> None:
    """List the detectors, methods, backbones or recipes; with a name, print everything about a detector or method."""
    listing(what, name, make_console(), flags.overrides(fields))


def listing(what: str, name: str | None, console: Console, over: Mapping[str, Any] | None = None) -> None:
    """Print all detectors, methods, backbones or recipes, one per row, or everything about the one called `name`.

    over: fields of the recipe that the command line sets; the backbones read `data.image_size`.
    Raises UserError if there is no such name, or if the list has no details.
    """
    if what == "backbones":
        backbones(name, load(None, over, origin=ORIGIN).data.image_size, console)
    elif over:
        raise UserError(f"list {what} --image-size: only `list backbones` reads it; leave it out")
    elif name is None:
        {"detectors": _detectors, "methods": _methods, "recipes": _recipes}[what](console)
    elif what == "methods":
        _method(name.replace("-", "_"), console)
    elif what == "detectors":
        _detector(name.replace("-", "_"), console)
    else:
        raise UserError(f"list {what} {name}: only methods and detectors have details; leave out {name}")


def heads_in_words(heads: Collection[str]) -> str:
    """Heads in few words: `all`, a group such as `dense`, a group with its exceptions, `learned queries`, or names."""
    from detdistill.detectors.registry import DETECTORS, names

    groups = {"dense": names("dense"), "RoI": names("two-stage"), "queries": names("queries")}
    learned = {name for name in groups["queries"] if DETECTORS[name].learned_queries}
    parts = []
    for word, members in groups.items():
        served = [head for head in members if head in heads]
        missing = [head for head in members if head not in heads]
        if set(served) == learned:
            parts.append("learned queries")
        elif 2 * len(served) > len(members):
            parts.append(word + (f" except {', '.join(missing)}" if missing else ""))
        else:
            parts += served
    return "all" if parts == list(groups) else ", ".join(parts)


def _detectors(console: Console) -> None:
    from detdistill.detectors.registry import DETECTORS
    from detdistill.detectors.weights import TORCHVISION
    from detdistill.run.tables import grouped

    families = ", ".join(name for name, record in DETECTORS.items() if record.host is not None)
    blocks = {
        "to train": [[f"{name}:BACKBONE", record.summary] for name, record in DETECTORS.items()],
        "to teach, evaluate and predict": [
            *([f"torchvision:{name}", "COCO weights of torchvision"] for name in TORCHVISION),
            ["hf:NAME, hf:FOLDER", f"a detector of transformers: {families}"],
        ],
        "to teach by features": [["timm:NAME, timm:NAME=FILE, hf:FOLDER", "a frozen ViT"]],
    }
    grouped(console, ["detector", "description"], blocks)
    console.print(
        "BACKBONE is a timm model, such as resnet18 (detdistill list backbones). "
        "Options of one detector: detdistill list detectors gfl",
        soft_wrap=False,
    )


def _detector(name: str, console: Console) -> None:
    """One family: what it is, the strides it was published with, and its options."""
    from detdistill.detectors.build import fields_read
    from detdistill.detectors.registry import DETECTORS
    from detdistill.methods.method import option_meanings
    from detdistill.recipe import ModelConfig
    from detdistill.run.tables import table

    if name not in DETECTORS:
        hint = nearest(name, DETECTORS)
        raise UserError(f"list detectors {name}: there is no such detector{hint} (see `detdistill list detectors`)")
    record = DETECTORS[name]
    console.print(record.summary, soft_wrap=False)
    strides = record.strides or ModelConfig.model_fields["strides"].default
    console.print(f"default strides: {_value(strides)}", soft_wrap=False)
    queries = "learned parameters" if record.learned_queries else "chosen from each image"
    if record.group == "queries":
        console.print(f"queries: {queries}", soft_wrap=False)
    shown = fields_read(name) - {"name", "options"}
    read = [field for field in ModelConfig.model_fields if field in shown]
    rows = []
    for field in read:
        info = ModelConfig.model_fields[field]
        default = strides if field == "strides" else info.default
        rows.append([f"--model.{field.replace('_', '-')}", _value(default), info.description or ""])
    kind = record.options_class()
    if kind is not None:
        meanings = option_meanings(kind)
        for item in fields(kind):
            flag = f"--model.options.{item.name.replace('_', '-')}"
            rows.append([flag, _default(item), meanings[item.name]])
    table(console, ["option", "default", "meaning"], rows)


def _methods(console: Console) -> None:
    from detdistill.detectors.registry import names
    from detdistill.methods import by_group
    from detdistill.run.pairing import served
    from detdistill.run.tables import grouped

    heads = served()
    rows = {
        group: [
            [method.name, heads_in_words(heads[method.name]), method.reads, method.gain or "-", method.paper]
            for method in methods
        ]
        for group, methods in by_group().items()
    }
    columns = ["method", "heads", "reads", "published AP on COCO", "paper"]
    shown = len(columns) if not console.is_terminal or console.width >= WIDE else 3
    grouped(console, columns[:shown], {group: [row[:shown] for row in block] for group, block in rows.items()})
    kinds = {"dense": names("dense"), "RoI": names("two-stage"), "queries": names("queries")}
    console.print("; ".join(f"{word}: {', '.join(members)}" for word, members in kinds.items()) + ".", soft_wrap=False)
    console.print(
        "ld also serves retinanet, fcos and atss if they are built with --model.edges. detrdistill also serves "
        "rt_detr, "
        "rt_detr_v2, d_fine and a two-stage deformable_detr with --methods.detrdistill.weight-assignment 0.",
        soft_wrap=False,
    )
    console.print("Paper, published AP and options of one method: detdistill list methods pkd", soft_wrap=False)


def _method(name: str, console: Console) -> None:
    """One method: what it reads and learns, and its options with defaults and published values per detector."""
    from detdistill.engine.schedule import Schedule
    from detdistill.methods import METHODS
    from detdistill.methods.method import option_meanings
    from detdistill.methods.presets import published_values
    from detdistill.run.pairing import served
    from detdistill.run.tables import table

    if name not in METHODS:
        hint = nearest(name, METHODS)
        raise UserError(f"list methods {name}: there is no such method{hint} (see `detdistill list methods`)")
    method = METHODS[name]
    console.print(_first_line(getmodule(method)) or method.__name__, soft_wrap=False)
    for title, text in (
        ("paper", method.paper or "not stated"),
        ("reads", method.reads or "not stated"),
        ("learns", method.learns or "nothing"),
        ("heads", ", ".join(served([name])[name])),
        ("published AP on COCO", method.gain or "none that could be verified"),
    ):
        console.print(f"{title}: {text}", soft_wrap=False)
    meanings = option_meanings(method.Config) | option_meanings(Schedule)
    rows = [
        [
            item.name,
            _default(item),
            published_values(name, item.name, item.default, _value),
            meanings[item.name],
        ]
        for item in (*fields(method.Config), *fields(Schedule))
    ]
    table(console, ["option", "default", "published", "meaning"], rows)
    console.print(
        f"Set an option with --methods.{name}.OPTION VALUE. Published values apply unless you set the option.",
        soft_wrap=False,
    )


def _recipes(console: Console) -> None:
    from detdistill.recipe import packaged
    from detdistill.run.tables import table

    summaries = {
        name: path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()
        for name, path in packaged().items()
    }
    table(console, ["recipe", "description"], [list(row) for row in summaries.items()])


def _default(option: Field[Any]) -> str:
    """The default of an option; `-` if it has no fixed one, which only options of the user's own can lack."""
    return "-" if option.default is MISSING else _value(option.default)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _first_line(thing: object) -> str:
    return (getdoc(thing) or "").split("\n", 1)[0]
