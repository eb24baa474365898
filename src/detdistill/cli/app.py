"""The commands: each parses, calls `detdistill.run`, and prints. torch is imported when a command runs, so --help is
quick.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, validators
from rich.console import Console

from detdistill.cli import flags
from detdistill.cli.messages import explain
from detdistill.cli.options import (
    Compared,
    EvaluatedModel,
    MethodOptions,
    Methods,
    Model,
    ModelOptions,
    Out,
    Overwrite,
    RecipeFlag,
    Replace,
    Results,
    Resume,
    TeacherOptions,
)
from detdistill.distributed import is_main, world_size
from detdistill.errors import UserError
from detdistill.exporting import Format
from detdistill.recipe import Recipe, load

app = App(
    name="detdistill",
    help="Train a small object detector with a large one as its teacher, and measure the gain.",
    version=lambda: version("detdistill"),
    help_on_error=False,
    suppress_keyboard_interrupt=False,
)

ORIGIN = "command line"  # where a wrong value comes from, in messages
ARCHITECTURE = tuple(
    path for path in flags.FIELDS if path.startswith("model.") and path not in ("model.name", "model.backbone_weights")
)
DEMO = dict.fromkeys(
    ("data.path", "data.image_size", "train.epochs", "train.lr", "train.weight_decay", "train.clip_norm"),
    "as in the recipes demo-teacher and demo",
)
SAVED_SIZE = {"data.image_size": "the size the model was trained with"}


@app.command
@flags.takes("data.", "train.", defaults=DEMO)
def demo(*, out: Out = None, resume: Resume = False, overwrite: Overwrite = False, **fields: Any) -> None:
    """Train a teacher, a plain student and a distilled student on built-in images; print the gain. No downloads."""
    over = flags.overrides(fields)
    from detdistill import run

    run.demo(over, out, resume=resume, overwrite=overwrite, console=_console())


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
    console = _console()
    resolved = _recipe(recipe, flags.overrides(fields, model=model_options), out=out if resume else None, say=console)
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
    console = _console()
    resolved = _recipe(recipe, over, methods=chosen, out=out if resume else None, say=console)
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
    console, recipes = _console(), {}
    for label in labels:
        say = None if recipes else console.print  # the notes are the same for all labels
        recipes[label] = load(recipe, over, [] if label == "none" else label.split("+"), origin=ORIGIN, say=say)
    from detdistill import run
    from detdistill.run.comparison_runs import Entry

    entries = [Entry(label, resolved) for label, resolved in recipes.items()]
    run.compare(entries, seeds, out, resamples=resamples, resume=resume, overwrite=overwrite, console=console)


@app.command
@flags.takes(
    *ARCHITECTURE,
    "data.",
    "train.batch_size",
    "train.workers",
    "train.device",
    defaults=SAVED_SIZE,
    split="data.eval_split",
)
def evaluate(
    *,
    model: EvaluatedModel = None,
    recipe: RecipeFlag = None,
    model_options: ModelOptions = None,
    out: Results = None,
    overwrite: Replace = False,
    **fields: Any,
) -> None:
    """Measure a detector: COCO metrics, AP per class, parameters, operations, latency."""
    if (evaluated := model or recipe) is None:
        raise UserError("no model: give --model, or a run folder with --recipe")
    resolved = _recipe(recipe, flags.overrides(fields, model=model_options))
    from detdistill import run
    from detdistill.run import tables

    console = _console()
    metrics = run.evaluate(
        evaluated,
        resolved.data,
        train=resolved.train,
        built=resolved.model,
        out=out,
        overwrite=overwrite,
        console=console,
    )
    tables.metrics(console, metrics)


@app.command
@flags.takes("data.image_size", "data.on_bad_record", "train.batch_size", "train.device", defaults=SAVED_SIZE)
def predict(
    *images: Annotated[Path, Parameter(help="image files and folders of images")],
    model: Model,
    out: Annotated[Path, Parameter(help="folder for the drawn images and predictions.json")],
    threshold: Annotated[
        float,
        Parameter(
            help="boxes with a lower score are not drawn; predictions.json holds them too",
            validator=validators.Number(gte=0, lte=1),
        ),
    ] = 0.3,
    overwrite: Replace = False,
    **fields: Any,
) -> None:
    """Draw a detector's boxes on images, and write them as COCO-style JSON in pixels of the image files."""
    resolved = _recipe(None, flags.overrides(fields))
    from detdistill import run

    run.predict(
        model,
        images,
        out,
        data=resolved.data,
        train=resolved.train,
        threshold=threshold,
        overwrite=overwrite,
        console=_console(),
    )


@app.command
@flags.takes()
def export(
    *,
    model: Annotated[str, Parameter(help="a run folder")],
    out: Annotated[Path, Parameter(help="folder for the exported files")],
    format: Annotated[
        Format, Parameter(help="transformers: a folder that its from_pretrained loads without detdistill")
    ] = "transformers",
    overwrite: Replace = False,
) -> None:
    """Export a trained detector and verify that the exported model gives the same boxes."""
    from detdistill import run

    run.export(model, out, format=format, overwrite=overwrite, console=_console())


@app.command(name="list")
@flags.takes("data.image_size")
def show(
    what: Annotated[Literal["detectors", "methods", "backbones", "recipes"], Parameter(help="what to list")],
    name: Annotated[str | None, Parameter(help="one detector or method, or a pattern for backbones: 'resnet*'")] = None,
    /,
    **fields: Any,
) -> None:
    """List the detectors, methods, backbones or recipes; with a name, print everything about a detector or method."""
    from detdistill.cli.listing import listing

    listing(what, name, _console(), flags.overrides(fields))


def _recipe(
    source: str | None,
    over: Mapping[str, Any],
    methods: Sequence[str] | None = None,
    out: Path | None = None,
    say: Console | None = None,
) -> Recipe:
    """Defaults, then the recipe file, or that of the run `out` to continue, then the flags. say: where notes go."""
    if source is None and out is not None and (out / "recipe.yaml").exists():
        source = str(out)
    return load(source, over, methods, origin=ORIGIN, say=say.print if say else None)


def _print_outcome(outcome: Any, console: Console) -> None:
    from detdistill.run import tables

    tables.metrics(console, outcome.metrics)
    console.print(f"written to {outcome.out}")


def _console() -> Console:
    return Console(highlight=False, markup=False, soft_wrap=True, quiet=not is_main())


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0: done. 2: the input is wrong; one line on stderr says what. 1: interrupted, or `doctor` found a problem. Any other
    exception passes through.
    """
    if world_size() > 1:
        # torch prints harmless warnings once per process; its errors are still printed.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    words = list(sys.argv[1:] if tokens is None else tokens)
    try:
        code = app(flags.tidy(words), exit_on_error=False, print_error=False, result_action="return_value")
    except (UserError, CycloptsError) as error:
        message = explain(error) if isinstance(error, CycloptsError) else str(error)
        print(f"detdistill: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("detdistill: interrupted; continue with --resume --out DIR", file=sys.stderr)
        return 1
    return code or 0
