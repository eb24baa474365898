"""The command line: parses, calls run, prints; nothing else. torch is imported only once a command runs, so that --help is quick."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter, validators
from rich.console import Console

from detdistill.cli import flags
from detdistill.distributed import is_main, world_size
from detdistill.errors import UserError
from detdistill.exporting import Format
from detdistill.recipe import Recipe, load

app = App(
    name="detdistill",
    help="Teach a small object detector with a large one, and measure what it gained.",
    version=lambda: version("detdistill"),
    help_on_error=False,
    suppress_keyboard_interrupt=False,
)

ORIGIN = "command line"
BUILT = tuple(
    path for path in flags.FIELDS if path.startswith("model.") and path not in ("model.name", "model.backbone_weights")
)
SIZE = {"data.image_size": "what the model was trained with"}
_COMMON = Group("Common flags", sort_key=1)
RecipeFlag = Annotated[
    str | None, Parameter(help="a recipe file, a run folder, or a name of `detdistill list recipes`", group=_COMMON)
]
Out = Annotated[Path | None, Parameter(help="the run's folder [default: runs/NAME, numbered]", group=_COMMON)]
Resume = Annotated[bool, Parameter(help="go on with the run in --out, bit for bit", group=_COMMON, negative=())]
Overwrite = Annotated[bool, Parameter(help="replace the run in --out", group=_COMMON, negative=())]
Options = Annotated[
    dict[str, dict[str, str]] | None,
    Parameter(
        help="an option of a method, such as --methods.pkd.weight 4 (`detdistill list methods`)",
        group=_COMMON,
        negative=(),
    ),
]
PRETRAINED = "a pretrained detector such as torchvision:fcos_resnet50_fpn or hf:facebook/detr-resnet-50"
Model = Annotated[str, Parameter(help=f"a run folder, or {PRETRAINED}")]
Measured = Annotated[str, Parameter(help=f"a run folder, {PRETRAINED}, or HEAD:BACKBONE=FILE, a state dict")]
Results = Annotated[
    Path | None,
    Parameter(help="folder for metrics.json and predictions.json [default: nothing is written]", group=_COMMON),
]
Compared = Annotated[
    str | None,
    Parameter(
        name="--method", help="what is compared, with commas: none,pkd,crosskd,pkd+crosskd (none: plain training)"
    ),
]
Methods = Annotated[str | None, Parameter(help="methods, with commas between them: pkd,crosskd")]


@app.command
@flags.takes("data.", "train.")
def demo(*, out: Out = None, resume: Resume = False, overwrite: Overwrite = False, **fields: Any) -> None:
    """Teacher, plain student and distilled student on built-in pictures, and what the teaching gained. Needs no download."""
    over = flags.overrides(fields)
    from detdistill import run

    run.demo(over, out, resume=resume, overwrite=overwrite, console=_console())


@app.command
@flags.takes("model.", "data.", "train.", model="model.name")
def train(
    *, recipe: RecipeFlag = None, out: Out = None, resume: Resume = False, overwrite: Overwrite = False, **fields: Any
) -> None:
    """Train a detector without a teacher."""
    resolved = _recipe(recipe, fields, out=out if resume else None)
    from detdistill import run
    from detdistill.run import tables

    console = _console()
    outcome = run.train(resolved, out, resume=resume, overwrite=overwrite, console=console)
    tables.metrics(console, outcome.metrics)
    console.print(f"written to {outcome.out}")


@app.command
@flags.takes("model.", "data.", "teacher.", "train.", student="model.name")
def distill(
    *,
    method: Methods = None,
    methods: Options = None,
    recipe: RecipeFlag = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    **fields: Any,
) -> None:
    """Train a detector that also learns from a teacher."""
    resolved = _recipe(recipe, fields, method=method, options=methods, out=out if resume else None)
    from detdistill import run
    from detdistill.run import tables

    console = _console()
    outcome = run.distill(resolved, out, resume=resume, overwrite=overwrite, console=console)
    tables.metrics(console, outcome.metrics)
    console.print(f"written to {outcome.out}")


@app.command
@flags.takes("model.", "data.", "teacher.", "train.", student="model.name")
def compare(
    *,
    method: Compared = None,
    seeds: Annotated[
        int | None, Parameter(help="runs of each, with seeds from --seed on [default: 3; with --resume as there are]")
    ] = None,
    resamples: Annotated[int, Parameter(help="of the test images, for the interval over images")] = 1000,
    methods: Options = None,
    recipe: RecipeFlag = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    **fields: Any,
) -> None:
    """Train a detector plainly and by each of several methods, over several seeds, and say which differences are noise."""
    if method is None and not resume:
        raise UserError(
            "--methods: say what is compared, such as none,pkd,crosskd,pkd+crosskd (`detdistill list methods`)"
        )
    labels = flags.labels(method or "none")
    named = {name for label in labels for name in label.split("+")}
    stray = [name for name in flags.names(",".join(methods or {}) or None, "--methods") or () if name not in named]
    if stray:
        raise UserError(
            f"--methods.{stray[0]} is given, but --methods compares only {', '.join(labels)}; add {stray[0]} to it"
        )
    over = flags.overrides(fields, methods)
    if recipe is None and resume and out is not None and (out / "comparison.yaml").exists():
        recipe = str(out / "comparison.yaml")
    recipes = [
        (label, load(recipe, over, [] if label == "none" else label.split("+"), origin=ORIGIN)) for label in labels
    ]
    from detdistill.run import comparison

    entries = [comparison.Entry(label, resolved) for label, resolved in recipes]
    comparison.compare(entries, seeds, out, resamples=resamples, resume=resume, overwrite=overwrite, console=_console())


@app.command
@flags.takes(*BUILT, "data.", "train.batch_size", "train.workers", "train.device", own=SIZE, split="data.eval_split")
def evaluate(
    *, model: Measured, recipe: RecipeFlag = None, out: Results = None, overwrite: Overwrite = False, **fields: Any
) -> None:
    """Measure a detector: COCO's numbers, AP of each class, parameters, operations, latency."""
    resolved = _recipe(recipe, fields)
    from detdistill import run
    from detdistill.run import tables

    console = _console()
    settings: dict[str, Any] = {"train": resolved.train, "built": resolved.model, "out": out, "overwrite": overwrite}
    tables.metrics(console, run.evaluate(model, resolved.data, **settings, console=console))


@app.command
@flags.takes("data.image_size", "data.on_bad_record", "train.batch_size", "train.device", own=SIZE)
def predict(
    *images: Annotated[Path, Parameter(help="pictures, and folders of pictures")],
    model: Model,
    out: Annotated[Path, Parameter(help="folder for the drawn pictures and predictions.json")],
    threshold: Annotated[
        float,
        Parameter(
            help="boxes below this score are not drawn; predictions.json has them all",
            validator=validators.Number(gte=0, lte=1),
        ),
    ] = 0.3,
    overwrite: Overwrite = False,
    **fields: Any,
) -> None:
    """Draw a detector's boxes on pictures, and write them as COCO-style JSON in the pictures' own pixels."""
    resolved = _recipe(None, fields)
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
def export(
    *,
    model: Annotated[str, Parameter(help="a run folder")],
    out: Annotated[Path, Parameter(help="folder for what is written")],
    format: Annotated[
        Format, Parameter(help="transformers: a folder that its from_pretrained loads without detdistill")
    ] = "transformers",
    overwrite: Annotated[bool, Parameter(help="replace the files of an earlier export in --out", negative=())] = False,
) -> None:
    """Hand a trained detector to another library, and compare what that one makes of it."""
    from detdistill import run

    run.export(model, out, format=format, overwrite=overwrite, console=_console())


@app.command(name="list")
def show(what: Literal["detectors", "methods", "recipes"], name: str | None = None, /) -> None:
    """Say which detectors, methods or recipes there are; after `methods` a name tells all of one method."""
    from detdistill.cli.listing import listing

    listing(what, name, _console())


def _recipe(
    source: str | None,
    fields: Mapping[str, Any],
    *,
    method: str | None = None,
    options: Mapping[str, Mapping[str, str]] | None = None,
    out: Path | None = None,
) -> Recipe:
    """Defaults, under the recipe file, under the flags. out: a run to go on with; its recipe is the file, unless another is given."""
    if source is None and out is not None and (out / "recipe.yaml").exists():
        source = str(out)
    chosen = flags.names(method, "--method")
    stray = [
        name
        for name in flags.names(",".join(options or {}) or None, "--methods") or ()
        if chosen and name not in chosen
    ]
    if stray:
        raise UserError(
            f"--methods.{stray[0]} is given, but --method names only {', '.join(chosen or ())}; add {stray[0]} to --method"
        )
    return load(source, flags.overrides(fields, options), chosen, origin=ORIGIN)


def _console() -> Console:
    return Console(highlight=False, markup=False, soft_wrap=True, quiet=not is_main())


def main(tokens: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 the input is wrong (one line on stderr), 1 interrupted. Any other error passes with its traceback (1)."""
    if world_size() > 1:  # torch's own warnings of harmless things, once a process; its errors are told still
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    given = list(sys.argv[1:] if tokens is None else tokens)
    try:
        app(flags.tidy(given), exit_on_error=False, print_error=False, result_action="return_none")
    except (UserError, CycloptsError) as error:
        print(f"detdistill: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "detdistill: interrupted; what was begun goes on from its last checkpoint with --resume --out DIR",
            file=sys.stderr,
        )
        return 1
    return 0
