"""How much of a difference in AP is the choice of test images: AP again on images drawn with replacement.

A detection's match with the ground truth does not depend on the other images, so it is found once; a resample only weighs images anew.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detdistill.evaluation.coco import coco_run

RECALLS = np.linspace(0, 1, 101)
AT_ONCE = 2**24  # numbers in one intermediate array


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """One class. Detections by falling score: image (D,) index of the image, hit and ignored (T, D) at each IoU threshold.
    objects (I,): ground truths of each image that count."""

    image: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True, eq=False)
class Matches:
    """A detector's results against the ground truth of I images, by class."""

    images: int
    classes: tuple[ClassMatches, ...]


def match(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> Matches:
    """COCO's own matching, thresholds 0.50 to 0.95, at most 100 detections an image. Arguments and errors: see `coco_metrics`."""
    run = coco_run(ground_truth, results, names)
    place = {image: index for index, image in enumerate(run.params.img_ids)}
    areas = run.params.area_rng[0]
    by_class: dict[int, list[Any]] = {category: [] for category in run.params.cat_ids}
    for cell in run.eval_imgs:
        if cell is not None and list(cell["aRng"]) == list(areas):
            by_class[cell["category_id"]].append(cell)
    thresholds = len(run.params.iou_thrs)
    return Matches(len(place), tuple(_of_class(cells, place, thresholds) for cells in by_class.values()))


def _of_class(cells: Sequence[Mapping[str, Any]], place: Mapping[int, int], thresholds: int) -> ClassMatches:
    objects = np.zeros(len(place))
    for cell in cells:
        objects[place[cell["image_id"]]] = sum(not ignored for ignored in cell["gtIgnore"])
    scores = np.concatenate([np.zeros(0), *(cell["dtScores"] for cell in cells)])
    order = np.argsort(-scores, kind="stable")
    image = np.concatenate(
        [np.zeros(0, int), *(np.full(len(cell["dtScores"]), place[cell["image_id"]]) for cell in cells)]
    )
    hit, ignored = (
        np.concatenate(
            [np.zeros((thresholds, 0), bool), *(np.array(cell[key], bool).reshape(thresholds, -1) for cell in cells)],
            axis=1,
        )
        for key in ("dtMatched", "dtIgnore")
    )
    return ClassMatches(image[order].astype(int), hit[:, order], ignored[:, order], objects)


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """(S,) AP, 0..100, with image i counted weights[s, i] times; weights (S, I). Equal to COCO's AP where all weights are 1. NaN where
    no object is left."""
    total, known = np.zeros(len(weights)), np.zeros(len(weights))
    for one in matches.classes:
        found = _class_precision(one, weights)  # (S,)
        total += np.nan_to_num(found)
        known += ~np.isnan(found)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * total / known


def _class_precision(one: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """(S,) mean over thresholds and the 101 recalls, 0..1, NaN where a resample has no object of the class."""
    objects = weights @ one.objects
    found = np.zeros(len(weights))
    for rows in _chunks(len(weights), len(one.image)):
        counted = weights[rows][:, one.image]  # (s, D)
        for hit, ignored in zip(one.hit, one.ignored, strict=True):
            true = (counted * (hit & ~ignored)).cumsum(axis=1)
            false = (counted * (~hit & ~ignored)).cumsum(axis=1)
            found[rows] += _interpolated(true, false, objects[rows]) / len(one.hit)
    return np.where(objects > 0, found, np.nan)


def _interpolated(true: np.ndarray, false: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(s,) mean over the 101 recalls of the best precision from there on. true, false: (s, D) counts up to each detection."""
    if true.shape[1] == 0:
        return np.zeros(len(true))
    recall = true / np.maximum(objects, 1e-9)[:, None]
    precision = true / np.maximum(true + false, np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # One search for all rows: each row's recalls, in 0..1, are moved into an interval of their own.
    apart = 3.0 * np.arange(len(true))[:, None]
    place = np.searchsorted((np.minimum(recall, 2.0) + apart).ravel(), (RECALLS + apart).ravel()).reshape(len(true), -1)
    place = place - np.arange(len(true))[:, None] * true.shape[1]
    reached = place < true.shape[1]
    values = np.take_along_axis(best, np.minimum(place, true.shape[1] - 1), axis=1)
    return np.where(reached, values, 0.0).mean(axis=1)


def _chunks(samples: int, detections: int) -> Iterator[slice]:
    step = max(1, AT_ONCE // max(1, detections))
    for start in range(0, samples, step):
        yield slice(start, start + step)


def resample(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """(S, I): how often each image is drawn, `images` draws with replacement in each of the resamples."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=samples).astype(float)


def gain_interval(
    plain: Sequence[np.ndarray], taught: Sequence[np.ndarray], level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of the mean gain in AP over pairs of runs. plain, taught: AP (S,) of each run on the same S resamples, as
    `average_precision` gives them. None without objects."""
    gains = np.mean([after - before for before, after in zip(plain, taught, strict=True)], axis=0)
    gains = gains[np.isfinite(gains)]
    if not gains.size:
        return None
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
