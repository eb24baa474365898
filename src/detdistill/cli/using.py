"""The commands that use a trained detector: `evaluate`, `predict` and `export`."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from detdistill.cli import flags
from detdistill.cli.app import app, make_recipe
from detdistill.cli.options import EvaluatedModel, Model, ModelOptions, RecipeFlag, Replace, Results
from detdistill.cli.output import Output
from detdistill.errors import UserError, plural
from detdistill.exporting import Format, Precision

ARCHITECTURE = tuple(
    path for path in flags.FIELDS if path.startswith("model.") and path not in ("model.name", "model.backbone_weights")
)
READ = (  # fields that decide which images of a data set are read, and at which size
    *("data.path", "data.train.", "data.val.", "data.test.", "data.train_split", "data.eval_split"),
    *("data.val_fraction", "data.test_fraction", "data.image_size", "data.on_bad_record"),
)
SAVED_DATA = {"data.path": "the data of the run folder"}
SAVED_SIZE = {"data.image_size": "the size the model was trained with"}


@app.command(sort_key=5)
@flags.takes(
    *ARCHITECTURE,
    *READ,
    "train.batch_size",
    "train.workers",
    "train.device",
    defaults=SAVED_SIZE | SAVED_DATA,
    split="data.eval_split",
)
def evaluate(
    *,
    model: EvaluatedModel = None,
    recipe: RecipeFlag = None,
    model_options: ModelOptions = None,
    out: Results = None,
    overwrite: Replace = False,
    output: Output,
    **fields: Any,
) -> None:
    """Measure a detector: COCO metrics, AP per class, parameters, operations, latency."""
    if (evaluated := model or recipe) is None:
        raise UserError("no model: give --model, or a run folder with --recipe")
    resolved = make_recipe(recipe, flags.overrides(fields, model=model_options))
    from detdistill import run
    from detdistill.run import tables

    metrics = run.evaluate(
        evaluated,
        resolved.data,
        train=resolved.train,
        built=resolved.model,
        out=out,
        overwrite=overwrite,
        console=output.console,
    )
    tables.metrics(output.console, metrics)
    output.end(metrics, f"{evaluated}: {tables.summary(metrics)}")


@app.command(sort_key=6, usage="Usage: detdistill predict IMAGES... --model MODEL --out FOLDER [OPTIONS]")
@flags.takes("data.image_size", "data.on_bad_record", "train.batch_size", "train.device", defaults=SAVED_SIZE)
def predict(
    *images: Annotated[
        str, Parameter(help="images, folders, patterns such as 'photos/*.jpg', videos, or the index of a camera: 0")
    ],
    model: Model,
    out: Annotated[Path, Parameter(help="folder for the drawings and predictions.json")],
    threshold: Annotated[
        float, Parameter(help="boxes with a lower score are not drawn; predictions.json holds those of images too")
    ] = 0.3,
    save: Annotated[
        str,
        Parameter(
            help="what to write, separated by commas: drawings, json (predictions.json), yolo (labels/NAME.txt: class "
            "cx cy w h score)",
            metavar="KIND,...",
        ),
    ] = "drawings,json",
    compare: Annotated[
        str | None, Parameter(help="a second model, drawn on the right of the first one", metavar="MODEL")
    ] = None,
    tile: Annotated[
        int | None,
        Parameter(help="for large pictures: also predict in overlapping tiles of this side, in pixels of the picture"),
    ] = None,
    every: Annotated[int | None, Parameter(help="of a video, predict and write every n-th frame")] = None,
    max_frames: Annotated[int | None, Parameter(help="of each video or camera, so many frames at most")] = None,
    overwrite: Replace = False,
    output: Output,
    **fields: Any,
) -> None:
    """Draw a detector's boxes on images and videos, and write them as COCO results or YOLO labels."""
    resolved = make_recipe(None, flags.overrides(fields))
    from detdistill import run

    results = run.predict(
        model,
        images,
        out,
        data=resolved.data,
        train=resolved.train,
        threshold=threshold,
        save=[kind.strip() for kind in save.split(",")],
        compare=compare,
        tile=tile,
        every=every,
        max_frames=max_frames,
        overwrite=overwrite,
        console=output.console,
    )
    boxes = sum(result["score"] >= threshold for result in results)
    output.end(
        {"out": str(out), "predictions": results}, f"{out}: {plural(boxes, 'box')} of score {threshold:g} or more"
    )


@app.command(sort_key=7)
@flags.takes(*READ, "train.batch_size", "train.workers", defaults=SAVED_SIZE)
def export(
    *,
    model: Model,
    out: Annotated[Path, Parameter(help="NAME.onnx, NAME.xml (openvino) or NAME.pt2 (torch), or a folder")],
    format: Annotated[
        Format | None,
        Parameter(
            help="onnx, openvino and torch: one graph from pixels to detections; transformers: a folder that its "
            "from_pretrained loads without detdistill [default: by the name of --out]"
        ),
    ] = None,
    precision: Annotated[
        Precision, Parameter(help="of the network; fp16 for GPUs, int8 for CPUs, with training images of --data")
    ] = "fp32",
    opset: Annotated[
        int, Parameter(help="version of ONNX's operators", validator=validators.Number(gte=17, lte=21))
    ] = 18,
    fixed: Annotated[bool, Parameter(help="accept one image size only", negative=())] = False,
    max_loss: Annotated[
        float, Parameter(help="AP that fp16 or int8 may cost, with --data", validator=validators.Number(gte=0))
    ] = 1.0,
    force: Annotated[bool, Parameter(help="write the file even if it costs more AP", negative=())] = False,
    overwrite: Replace = False,
    output: Output,
    **fields: Any,
) -> None:
    """Export a detector, load the exported file again, and verify that it gives the same detections."""
    resolved = make_recipe(None, flags.overrides(fields))
    from detdistill import run

    path = run.export(
        model,
        out,
        format=format,
        precision=precision,
        opset=opset,
        fixed=fixed,
        max_loss=max_loss,
        force=force,
        data=resolved.data,
        train=resolved.train,
        overwrite=overwrite,
        console=output.console,
    )
    record = path.with_name(f"{path.name}.json")
    content = json.loads(record.read_text()) if record.is_file() else {}
    output.end({"out": str(path), **content}, f"written to {path}")
