"""What `detdistill list` says: which detectors, methods and recipes there are."""

from collections.abc import Collection
from dataclasses import fields
from inspect import getdoc, getmodule
from typing import Any

from rich.console import Console

from detdistill.errors import UserError, nearest
from detdistill.run.tables import families, table

WIDE = 200  # columns of a terminal on which a method's row fits


def listing(what: str, name: str | None, console: Console) -> None:
    """Detectors, methods or recipes, one a row. name: of a method, of which everything is told. Raises UserError for another name."""
    if name is not None:
        _method(what, name, console)
        return
    {"detectors": _detectors, "methods": _methods, "recipes": _recipes}[what](console)


def groups() -> dict[str, tuple[str, ...]]:
    """Heads in a word."""
    from detdistill.detectors.build import DENSE, DETECTORS, SETS

    return {"dense": DENSE, "RoI": tuple(head for head in DETECTORS if head not in (*DENSE, *SETS)), "queries": SETS}


def heads_in_words(heads: Collection[str]) -> str:
    """`all`, `dense, RoI`, `learned queries`, `queries but adamixer` where most of a group are meant, and the names of those of whom few are."""
    from detdistill.detectors.build import LEARNED

    parts = []
    for word, group in groups().items():
        meant, others = [head for head in group if head in heads], [head for head in group if head not in heads]
        if set(meant) == set(LEARNED):
            parts.append("learned queries")
        elif 2 * len(meant) > len(group):
            parts.append(word + (f" but {', '.join(others)}" if others else ""))
        else:
            parts += meant
    return "all" if parts == list(groups()) else ", ".join(parts)


def _detectors(console: Console) -> None:
    from detdistill.detectors.build import DETECTORS
    from detdistill.detectors.weights import TORCHVISION

    blocks = {
        "to train": [[f"{name}:BACKBONE", _first_line(builder)] for name, builder in DETECTORS.items()],
        "to teach, evaluate and predict": [
            [f"torchvision:{name}", "COCO weights of torchvision"] for name in TORCHVISION
        ]
        + [
            [
                "hf:NAME, hf:FOLDER",
                "a DETR, Conditional, Deformable or DAB-DETR, RT-DETR, RT-DETRv2 or D-FINE of transformers",
            ]
        ],
        "to teach by features": [["timm:NAME, timm:NAME=FILE, hf:FOLDER", "a frozen ViT"]],
    }
    families(console, ["detector", "what it is"], blocks)
    console.print(
        "BACKBONE is any timm model with feature maps at the strides asked for, such as resnet18 or mobilenetv3_small_100.",
        soft_wrap=False,
    )


def _methods(console: Console) -> None:
    from detdistill.methods import by_group
    from detdistill.run.pairing import served

    heads = served()
    blocks = {
        family: [
            [method.name, heads_in_words(heads[method.name]), method.reads, method.gain or "-", method.paper]
            for method in methods
        ]
        for family, methods in by_group().items()
    }
    columns = ["method", "heads", "reads", "published AP on COCO", "paper"]
    shown = len(columns) if not console.is_terminal or console.width >= WIDE else 3
    families(console, columns[:shown], {family: [row[:shown] for row in rows] for family, rows in blocks.items()})
    kinds = "; ".join(f"{word}: {', '.join(names)}" for word, names in groups().items())
    console.print(
        f"{kinds}. ld serves every dense head that is built with --model.edges, detrdistill rt_detr, rt_detr_v2, d_fine and a two-stage "
        "deformable_detr too, with --methods.detrdistill.weight-assignment 0. Paper, published AP and options of one: "
        "detdistill list methods pkd",
        soft_wrap=False,
    )


def _method(what: str, name: str, console: Console) -> None:
    """One method: what it reads and learns, and its options with their defaults and the published values for each detector."""
    from detdistill.engine.schedule import Schedule
    from detdistill.methods import METHODS
    from detdistill.methods.presets import told
    from detdistill.run.pairing import served

    name = name.replace("-", "_")
    if what != "methods":
        raise UserError(f"list {what} {name}: only methods have more to tell; leave {name} out")
    if name not in METHODS:
        raise UserError(
            f"list methods {name}: there is no such method{nearest(name, METHODS)} (`detdistill list methods`)"
        )
    method = METHODS[name]
    console.print(_first_line(getmodule(method)), soft_wrap=False)
    for title, text in (
        ("paper", method.paper),
        ("reads", method.reads),
        ("learns", method.learns or "nothing"),
        ("heads", ", ".join(served([name])[name])),
        ("published AP on COCO", method.gain or "none that could be verified"),
    ):
        console.print(f"{title}: {text}", soft_wrap=False)
    rows = [
        [item.name, _value(item.default), told(name, item.name, item.default, _value)]
        for item in (*fields(method.Config), *fields(Schedule))
    ]
    table(console, ["option", "default", "published"], rows)
    console.print(
        f"Set one by --methods.{name}.OPTION VALUE; meanings: docs/reference.md. A published value is taken unless you give one.",
        soft_wrap=False,
    )


def _value(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _recipes(console: Console) -> None:
    from detdistill.recipe import packaged

    first = {name: path.read_text().split("\n", 1)[0].removeprefix("#").strip() for name, path in packaged().items()}
    table(console, ["recipe", "what it does"], list(first.items()))


def _first_line(thing: object) -> str:
    return (getdoc(thing) or "").split("\n", 1)[0]
