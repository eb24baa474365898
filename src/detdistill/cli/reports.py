"""The command that writes a page about runs: `report`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detdistill.cli import flags
from detdistill.cli.app import app
from detdistill.cli.output import Output


@app.command(sort_key=8, usage="Usage: detdistill report RUNS... [OPTIONS]")
@flags.takes()
def report(
    *runs: Annotated[Path, Parameter(help="folders of runs and comparisons: students, and their teachers if you like")],
    out: Annotated[
        Path | None, Parameter(help="the HTML file [default: report.html in the folder, if only one is given]")
    ] = None,
    resamples: Annotated[
        int, Parameter(help="bootstrap resamples of the images, for the intervals over images")
    ] = 1000,
    overwrite: Annotated[bool, Parameter(help="replace the file --out", negative=(), show_default=False)] = False,
    output: Output,
) -> None:
    """Write one HTML page about runs: whether distillation helped, errors, images, curves, speed."""
    from detdistill import run

    path = run.report(runs, out, resamples=resamples, overwrite=overwrite, console=output.console)
    output.end({"page": str(path)}, f"report: {path}")
