"""The command that writes a page about runs: `report`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detdistill.cli import flags
from detdistill.cli.app import app, make_console
from detdistill.cli.flags import COMMON


@app.command
@flags.takes()
def report(
    *runs: Annotated[Path, Parameter(help="folders of runs and comparisons: students, and their teachers if you like")],
    out: Annotated[
        Path | None, Parameter(help="the HTML file [default: report.html in the folder, if only one is given]")
    ] = None,
    resamples: Annotated[
        int, Parameter(help="bootstrap resamples of the images, for the intervals over images")
    ] = 1000,
    overwrite: Annotated[bool, Parameter(help="replace the file --out", group=COMMON, negative=())] = False,
) -> None:
    """Write one HTML page about runs: whether distillation helped, errors, images, curves, speed."""
    from detdistill import run

    run.report(runs, out, resamples=resamples, overwrite=overwrite, console=make_console())
