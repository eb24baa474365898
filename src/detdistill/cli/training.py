"""The commands that train: `demo`, `train`, `distill` and `compare`."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from detdistill.cli import flags
from detdistill.cli.app import ORIGIN, app, make_recipe
from detdistill.cli.options import (
    Compared,
    MethodOptions,
    Methods,
    ModelOptions,
    Out,
    Overwrite,
    RecipeFlag,
    Resume,
    TeacherOptions,
)
from detdistill.cli.output import Output
from detdistill.errors import UserError
from detdistill.recipe import Recipe, load

if TYPE_CHECKING:
    from detdistill.run import Outcome


OF_TEACHER = {
    "data.image_size": "the teacher's, or else 640, on a CPU at most 320",
    "model.strides": "the teacher's, if the student can have them, or else 8,16,32,64,128",
}
OF_ITSELF = {"data.image_size": "640, on a CPU at most 320"}
"""Defaults of a student with and without a teacher, in words."""


def demo_defaults() -> dict[str, str]:
    """The defaults of the demo, from its recipes: of the teacher and of the students, where they differ."""
    teacher, student = load("demo-teacher"), load("demo")
    defaults = {}
    for path in flags.FIELDS:
        part, _, name = path.partition(".")
        if part in ("data", "train") and "." not in name:
            values = [getattr(getattr(recipe, part), name) for recipe in (teacher, student)]
            texts = [",".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values]
            if values[0] != values[1]:
                defaults[path] = f"{texts[0]} for the teacher, {texts[1]} for the students"
            elif values[0] != flags.FIELDS[path].default:
                defaults[path] = texts[0]
    return defaults


@app.command(sort_key=1)
@flags.takes("data.", "train.", defaults=demo_defaults())
def demo(
    *, out: Out = None, resume: Resume = False, overwrite: Overwrite = False, output: Output, **fields: Any
) -> None:
    """Train a teacher, a plain and a distilled student on built-in images; show the gain, write ONNX. No downloads."""
    over = flags.overrides(fields)
    from detdistill import run

    summary = run.demo(over, out, resume=resume, overwrite=overwrite, console=output.console)
    gain = summary["gain"]["AP"]
    output.end(summary, "gain: not measurable" if gain is None else f"gain: {gain:+.1f} AP")


@app.command(sort_key=2, usage="Usage: detdistill train --model MODEL --data PATH [OPTIONS]")
@flags.takes("model.", "data.", "train.", without=["train.balance_every"], defaults=OF_ITSELF, model="model.name")
def train(
    *,
    recipe: RecipeFlag = None,
    model_options: ModelOptions = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    output: Output,
    **fields: Any,
) -> None:
    """Train a detector without a teacher."""
    resolved = make_recipe(
        recipe, flags.overrides(fields, model=model_options), out=out if resume else None, say=output.console
    )
    from detdistill import run

    outcome = run.train(resolved, out, resume=resume, overwrite=overwrite, console=output.console)
    _end(outcome, output)


@app.command(
    sort_key=3,
    usage="Usage: detdistill distill --student MODEL --teacher TEACHER --data PATH [OPTIONS]",
)
@flags.takes("model.", "data.", "teacher.", "train.", defaults=OF_TEACHER, student="model.name")
def distill(
    *,
    method: Methods = None,
    methods: MethodOptions = None,
    recipe: RecipeFlag = None,
    model_options: ModelOptions = None,
    teacher_options: TeacherOptions = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    output: Output,
    **fields: Any,
) -> None:
    """Train a detector that also learns from a teacher."""
    over = flags.overrides(fields, methods, model_options, teacher_options)
    chosen = flags.names(method, "--method")
    flags.check_options_used(methods, chosen, "--method")
    resolved = make_recipe(recipe, over, methods=chosen, out=out if resume else None, say=output.console)
    from detdistill import run

    outcome = run.distill(resolved, out, resume=resume, overwrite=overwrite, console=output.console)
    _end(outcome, output)


@app.command(
    sort_key=4,
    usage="Usage: detdistill compare --student MODEL --teacher TEACHER --data PATH [OPTIONS]",
)
@flags.takes("model.", "data.", "teacher.", "train.", defaults=OF_TEACHER, student="model.name")
def compare(
    *,
    method: Compared = None,
    seeds: Annotated[
        int | None,
        Parameter(help="runs per method, with seeds from --seed on [default: 3; with --resume, as many as exist]"),
    ] = None,
    resamples: Annotated[
        int, Parameter(help="bootstrap resamples of the test images, for the interval over images")
    ] = 1000,
    methods: MethodOptions = None,
    recipe: RecipeFlag = None,
    model_options: ModelOptions = None,
    teacher_options: TeacherOptions = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    output: Output,
    **fields: Any,
) -> None:
    """Train a detector plainly and with each of several methods, over several seeds, and say which gains are noise."""
    if method is None and not resume:
        raise UserError(
            "--methods: say what to compare, such as none,pkd,crosskd,pkd+crosskd (`detdistill list methods`)"
        )
    labels = flags.labels(method or "none")
    flags.check_options_used(methods, [name for label in labels for name in label.split("+")], "--methods")
    over = flags.overrides(fields, methods, model_options, teacher_options)
    if recipe is None and resume and out is not None and (out / "comparison.yaml").exists():
        recipe = str(out / "comparison.yaml")
    recipes: dict[str, Recipe] = {}
    for label in labels:
        say = None if recipes else output.console.print  # the notes are the same for all labels
        recipes[label] = load(recipe, over, [] if label == "none" else label.split("+"), origin=ORIGIN, say=say)
    from detdistill import run
    from detdistill.run.comparison_runs import Entry

    entries = [Entry(label, resolved) for label, resolved in recipes.items()]
    summary = run.compare(
        entries, seeds, out, resamples=resamples, resume=resume, overwrite=overwrite, console=output.console
    )
    gains = [f"{row['method']} {row['gain']:+.1f} AP ({row['verdict']})" for row in summary["rows"] if row["gain"]]
    output.end(summary, "; ".join(gains) or "no gain was measured")


def _end(outcome: "Outcome", output: Output) -> None:
    """Print the metrics of a run, and end the command with them."""
    from detdistill.run import tables

    tables.metrics(output.console, outcome.metrics)
    output.console.print(f"written to {outcome.out}")
    line = f"{outcome.out}: {tables.summary(outcome.metrics)}"
    output.end({"out": str(outcome.out), "metrics": dict(outcome.metrics)}, line)
