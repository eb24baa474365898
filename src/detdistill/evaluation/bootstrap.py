"""Bootstrap of AP: how much of a difference in AP comes from the choice of the test images.

The matches of detections with ground truth don't depend on the other images. Therefore they are computed once. A
resample only changes the weights of the images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detdistill.evaluation.coco import coco_run

RECALLS = np.linspace(0, 1, 101)
CHUNK = 2**24  # numbers in one intermediate array


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The detections of one class, in descending order of the score. T: IoU thresholds, D: detections, I: images.

    image: (D,), the index of the image of each detection.
    hit: (T, D) bool, the detection matches a ground truth at this IoU threshold.
    ignored: (T, D) bool, the detection counts neither as a hit nor as a miss.
    objects: (I,), the number of ground truths of each image that count.
    """

    image: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True, eq=False)
class Matches:
    """The matches of a detector's results with the ground truth.

    images: I, the number of images.
    classes: the matches of each class.
    """

    images: int
    classes: tuple[ClassMatches, ...]


def match(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], names: Mapping[Any, str]) -> Matches:
    """Match results with the ground truth as COCO does: IoU thresholds 0.50 to 0.95, at most 100 detections per image.

    Arguments and errors: see `coco_metrics`.
    """
    run = coco_run(ground_truth, results, names)
    image_index = {image: index for index, image in enumerate(run.params.img_ids)}
    all_areas = list(run.params.area_rng[0])
    cells_by_class: dict[int, list[Any]] = {category: [] for category in run.params.cat_ids}
    for cell in run.eval_imgs:  # one cell per class, area range and image
        if cell is not None and list(cell["aRng"]) == all_areas:
            cells_by_class[cell["category_id"]].append(cell)
    thresholds = len(run.params.iou_thrs)
    classes = [_class_matches(cells, image_index, thresholds) for cells in cells_by_class.values()]
    return Matches(len(image_index), tuple(classes))


def _class_matches(cells: Sequence[Mapping[str, Any]], image_index: Mapping[int, int], thresholds: int) -> ClassMatches:
    """The matches of one class from its cells, one per image."""
    objects = np.zeros(len(image_index))
    images, scores = [np.zeros(0, int)], [np.zeros(0)]
    hit, ignored = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
    for cell in cells:
        index = image_index[cell["image_id"]]
        objects[index] = sum(not is_ignored for is_ignored in cell["gtIgnore"])
        images.append(np.full(len(cell["dtScores"]), index))
        scores.append(cell["dtScores"])
        hit.append(np.array(cell["dtMatched"], bool).reshape(thresholds, -1))
        ignored.append(np.array(cell["dtIgnore"], bool).reshape(thresholds, -1))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return ClassMatches(
        image=np.concatenate(images)[order].astype(int),
        hit=np.concatenate(hit, axis=1)[:, order],
        ignored=np.concatenate(ignored, axis=1)[:, order],
        objects=objects,
    )


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP in 0..100 of each of S resamples, (S,).

    weights: (S, I), how often each image counts in each resample. If all weights are 1, the result equals COCO's AP. It
    is NaN if a resample has no objects.
    """
    total = np.zeros(len(weights))
    count = np.zeros(len(weights))
    for class_matches in matches.classes:
        precision = _class_precision(class_matches, weights)  # (S,)
        total += np.nan_to_num(precision)
        count += ~np.isnan(precision)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * total / count


def image_precision(matches: Matches) -> np.ndarray:
    """AP in 0..100 of each image by itself, (I,): the mean over the classes of its objects. NaN without objects."""
    total, count = np.zeros(matches.images), np.zeros(matches.images)
    for each in matches.classes:
        by_image = np.argsort(each.image, kind="stable")  # within an image, the order of the scores remains
        bounds = np.searchsorted(each.image[by_image], np.arange(matches.images + 1))
        for image in np.flatnonzero(each.objects):
            own = by_image[bounds[image] : bounds[image + 1]]
            hits = (each.hit[:, own] & ~each.ignored[:, own]).cumsum(axis=1)  # (T, d)
            misses = (~each.hit[:, own] & ~each.ignored[:, own]).cumsum(axis=1)
            objects = np.full(len(hits), each.objects[image])
            total[image] += _interpolated_precision(hits, misses, objects).mean()
            count[image] += 1
    with np.errstate(invalid="ignore"):
        return 100 * total / count


def _class_precision(matches: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """(S,): mean over thresholds and the 101 recalls, in 0..1. NaN if a resample has no objects of the class."""
    objects = weights @ matches.objects  # (S,)
    precision = np.zeros(len(weights))
    for rows in _chunks(len(weights), len(matches.image)):
        detection_weights = weights[rows][:, matches.image]  # (s, D)
        for hit, ignored in zip(matches.hit, matches.ignored, strict=True):
            hits = (detection_weights * (hit & ~ignored)).cumsum(axis=1)  # (s, D)
            misses = (detection_weights * (~hit & ~ignored)).cumsum(axis=1)
            precision[rows] += _interpolated_precision(hits, misses, objects[rows]) / len(matches.hit)
    return np.where(objects > 0, precision, np.nan)


def _interpolated_precision(hits: np.ndarray, misses: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(s,): mean over the 101 recalls of the best precision at that recall or a higher one.

    hits, misses: (s, D), the weighted number of hits and misses up to each detection. objects: (s,).
    """
    samples, detections = hits.shape
    if detections == 0:
        return np.zeros(samples)
    recall = hits / np.maximum(objects, 1e-9)[:, None]
    precision = hits / np.maximum(hits + misses, np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # One search serves all rows: the recalls of each row, in 0..1, are moved into an interval of their own.
    offsets = 3.0 * np.arange(samples)[:, None]
    places = np.searchsorted((np.minimum(recall, 2.0) + offsets).ravel(), (RECALLS + offsets).ravel())
    places = places.reshape(samples, -1) - np.arange(samples)[:, None] * detections  # (s, 101)
    is_reached = places < detections
    values = np.take_along_axis(best, np.minimum(places, detections - 1), axis=1)
    return np.where(is_reached, values, 0.0).mean(axis=1)


def _chunks(samples: int, detections: int) -> Iterator[slice]:
    """Slices of the samples that keep an array (samples, detections) below CHUNK numbers."""
    step = max(1, CHUNK // max(1, detections))
    for start in range(0, samples, step):
        yield slice(start, start + step)


def resample(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """(samples, images): how often each image is drawn. A resample has `images` draws with replacement."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=samples).astype(float)


def gain_interval(
    plain: Sequence[np.ndarray], distilled: Sequence[np.ndarray], level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of the mean gain in AP from plain runs to distilled runs, which are paired.

    plain, distilled: AP (S,) of each run on the same S resamples, from `average_precision`. level: of confidence.
    None if no resample has objects.
    """
    gains = np.mean([after - before for before, after in zip(plain, distilled, strict=True)], axis=0)  # (S,)
    gains = gains[np.isfinite(gains)]
    if not gains.size:
        return None
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
