"""The commands that check things before a run: `inspect` looks at data and models, `doctor` at the machine."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from detdistill.cli import flags
from detdistill.cli.app import app, make_recipe
from detdistill.cli.options import MethodOptions, Methods, ModelOptions, RecipeFlag, Replace, TeacherOptions
from detdistill.cli.output import Output
from detdistill.errors import UserError

if TYPE_CHECKING:
    from detdistill.inspection.check import Check

OF_DATA = (
    "data.path",
    "data.train",
    "data.val",
    "data.test",
    "data.eval_split",
    "data.image_size",
    "model.strides",
    "model.name",
    "train.batch_size",
)
"""Fields that the inspection of a data set reads, by how their paths begin."""
OF_PAIR = (
    "model.",
    "data.",
    "teacher.path",
    "teacher.model.",
    "teacher.sample",
    "teacher.floor",
    "train.epochs",
    "train.max_steps",
    "train.seed",
    "train.batch_size",
    "train.accumulate",
    "train.optimizer",
    "train.backbone_lr_factor",
    "train.clip_norm",
    "train.ema",
    "train.precision",
    "train.device",
    "train.workers",
)
"""Fields that decide what a student, a teacher and a run with them cost."""


@app.command(sort_key=9, usage="Usage: detdistill inspect [DATA] [--student MODEL] [--teacher TEACHER] [OPTIONS]")
@flags.takes(
    *OF_PAIR,
    defaults={
        "data.image_size": "as `distill` takes it; 640 for a data set alone",
        "teacher.sample": "32, which is the most here",
    },
    model="model.name",
)
def inspect(
    data: Annotated[str | None, Parameter(help="folder of a data set, or shapes:N; the same as --data")] = None,
    /,
    *,
    student: Annotated[
        str | None, Parameter(help="HEAD:BACKBONE or a run folder: inspect it, not the data", metavar="MODEL")
    ] = None,
    method: Methods = None,
    methods: MethodOptions = None,
    recipe: RecipeFlag = None,
    model_options: ModelOptions = None,
    teacher_options: TeacherOptions = None,
    out: Annotated[Path | None, Parameter(help="folder for ten drawn samples [default: none are drawn]")] = None,
    overwrite: Replace = False,
    output: Output,
    **fields: Any,
) -> None:
    """Look at a data set or a pair of models before a run.

    Of a data set: counts, sizes, duplicates, leaks between splits, suspicious boxes. With --student or --teacher: both
    models, which methods serve them, and how long a run will take.
    """
    if data is not None and "data.path" in fields:
        raise UserError("the data set is given twice, as an argument and with --data; give it once")
    if student is not None and "model.name" in fields:
        raise UserError("the student is given twice, with --student and --model; give it once")
    given = {"data.path": data, "model.name": student}
    fields |= {path: value for path, value in given.items() if value is not None}
    of_models = student is not None or "teacher.path" in fields
    chosen = flags.names(method, "--method")
    more: dict[str, Any] = {"--method": method, "--methods": methods}
    more |= {"--model.options": model_options, "--teacher.model.options": teacher_options}
    _check_read(fields, more, of_models, out)
    flags.check_options_used(methods, chosen, "--method")
    over = flags.overrides(fields, methods, model_options, teacher_options)
    resolved = make_recipe(recipe, over, methods=chosen)
    from detdistill import run

    if of_models:
        pair = run.inspect_pair(resolved, console=output.console)
        output.end(pair.to_json(), pair.verdict)
        return
    inspection = run.inspect_data(
        resolved.data,
        model=resolved.model,
        train=resolved.train,
        out=out,
        overwrite=overwrite,
        console=output.console,
    )
    output.end(inspection.to_json(), inspection.verdict)


def _check_read(fields: Mapping[str, Any], more: Mapping[str, Any], of_models: bool, out: Path | None) -> None:
    """Raises UserError for a flag that this kind of inspection does not read. more: flags that are no fields."""
    if of_models and out is not None:
        raise UserError("--out is for the drawn samples of a data set; leave it out, or inspect the data alone")
    unread = [f"--{path.replace('_', '-')}" for path in fields if not path.startswith(OF_DATA)]
    unread += [flag for flag, value in more.items() if value is not None]
    if unread and not of_models:
        raise UserError(f"{unread[0]} is not read when a data set is inspected; add --student or --teacher")


@app.command(sort_key=10)
@flags.takes()
def doctor(*, output: Output) -> int:
    """Check this machine: packages, devices, threads, disk, network, and a tiny training step.

    The exit code is 1 if training can't work here.
    """
    # Not through `run`, which imports torch: a broken torch is one of the things to report.
    from detdistill.inspection.machine import examine, verdict

    checks = []
    for check in examine():
        checks.append(check)
        _print_check(check, output.console)
    output.console.print(verdict(checks))
    output.end({"verdict": verdict(checks), "checks": [asdict(check) for check in checks]}, verdict(checks))
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
