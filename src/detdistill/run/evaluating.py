"""What a trained detector is used for: measured on a data set, shown pictures, handed to another library."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
from rich.console import Console
from torch import nn

from detdistill import evaluation
from detdistill.data import Data, EvalLoader, Record, Split, open_data, read_images
from detdistill.distributed import is_initialized, is_main, rank, world_size
from detdistill.errors import UserError
from detdistill.exporting import Format
from detdistill.files import replacing, write_json
from detdistill.recipe import DataConfig, ModelConfig, TrainConfig
from detdistill.run.folder import RunFolder, is_run
from detdistill.run.models import find, load, place
from detdistill.types import Detections, Detector

Say = Callable[[str], None]


def evaluate(
    model: str | Path | Detector,
    data: DataConfig | str,
    *,
    train: TrainConfig = TrainConfig(),
    built: ModelConfig = ModelConfig(),
    out: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """COCO's numbers (0..100) of a run folder, a pretrained detector or a detector at hand, AP of each class, and its cost.

    The image size is the model's own unless `data` gives one. train: batch size, workers, device. built: how
    HEAD:BACKBONE=FILE was built. out: folder for metrics.json and
    predictions.json; nothing is written without. Raises UserError where the classes of model and data are not the same.
    """
    say = talker(console)
    config = DataConfig(path=data) if isinstance(data, str) else data
    if out is not None:
        _fresh(out, overwrite)
    if isinstance(model, str | Path):
        config = _sized(config, model)
    opened = open_data(config)
    for note in opened.notes:
        say(note)
    split = opened.evaluation_split(config)
    if isinstance(model, str | Path):
        if is_run(model) and built.model_fields_set:
            raise UserError(
                f"--model {model}: a run folder knows how it was built; leave out model.{min(built.model_fields_set)}"
            )
        detector, report = find(str(model), opened.classes, built)
        say(f"model: {report}")
        _detecting(detector, model)
    else:
        detector = model
    if set(detector.info.classes) != set(opened.classes):
        theirs, ours = ", ".join(detector.info.classes[:8]), ", ".join(opened.classes[:8])
        raise UserError(
            f"the model knows the classes {theirs}, the data have {ours}; measure it on data of its own classes"
        )
    place(detector, train.device)
    say(f"measuring on the {split.name} split, {len(split)} images")
    metrics, results = measure(detector, opened, split, config, train)
    if out is not None and is_main():
        write_json(out / "predictions.json", results)
        write_json(out / "metrics.json", metrics)
    return metrics


def measure(
    detector: Detector, data: Data, split: Split, config: DataConfig, train: TrainConfig, *, costs: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO's numbers on `split` (0..100), what the detector costs, and the COCO results behind the numbers. It is on its device already."""
    device = next(cast(nn.Module, detector).parameters()).device
    loader = EvalLoader(split, config, **shares(train))
    ids = dict(zip(data.classes, data.category_ids, strict=True))
    order = [ids[name] for name in detector.info.classes]
    names = dict(zip(data.category_ids, data.classes, strict=True))
    metrics, results = evaluation.evaluate(detector, loader, split.ground_truth(), order, names, device)
    if costs:
        size = config.image_size
        metrics |= evaluation.cost(detector, (size, size) if isinstance(size, int) else size, device)
    return metrics, results


def predict(
    model: str | Path,
    images: Sequence[Path | str],
    out: Path,
    *,
    data: DataConfig = DataConfig(),
    train: TrainConfig = TrainConfig(),
    threshold: float = 0.3,
    overwrite: bool = False,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Show pictures to a detector: each drawn with its boxes above `threshold` into `out`, and all boxes in out/predictions.json.

    images: files and folders. Returns the content of predictions.json: {image_id, file_name, category_id, bbox, score}; category ids of
    the data set the detector was trained on, bbox x, y, width, height in pixels of the file. Nothing is written before all pictures are read.
    """
    say = talker(console)
    if not images:
        raise UserError("no picture: give image files or folders of images")
    _fresh(out, overwrite)
    config = _sized(data, model)
    records = read_images(tuple(images), config)
    detector, report = find(str(model), ())
    say(f"model: {report}")
    _detecting(detector, model)
    classes = detector.info.classes
    ids = RunFolder(Path(model)).card().category_ids if is_run(model) else tuple(range(1, len(classes) + 1))
    device = place(detector, train.device)
    found: list[Detections] = []
    results: list[dict[str, Any]] = []
    with evaluation.evaluating(detector), torch.no_grad():
        for batch, _ in EvalLoader(
            Split("pictures", tuple(records)), config, batch_size=train.batch_size, workers=train.workers
        ):
            moved = batch.to(device)
            detections = detector.detect(moved)
            found += evaluation.to_original(detections, moved)
            results += evaluation.to_results(detections, moved, ids)
    names = {record.id: record.name for record in records}
    results = [{"image_id": result["image_id"], "file_name": names[result["image_id"]], **result} for result in results]
    for record, own, name in zip(records, found, _drawn(records), strict=True):
        picture = evaluation.draw(record.image(), own.boxes, own.labels, own.scores, classes, threshold)
        with replacing(out / name) as temporary:
            picture.save(temporary)
    write_json(out / "predictions.json", results)
    drawn = sum(int((own.scores >= threshold).sum()) for own in found)
    say(
        f"{len(records)} pictures with {drawn} boxes above {threshold:g}, and predictions.json with {len(results)}, in {out}"
    )
    return results


def export(
    model: str | Path,
    out: Path,
    *,
    format: Format = "transformers",
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """The detector of a run folder as a folder that plain transformers loads by from_pretrained, with its image processor. Returns `out`.

    What was written is loaded again and compared with the detector. Raises UserError where that library has no such detector or makes another
    of it; then nothing is written.
    """
    from detdistill.exporting import transformers  # that library takes seconds to import

    if format not in get_args(Format):
        raise UserError(f"--format {format!r}: there is {', '.join(get_args(Format))}")
    size = RunFolder(Path(model)).card().image_size
    height, width = (size, size) if isinstance(size, int) else size
    transformers.export(load(model), out, (height, width), overwrite=overwrite)
    talker(console)(
        f"{out}: loads by AutoModelForObjectDetection.from_pretrained, and answers as {model} does on pictures of {height} x {width}"
    )
    return out


def _detecting(detector: Detector, model: str | Path) -> None:
    if not detector.info.classes:
        raise UserError(f"--model {model}: it gives features and detects nothing; it can only teach")


def _drawn(records: Sequence[Record]) -> list[str]:
    """A file name for each drawn picture: its own, unless two have the same or the format isn't one to write."""
    names = [
        record.name if Path(record.name).suffix.lower() in (".jpg", ".jpeg", ".png") else f"{record.name}.png"
        for record in records
    ]
    twice = {name for name in names if names.count(name) > 1}
    return [f"{record.id}-{name}" if name in twice else name for record, name in zip(records, names, strict=True)]


def _sized(config: DataConfig, model: str | Path) -> DataConfig:
    """With the image size that the model was trained with, unless another is given."""
    if "image_size" in config.model_fields_set or not is_run(model):
        return config
    return config.model_copy(update={"image_size": RunFolder(Path(model)).card().image_size})


def _fresh(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: it is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(
            f"--out {out} is not empty; replace what is written there by --overwrite, or name another folder"
        )


def talker(console: Console | None) -> Say:
    """Prints lines, in the main process only; nothing without a console."""
    return console.print if console is not None and is_main() else lambda line: None


def shares(train: TrainConfig) -> dict[str, int]:
    """What every loader takes from the run: its part of the images where the processes have met, and all of them otherwise."""
    met = is_initialized()
    own = {"rank": rank(), "processes": world_size()} if met else {}
    return {"batch_size": train.batch_size, "workers": train.workers, **own}
