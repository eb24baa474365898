"""A trained detector in the format of another library."""

from pathlib import Path
from typing import get_args

from rich.console import Console

from detdistill.data.transforms import sides
from detdistill.errors import UserError
from detdistill.exporting import Format
from detdistill.run.folder import RunFolder
from detdistill.run.models import load
from detdistill.run.tables import printer


def export(
    model: str | Path,
    out: Path,
    *,
    format: Format = "transformers",
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Export the detector of a run folder and verify that the exported model gives the same boxes. Returns `out`.

    transformers: a folder that its from_pretrained loads without detdistill, with the image processor. Raises UserError
    if that library has no such detector or if the exported model differs; then nothing is written.
    """
    from detdistill.exporting import transformers  # importing that library takes seconds

    if format not in get_args(Format):
        raise UserError(f"--format {format!r}: choose one of {', '.join(get_args(Format))}")
    size = RunFolder(Path(model)).card().image_size
    height, width = sides(size)
    transformers.export(load(model), out, (height, width), overwrite=overwrite)
    printer(console)(
        f"{out}: AutoModelForObjectDetection.from_pretrained loads it; its boxes equal those of {model} on images of "
        f"{height} x {width}"
    )
    return out
