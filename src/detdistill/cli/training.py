"""The commands that train: `demo`, `train`, `distill` and `compare`."""

from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from detdistill.cli import flags
from detdistill.cli.app import ORIGIN, app, make_console, make_recipe
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
from detdistill.errors import UserError
from detdistill.recipe import Recipe, load

DEMO = dict.fromkeys(
    ("data.path", "data.image_size", "train.epochs", "train.lr", "train.weight_decay", "train.clip_norm"),
    "as in the recipes demo-teacher and demo",
)


@app.command
@flags.takes("data.", "train.", defaults=DEMO)
def demo(*, out: Out = None, resume: Resume = False, overwrite: Overwrite = False, **fields: Any) -> None:
    """Train a teacher, a plain and a distilled student on built-in images; show the gain, write ONNX. No downloads."""
    over = flags.overrides(fields)
    from detdistill import run

    run.demo(over, out, resume=resume, overwrite=overwrite, console=make_console())


@app.command
@flags.takes("model.", "data.", "train.", model="model.name")
def train(
    *,
    recipe: RecipeFlag = None,
    model_options: ModelOptions = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    **fields: Any,
) -> None:
    """Train a detector without a teacher."""
    console = make_console()
    resolved = make_recipe(
        recipe, flags.overrides(fields, model=model_options), out=out if resume else None, say=console
    )
    from detdistill import run

    outcome = run.train(resolved, out, resume=resume, overwrite=overwrite, console=console)
    _print_outcome(outcome, console)


@app.command
@flags.takes("model.", "data.", "teacher.", "train.", student="model.name")
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
    **fields: Any,
) -> None:
    """Train a detector that also learns from a teacher."""
    over = flags.overrides(fields, methods, model_options, teacher_options)
    chosen = flags.names(method, "--method")
    flags.check_options_used(methods, chosen, "--method")
    console = make_console()
    resolved = make_recipe(recipe, over, methods=chosen, out=out if resume else None, say=console)
    from detdistill import run

    outcome = run.distill(resolved, out, resume=resume, overwrite=overwrite, console=console)
    _print_outcome(outcome, console)


@app.command
@flags.takes("model.", "data.", "teacher.", "train.", student="model.name")
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
    console = make_console()
    recipes: dict[str, Recipe] = {}
    for label in labels:
        say = None if recipes else console.print  # the notes are the same for all labels
        recipes[label] = load(recipe, over, [] if label == "none" else label.split("+"), origin=ORIGIN, say=say)
    from detdistill import run
    from detdistill.run.comparison_runs import Entry

    entries = [Entry(label, resolved) for label, resolved in recipes.items()]
    run.compare(entries, seeds, out, resamples=resamples, resume=resume, overwrite=overwrite, console=console)


def _print_outcome(outcome: Any, console: Console) -> None:
    from detdistill.run import tables

    tables.metrics(console, outcome.metrics)
    console.print(f"written to {outcome.out}")
