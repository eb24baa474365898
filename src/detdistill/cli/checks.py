"""The commands that check things before a run: `inspect` looks at a data set, `doctor` at the machine."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from detdistill.cli import flags
from detdistill.cli.app import app, make_console, make_recipe
from detdistill.cli.options import RecipeFlag, Replace
from detdistill.distributed import is_main
from detdistill.errors import UserError
from detdistill.files import write_json

if TYPE_CHECKING:
    from detdistill.inspection.check import Check

Json = Annotated[Path | None, Parameter(help="file for all numbers [default: none is written]", name="--json")]


@app.command
@flags.takes(
    "data.path",
    "data.train",
    "data.val",
    "data.test",
    "data.eval_split",
    "data.image_size",
    "model.strides",
    "model.name",
    "train.batch_size",
    model="model.name",
)
def inspect(
    data: Annotated[str | None, Parameter(help="folder of a data set, or shapes:N; the same as --data")] = None,
    /,
    *,
    recipe: RecipeFlag = None,
    out: Annotated[Path | None, Parameter(help="folder for ten drawn samples [default: none are drawn]")] = None,
    json: Json = None,
    overwrite: Replace = False,
    **fields: Any,
) -> None:
    """Look at a data set before a run: counts, sizes, duplicates, leaks between splits, suspicious boxes."""
    if data is not None and "data.path" in fields:
        raise UserError("the data set is given twice, as an argument and with --data; give it once")
    resolved = make_recipe(recipe, flags.overrides(fields if data is None else {"data.path": data, **fields}))
    from detdistill import run

    run.inspect_data(
        resolved.data,
        model=resolved.model,
        train=resolved.train,
        out=out,
        json=json,
        overwrite=overwrite,
        console=make_console(),
    )


@app.command
@flags.takes()
def doctor(*, json: Json = None) -> int:
    """Check this machine: packages, devices, threads, disk, network, and a tiny training step.

    The exit code is 1 if training can't work here.
    """
    if json is not None and json.is_dir():
        raise UserError(f"--json {json} is a folder: name a file")
    # Not through `run`, which imports torch: a broken torch is one of the things to report.
    from detdistill.inspection.machine import examine, verdict

    console = make_console()
    checks = []
    for check in examine():
        checks.append(check)
        _print_check(check, console)
    console.print(verdict(checks))
    if json is not None and is_main():
        write_json(json, {"verdict": verdict(checks), "checks": [asdict(check) for check in checks]})
    return int(any(check.state == "problem" for check in checks))


def _print_check(check: "Check", console: Console) -> None:
    """One line per check and one for its remedy; on a terminal, long text wraps beside its name."""
    lines = [(check.state, check.name, check.text), *([("", "", f"remedy: {check.remedy}")] if check.remedy else [])]
    if not console.is_terminal:
        for state, name, text in lines:
            console.print(f"{state:<7}  {name:<11}  {text}")
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    for width in (7, 11, None):
        grid.add_column(width=width)
    for line in lines:
        grid.add_row(*line)
    console.print(grid, soft_wrap=False)
