"""Tables for people: rich ones on a terminal, aligned plain columns in a file or a pipe."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import getdoc
from typing import Any

from rich.console import Console
from rich.table import Table


def table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, numbers to the right."""
    right = [index > 0 and all(_numeric(row[index]) for row in rows) for index in range(len(columns))]
    if console.is_terminal:
        shown = Table()
        for name, number in zip(columns, right, strict=True):
            shown.add_column(name, justify="right" if number else "left")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
        return
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    for row in [columns, *rows]:
        cells = [cell.rjust(width) if number else cell.ljust(width) for cell, width, number in zip(row, widths, right, strict=True)]
        console.print("  ".join(cells).rstrip())


def _numeric(cell: str) -> bool:
    return not any(letter.isalpha() for letter in cell.removesuffix("M").removesuffix("G").replace("ms", ""))


def number(value: float | None, digits: int = 1) -> str:
    """`-` where nothing could be measured (no object of that size, say)."""
    return "-" if value is None else f"{value:.{digits}f}"


def metrics(console: Console, found: Mapping[str, Any]) -> None:
    """COCO's numbers, AP of each class, cost."""
    names = [name for name, value in found.items() if name.startswith("A")]
    table(console, names, [[number(found[name]) for name in names]])
    table(console, ["class", "AP"], [[name, number(value)] for name, value in found["per_class"].items()])
    if "params" in found:
        cost = f"{found['params'] / 1e6:.2f} M parameters, {found['flops'] / 1e9:.2f} GFLOPs, {found['latency_ms']:.1f} ms an image"
        console.print(cost)


def _first_line(thing: object) -> str:
    return (getdoc(thing) or "").split("\n", 1)[0]


def listing(what: str, console: Console) -> None:
    """Detectors, methods or recipes, one a row."""
    {"detectors": _detectors, "methods": _methods, "recipes": _recipes}[what](console)


def _detectors(console: Console) -> None:
    from detdistill.detectors.build import DETECTORS
    from detdistill.detectors.weights import TORCHVISION

    rows = [[f"{name}:BACKBONE", "train", _first_line(builder)] for name, builder in DETECTORS.items()]
    rows += [[f"torchvision:{name}", "teach, evaluate, predict", "COCO weights of torchvision"] for name in TORCHVISION]
    table(console, ["detector", "what for", "what it is"], rows)
    console.print("BACKBONE is any timm model with feature maps at the strides asked for, such as resnet18 or mobilenetv3_small_100.")


def _methods(console: Console) -> None:
    from detdistill.methods import METHODS
    from detdistill.pairing import served

    columns = ["method", "paper", "reads", "learns", "detectors", "published AP on COCO"]
    heads = served()
    rows = [
        [name, method.paper, method.reads, method.learns or "nothing", ", ".join(heads[name]), method.gain or "-"]
        for name, method in METHODS.items()
    ]
    table(console, columns, rows)
    console.print("Options of each, and their defaults:")
    for name, method in METHODS.items():
        console.print(
            f"  {name}: "
            + ", ".join(
                f"{item.name} {str(item.default).lower() if item.default is None else item.default}" for item in fields(method.Config)
            )
        )


def _recipes(console: Console) -> None:
    from detdistill.recipe import packaged

    first = {name: path.read_text().split("\n", 1)[0].removeprefix("#").strip() for name, path in packaged().items()}
    table(console, ["recipe", "what it does"], list(first.items()))
