"""COCO metrics of detections. They are computed by hotcoco and equal those of pycocotools."""

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
    """Convert the boxes of each image from pixels of the padded batch to pixels of the image file; on the CPU."""
    converted = []
    for image_detections, size, original in zip(detections, batch.sizes.cpu(), batch.originals.cpu(), strict=True):
        # Each axis has its own ratio, because resized images have whole pixels.
        height_ratio, width_ratio = (original.double() / size.double()).tolist()
        ratios = torch.tensor([width_ratio, height_ratio, width_ratio, height_ratio], dtype=torch.float64)
        boxes = image_detections.boxes.cpu().double() * ratios
        scores, labels = image_detections.scores.cpu(), image_detections.labels.cpu()
        converted.append(replace(image_detections, boxes=boxes, scores=scores, labels=labels))
    return converted


def to_results(
    detections: Sequence[Detections], batch: Batch, category_ids: Sequence[int | str]
) -> list[dict[str, Any]]:
    """The detections of a batch as COCO results.

    A result has image_id, category_id (that of the data set), bbox (x, y, width, height in pixels of the image file)
    and score. category_ids: the id of each class, in the shared class order.
    Raises FloatingPointError with the file name if a score or a box isn't finite, and ValueError for a label without a
    class.
    """
    return coco_results(to_original(detections, batch), batch.ids.tolist(), batch.names, category_ids)


def coco_results(
    detections: Sequence[Detections], images: Sequence[int], names: Sequence[str], category_ids: Sequence[int | str]
) -> list[dict[str, Any]]:
    """As `to_results`, for detections that are in pixels of the image files already. images, names: id and file name
    of each image.
    """
    results = []
    for image_detections, image, name in zip(detections, images, names, strict=True):
        check_finite(image_detections, name)
        scores, labels = image_detections.scores, image_detections.labels
        corners = image_detections.boxes[:, :2]
        sides = image_detections.boxes[:, 2:] - corners
        boxes = torch.cat([corners, sides], dim=1).tolist()
        for box, score, label in zip(boxes, scores.tolist(), labels.tolist(), strict=True):
            if not 0 <= label < len(category_ids):
                raise ValueError(f"{name}: label {label} is not one of the {len(category_ids)} classes")
            results.append({"image_id": image, "category_id": category_ids[label], "bbox": box, "score": score})
    return results


def check_finite(detections: Detections, name: str) -> None:
    """Raises FloatingPointError with the name of the image if a score or a box isn't finite."""
    if not (detections.scores.isfinite().all() and detections.boxes.isfinite().all()):
        raise FloatingPointError(
            f"{name}: a score or a box of the detector isn't finite; its weights have diverged, "
            "so train again with a lower learning rate"
        )


def coco_metrics(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], names: Mapping[Any, str]
) -> dict[str, Any]:
    """COCO's twelve metrics in 0..100, and "per_class": the AP by class name.

    A metric is None if there is no ground truth of that size or class (COCO writes -1).
    ground_truth: a COCO dict of images, categories and annotations (with area).
    results: as returned by `to_results`; may be empty.
    names: class name by category id. Only these classes are measured.
    Raises UserError if the ground truth can't be read, FloatingPointError if a score or a box isn't finite, and
    ValueError if a result has an image or a category that the ground truth doesn't have.
    """
    ground_truth, results, names = _numbered(ground_truth, results, names)
    run = coco_run(ground_truth, results, names)
    run.accumulate()
    assert run.eval is not None
    precision, recall = run.eval["precision"], run.eval["recall"]
    per_class = {
        names[category]: _percent(precision[:, :, column, 0, 2]) for column, category in enumerate(run.params.cat_ids)
    }
    return {**_summary(precision, recall), "per_class": {name: per_class[name] for name in names.values()}}


CocoRun = hotcoco.COCOeval
"""hotcoco's evaluation of results; see `coco_run`."""


def coco_run(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], names: Mapping[Any, str]
) -> CocoRun:
    """hotcoco's evaluation after matching, per image and class. Arguments and errors: see `coco_metrics`."""
    ground_truth, results, names = _numbered(ground_truth, results, names)
    checked_truth = _checked_truth(ground_truth, names)
    images = {image["id"] for image in checked_truth["images"]}
    for number, result in enumerate(results):
        _check_result(result, number, images, names)
    reference = hotcoco.COCO(checked_truth)
    run = hotcoco.COCOeval(reference, reference.load_res([dict(result) for result in results]), "bbox")
    run.evaluate()
    return run


def health(ground_truth: Mapping[str, Any]) -> list[tuple[str, str, list[Any]]]:
    """hotcoco's health check of a ground truth: the code, the message and the affected ids of each finding.

    The ids are those of images or annotations, or of categories if the code ends with `_category`. ground_truth: a COCO
    dict.
    """
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    truth, _, numbered = _numbered(ground_truth, (), names)
    categories = dict(zip(numbered, names, strict=True))
    report = hotcoco.COCO(dict(truth)).healthcheck()
    findings = []
    for each in report["errors"] + report["warnings"]:
        ids = sorted(each["affected_ids"])
        if each["code"].endswith("_category"):
            ids = [categories[id] for id in ids]
        findings.append((each["code"], each["message"], ids))
    return findings


def _numbered(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], names: Mapping[Any, str]
) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]], Mapping[int, str]]:
    """The same with the categories 1, 2, ... if hotcoco can't read an id in `names`: a text, or not in 0..2^63-1.

    Categories of the ground truth that are not in `names` are then left out. Raises ValueError if a result has another
    category.
    """
    if all(type(category) is int and 0 <= category < 2**63 for category in names):
        return ground_truth, results, names
    numbers = {category: number for number, category in enumerate(names, start=1)}
    for number, result in enumerate(results):
        if result["category_id"] not in numbers:
            raise ValueError(f"result {number}: category_id {result['category_id']!r} is not in the ground truth")

    def renamed(entries: Sequence[Mapping[str, Any]], field: str) -> list[dict[str, Any]]:
        return [{**entry, field: numbers[entry[field]]} for entry in entries if entry[field] in numbers]

    truth = {
        **ground_truth,
        "categories": renamed(ground_truth["categories"], "id"),
        "annotations": renamed(ground_truth["annotations"], "category_id"),
    }
    return truth, renamed(results, "category_id"), {numbers[category]: name for category, name in names.items()}


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """COCO's twelve metrics by name.

    precision: (T, 101, K, 4, 3). recall: (T, K, 4, 3). T: IoU thresholds from 0.50 in steps of 0.05; then 101 recalls,
    K classes, four areas (all, small, medium, large), and the best 1, 10 and 100 detections per image.
    The means are computed here, because hotcoco's own summary prints to the terminal.
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
    """Mean of the entries with ground truth, in 0..100, or None if no entry has any. COCO marks the others with -1."""
    with_truth = values[values > -1]
    return 100 * float(np.mean(with_truth)) if with_truth.size else None


def _checked_truth(ground_truth: Mapping[str, Any], names: Mapping[Any, str]) -> dict[str, Any]:
    """A copy of the ground truth with the fields that box metrics need, for the classes in `names`.

    The annotations get new ids, because files exist in which an id occurs twice.
    """
    for field in ("images", "categories", "annotations"):
        if field not in ground_truth:
            raise UserError(
                f"ground truth: field {field!r} is missing; a COCO file has images, categories and annotations"
            )
    image_ids = _checked_ids(ground_truth["images"], "images")
    _check_names(_checked_ids(ground_truth["categories"], "categories"), names)
    annotations: list[dict[str, Any]] = []
    for annotation in ground_truth["annotations"]:
        _check_annotation(annotation, image_ids)
        if annotation["category_id"] in names:
            kept = {name: annotation[name] for name in ("image_id", "category_id", "bbox", "area")}
            annotations.append({"id": len(annotations) + 1, **kept, "iscrowd": int(bool(annotation.get("iscrowd")))})
    images = []
    for image in ground_truth["images"]:
        images.append({name: image[name] for name in ("id", "height", "width") if name in image})
    categories = [{"id": category, "name": names[category]} for category in names]
    return {"images": images, "categories": categories, "annotations": annotations}


def _checked_ids(records: Sequence[Mapping[str, Any]], field: str) -> set[int]:
    """The ids of images or categories. Raises UserError if an id is not a whole number or occurs twice."""
    ids = set()
    for record in records:
        number = record.get("id")
        if type(number) is not int or number < 0:
            raise UserError(
                f"ground truth, {field}: id {number!r} is not a whole number from 0; number the {field} from 0"
            )
        if number in ids:
            raise UserError(f"ground truth, {field}: id {number} occurs twice; give each entry its own id")
        ids.add(number)
    return ids


def _check_names(category_ids: set[int], names: Mapping[Any, str]) -> None:
    """Raise UserError if a measured class is not a category, or if two classes have the same name."""
    missing = [category for category in names if category not in category_ids]
    if missing:
        raise UserError(
            f"ground truth, categories: id {missing[0]} ({names[missing[0]]}) is missing; "
            f"the file has the ids {sorted(category_ids)}; use annotations with the same categories"
        )
    if len(set(names.values())) < len(names):
        raise UserError(
            f"ground truth, categories: two categories have the same name in {sorted(names.values())}; "
            "give each category its own name"
        )


def _check_annotation(annotation: Mapping[str, Any], image_ids: set[int]) -> None:
    """Raise UserError if a field is missing or the image is unknown."""
    place = f"ground truth, annotation {annotation.get('id')}"
    for field in ("image_id", "category_id", "bbox", "area"):
        if field not in annotation:
            raise UserError(f"{place}: field {field!r} is missing; COCO metrics need it, so add it")
    if annotation["image_id"] not in image_ids:
        raise UserError(
            f"{place}: image_id {annotation['image_id']!r} is not the id of an image; "
            "remove the annotation or add the image"
        )


def _check_result(result: Mapping[str, Any], number: int, images: set[int], names: Mapping[Any, str]) -> None:
    """Raise FloatingPointError if the result isn't finite, ValueError if its image or category is unknown."""
    if not all(math.isfinite(value) for value in (result["score"], *result["bbox"])):
        raise FloatingPointError(
            f"result {number} (image {result['image_id']}): score {result['score']} or bbox {result['bbox']} "
            "isn't finite"
        )
    for field, known in (("image_id", images), ("category_id", names)):
        if type(result[field]) is not int or result[field] not in known:
            raise ValueError(f"result {number}: {field} {result[field]!r} is not in the ground truth")
