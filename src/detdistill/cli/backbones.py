"""What `detdistill list backbones` prints."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from detdistill.run.backbones import BackboneFacts

MOST = 100  # models whose operations are counted; each takes a fraction of a second


def backbones(pattern: str | None, image_size: int | tuple[int, int], console: Console) -> None:
    """Print the timm models that match a pattern, one per row; without a pattern, a small one of each family.

    image_size: the images' (height, width), or the side of a square, for the operations.
    Raises UserError with a similar name if no model matches.
    """
    from detdistill.data.transforms import sides
    from detdistill.detectors.timm.examples import EXAMPLES
    from detdistill.run.backbones import describe, matching
    from detdistill.run.tables import table

    size = sides(image_size)
    names: Sequence[str] = EXAMPLES if pattern is None else matching(pattern)
    with console.status("running models without weights"):
        rows = [_row(describe(name, size)) for name in names[:MOST]]
    columns = ["backbone", "parameters", "operations", "strides", "normalization", "pretrained", "remark"]
    table(console, columns, rows)
    if len(names) > MOST:
        console.print(f"{len(names) - MOST} more match: narrow the pattern", soft_wrap=False)
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


def _row(facts: "BackboneFacts") -> list[str]:
    """The cells of one backbone."""
    from detdistill.run.backbones import normalization

    return [
        facts.name,
        "-" if facts.parameters is None else f"{facts.parameters / 1e6:.2f}M",
        "-" if facts.operations is None else f"{facts.operations / 1e9:.2f}G",
        ",".join(map(str, facts.strides)) or "-",
        normalization(facts.statistics),
        "yes" if facts.has_weights else "no",
        facts.remark,
    ]
