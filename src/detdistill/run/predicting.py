"""Boxes of a trained detector on images of the user's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detdistill import evaluation
from detdistill.data import EvalLoader, Record, Split, read_images
from detdistill.engine.resources import worker_count
from detdistill.errors import UserError
from detdistill.files import replacing, write_json
from detdistill.recipe import DataConfig, TrainConfig
from detdistill.run.defaults import with_known_size, with_saved_data
from detdistill.run.folder import RunFolder, is_run, require_empty
from detdistill.run.models import find_detector, place
from detdistill.run.tables import printer
from detdistill.types import Detections

WRITABLE = (".jpg", ".jpeg", ".png")  # other formats are written as PNG


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
    """Draw the boxes with a score of at least `threshold` on each image, and write all boxes to out/predictions.json.

    images: files and folders. Returns the content of predictions.json: {image_id, file_name, category_id, bbox, score},
    with the category ids of the data set that the detector was trained on, and bbox as x, y, width, height in pixels of
    the file. All images are read before anything is written. Raises UserError if an image can't be read.
    """
    say = printer(console)
    if not images:
        raise UserError("no images: give image files or folders of images")
    require_empty(out, overwrite)
    config = with_known_size(with_saved_data(data, model), model, say)
    records = read_images(tuple(images), config)
    detector, report = find_detector(str(model), ())
    say(f"model: {report}")
    classes = detector.info.classes
    ids = RunFolder(Path(model)).card().category_ids if is_run(model) else tuple(range(1, len(classes) + 1))
    device = place(detector, train.device)
    detections: list[Detections] = []
    results: list[dict[str, Any]] = []
    loader = EvalLoader(
        Split("images", tuple(records)), config, batch_size=train.images_per_step, workers=worker_count(train)
    )
    with evaluation.evaluating(detector), torch.no_grad():
        for batch, _ in loader:
            batch = batch.to(device)
            found = detector.detect(batch)
            detections += evaluation.to_original(found, batch)
            results += evaluation.to_results(found, batch, ids)
    names = {record.id: record.name for record in records}
    results = [{"image_id": result["image_id"], "file_name": names[result["image_id"]], **result} for result in results]
    for record, boxes, name in zip(records, detections, _file_names(records), strict=True):
        drawing = evaluation.draw(record.image(), boxes.boxes, boxes.labels, boxes.scores, classes, threshold)
        with replacing(out / name) as temporary:
            drawing.save(temporary)
    write_json(out / "predictions.json", results)
    drawn = sum(int((boxes.scores >= threshold).sum()) for boxes in detections)
    count = len(records)
    say(
        f"{out}: {count} image{'s' * (count > 1)} with {drawn} boxes of score {threshold:g} or more; predictions.json "
        f"has {len(results)}"
    )
    return results


def _file_names(records: Sequence[Record]) -> list[str]:
    """The file name of each drawing: the image's own, with its id if two images share a name, as PNG if we can't write
    its format.
    """
    names = [
        record.name if Path(record.name).suffix.lower() in WRITABLE else f"{record.name}.png" for record in records
    ]
    repeated = {name for name in names if names.count(name) > 1}
    return [f"{record.id}-{name}" if name in repeated else name for record, name in zip(records, names, strict=True)]
