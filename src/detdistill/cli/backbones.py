"""What `detdistill list backbones` prints."""

from rich.console import Console

from detdistill.cli import facts, index
from detdistill.cli.facts import Facts
from detdistill.printing import table

COLUMNS = {
    name: name for name in ("backbone", "parameters", "operations", "strides", "normalization", "pretrained", "remark")
}
NARROW_COLUMNS = {
    "backbone": "backbone",
    "parameters": "params",
    "operations": "ops",
    "strides": "strides",
    "remark": "remark",
}
"""Columns and their headings, in a wide and in a narrow terminal."""
WIDE = 110
MOST = 100  # models whose operations are counted; each takes a fraction of a second


def backbones(pattern: str | None, image_size: int | tuple[int, int], console: Console) -> list[Facts]:
    """Print the timm models that match a pattern, one per row; without a pattern, a small one of each family.

    image_size: the images' (height, width), or the side of a square, for the operations. Returns what is known of each.
    Raises UserError with a similar name if no model matches.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    known = index.backbones(size) if pattern is None else None
    rows, more = (known, 0) if known is not None else _counted(pattern, size, console)
    is_narrow = console.is_terminal and console.width < WIDE
    columns = NARROW_COLUMNS if is_narrow else COLUMNS
    cells = [_cells(entry) for entry in rows]
    table(console, list(columns.values()), [[row[name] for name in columns] for row in cells])
    if is_narrow:
        console.print(f"A terminal of {WIDE} columns also shows normalization and pretrained weights.", soft_wrap=False)
    if more:
        console.print(f"{more} more match: narrow the pattern", soft_wrap=False)
    console.print(
        f"Operations are those of one image of {size[0]} x {size[1]}; a multiplication and an addition count as two. "
        "Normalization is what the pretrained weights expect; 0.5 means a mean and a deviation of 0.5, 0..1 means "
        "pixels as they are.",
        soft_wrap=False,
    )
    if pattern is None:
        console.print(
            "These are small backbones of all families. For others, give a pattern: "
            "detdistill list backbones 'resnet*'",
            soft_wrap=False,
        )
    return rows


def _counted(pattern: str | None, size: tuple[int, int], console: Console) -> tuple[list[Facts], int]:
    """The facts about the models that match, which are run for that, and the number of models that were left out."""
    from detdistill.detectors.timm.examples import EXAMPLES
    from detdistill.run.backbones import matching

    names = EXAMPLES if pattern is None else matching(pattern)
    with console.status("running models without weights"):
        return facts.backbones(names[:MOST], size), max(0, len(names) - MOST)


def _cells(entry: Facts) -> dict[str, str]:
    """The cells of one backbone, by column."""
    return {
        "backbone": entry["name"],
        "parameters": "-" if entry["parameters"] is None else f"{entry['parameters'] / 1e6:.2f}M",
        "operations": "-" if entry["operations"] is None else f"{entry['operations'] / 1e9:.2f}G",
        "strides": ",".join(map(str, entry["strides"])) or "-",
        "normalization": entry["normalization"],
        "pretrained": "yes" if entry["pretrained"] else "no",
        "remark": entry["remark"],
    }
