"""COCO's measures of detections, by hotcoco; equal to pycocotools."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import hotcoco
import numpy as np
import torch

from detdistill.errors import UserError
from detdistill.types import Batch, Detections

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def to_original(detections: Sequence[Detections], batch: Batch) -> list[Detections]:
    """The detections of each image with boxes in pixels of the image file instead of the padded batch; on the CPU."""
    moved = []
    for found, size, original in zip(detections, batch.sizes.cpu(), batch.originals.cpu(), strict=True):
        height, width = (
            original.double() / size.double()
        ).tolist()  # each axis has its own ratio: resized sizes are whole pixels
        boxes = found.boxes.cpu().double() * torch.tensor([width, height, width, height], dtype=torch.float64)
        moved.append(replace(found, boxes=boxes, scores=found.scores.cpu(), labels=found.labels.cpu()))
    return moved


def to_results(detections: Sequence[Detections], batch: Batch, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO results of a batch: image_id, category_id (the data set's own), bbox (x, y, width, height) in pixels of the image file, score.

    category_ids: of each class, in the shared order. Raises FloatingPointError for a score or box that isn't finite, naming the file.
    """
    results = []
    for found, image, name in zip(to_original(detections, batch), batch.ids.tolist(), batch.names, strict=True):
        if not (found.scores.isfinite().all() and found.boxes.isfinite().all()):
            raise FloatingPointError(
                f"{name}: the detector gives a score or a box that isn't finite; its weights have diverged"
            )
        corners, extents = found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]
        boxes = torch.cat([corners, extents], dim=1).tolist()
        for box, score, label in zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True):
            if not 0 <= label < len(category_ids):
                raise ValueError(f"{name}: label {label} is not one of the {len(category_ids)} classes")
            results.append({"image_id": image, "category_id": category_ids[label], "bbox": box, "score": score})
    return results


def coco_metrics(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], names: Mapping[int, str]
) -> dict[str, Any]:
    """COCO's twelve numbers, 0..100, and "per_class": AP by class name. None where no ground truth of that size or class exists (COCO: -1).

    ground_truth: COCO dict of images, categories and annotations (with area). results: as `to_results` gives them; may be empty.
    names: category id to name; the classes measured are these. Raises UserError for ground truth that can't be read,
    FloatingPointError for a score or box that isn't finite, ValueError for other results that don't belong to the ground truth.
    """
    run = coco_run(ground_truth, results, names)
    run.accumulate()
    assert run.eval is not None
    precision, recall = run.eval["precision"], run.eval["recall"]
    per_class = {
        names[category]: _percent(precision[:, :, column, 0, 2]) for column, category in enumerate(run.params.cat_ids)
    }
    return {**_summary(precision, recall), "per_class": {name: per_class[name] for name in names.values()}}


def coco_run(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], names: Mapping[int, str]
) -> hotcoco.COCOeval:
    """Results matched with the ground truth, image by image and class by class. Arguments and errors: see `coco_metrics`."""
    truth = _checked_truth(ground_truth, names)
    images = {image["id"] for image in truth["images"]}
    for number, result in enumerate(results):
        _check_result(result, number, images, names)
    reference = hotcoco.COCO(truth)
    run = hotcoco.COCOeval(reference, reference.load_res([dict(result) for result in results]), "bbox")
    run.evaluate()
    return run


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """precision (T, 101, K, 4, 3), recall (T, K, 4, 3): IoU from 0.50 by 0.05; all, small, medium, large; best 1, 10, 100.

    The means are taken here because hotcoco's own summary prints to the terminal.
    """
    values = [
        _percent(precision[:, :, :, 0, 2]),
        _percent(precision[0, :, :, 0, 2]),
        _percent(precision[5, :, :, 0, 2]),
    ]
    values += [_percent(precision[:, :, :, area, 2]) for area in (1, 2, 3)]
    values += [_percent(recall[:, :, 0, best]) for best in (0, 1, 2)]
    values += [_percent(recall[:, :, area, 2]) for area in (1, 2, 3)]
    return dict(zip(NUMBERS, values, strict=True))


def _percent(values: np.ndarray) -> float | None:
    """Mean of the entries for which ground truth exists (COCO marks the others with -1), 0..100."""
    known = values[values > -1]
    return 100 * float(np.mean(known)) if known.size else None


def _checked_truth(ground_truth: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """Only what the box measure reads, of the classes in `names`. Annotations are numbered anew, since files with an id twice exist."""
    absent = [field for field in ("images", "categories", "annotations") if field not in ground_truth]
    if absent:
        raise UserError(
            f"ground truth: field {absent[0]!r} is missing; a COCO file has images, categories and annotations"
        )
    images = _ids(ground_truth["images"], "images")
    known = _ids(ground_truth["categories"], "categories")
    missing = [category for category in names if category not in known]
    if missing:
        raise UserError(
            f"ground truth, categories: no category with id {missing[0]} ({names[missing[0]]}); known are {sorted(known)}"
        )
    if len(set(names.values())) < len(names):
        raise UserError(
            f"ground truth, categories: two categories have one name in {sorted(names.values())}; give each a name of its own"
        )
    annotations: list[dict[str, Any]] = []
    for annotation in ground_truth["annotations"]:
        place = f"ground truth, annotation {annotation.get('id')}"
        lacking = [name for name in ("image_id", "category_id", "bbox", "area") if name not in annotation]
        if lacking:
            raise UserError(f"{place}: field {lacking[0]!r} is missing; COCO's measure needs it")
        if annotation["image_id"] not in images:
            raise UserError(
                f"{place}: image_id {annotation['image_id']!r} is not among the images; remove the annotation or add the image"
            )
        if annotation["category_id"] in names:
            kept = {name: annotation[name] for name in ("image_id", "category_id", "bbox", "area")}
            annotations.append({"id": len(annotations) + 1, **kept, "iscrowd": int(bool(annotation.get("iscrowd")))})
    return {
        "images": [
            {name: image[name] for name in ("id", "height", "width") if name in image}
            for image in ground_truth["images"]
        ],
        "categories": [{"id": category, "name": names[category]} for category in names],
        "annotations": annotations,
    }


def _ids(records: Sequence[Mapping[str, Any]], field: str) -> set[int]:
    ids = set()
    for record in records:
        number = record.get("id")
        if type(number) is not int or number < 0:
            raise UserError(f"ground truth, {field}: id {number!r} is not a whole number from 0; number the {field}")
        if number in ids:
            raise UserError(
                f"ground truth, {field}: id {number} occurs twice; give each of the {field} a number of its own"
            )
        ids.add(number)
    return ids


def _check_result(result: Mapping[str, Any], number: int, images: set[int], names: Mapping[int, str]) -> None:
    if not all(math.isfinite(value) for value in (result["score"], *result["bbox"])):
        raise FloatingPointError(
            f"result {number} (image {result['image_id']}): score {result['score']} or bbox {result['bbox']} isn't finite"
        )
    for field, known in (("image_id", images), ("category_id", names)):
        if type(result[field]) is not int or result[field] not in known:
            raise ValueError(f"result {number}: {field} {result[field]!r} is not a number of the ground truth")
