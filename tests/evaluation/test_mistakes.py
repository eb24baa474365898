"""Kinds of errors, confusion and precision, on a set of one image whose errors are known."""

from typing import Any

import numpy as np
import pytest

from detdistill.evaluation import (
    KINDS,
    coco_metrics,
    coco_run,
    confusion,
    error_counts,
    image_precision,
    lost_precision,
    match,
    precision_curves,
)
from detdistill.evaluation.bootstrap import average_precision

from .synthetic import CATEGORIES, random_set

NAMES = {"b": "cat", "a": "dog"}  # ids that hotcoco can't read, and not in the order of the alphabet


def result(category: str, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": 1, "category_id": category, "bbox": box, "score": score}


def known() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Four cats: found twice, with a wrong class, badly placed, and missed. One more box is on nothing."""
    boxes = [[0, 0, 10, 10], [100, 0, 10, 10], [200, 0, 10, 10], [300, 0, 10, 10]]
    objects = [
        {"id": number, "image_id": 1, "category_id": "b", "bbox": box, "area": 100, "iscrowd": 0}
        for number, box in enumerate(boxes, start=1)
    ]
    dog = {"id": 9, "image_id": 1, "category_id": "a", "bbox": [0, 300, 10, 10], "area": 100, "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "height": 400, "width": 400}],
        "categories": [{"id": id, "name": name} for id, name in NAMES.items()],
        "annotations": [*objects, dog],
    }
    results = [
        result("b", [0, 0, 10, 10], 0.9),
        result("b", [1, 0, 10, 10], 0.8),  # duplicate
        result("a", [100, 0, 10, 10], 0.7),  # wrong class
        result("b", [206, 0, 10, 10], 0.6),  # badly placed: IoU 4 / 16
        result("b", [0, 200, 10, 10], 0.5),  # background
        result("b", [300, 0, 10, 10], 0.1),  # the fourth cat, with a low score
        result("a", [0, 300, 10, 10], 0.95),
    ]
    return truth, results


def test_each_kind_is_counted() -> None:
    truth, results = known()
    expected = dict.fromkeys(KINDS, 1) | {"wrong class and badly placed": 0}
    strong = [each for each in results if each["score"] >= 0.3]
    assert error_counts(coco_run(truth, strong, NAMES)) == expected
    assert error_counts(coco_run(truth, results, NAMES)) == expected | {"missed": 0}


def test_the_loss_of_a_kind_is_what_its_repair_would_gain() -> None:
    truth, results = known()
    lost = lost_precision(coco_run(truth, results, NAMES))
    assert lost.keys() == KINDS.keys() and min(lost.values()) >= 0
    repaired = [{**each, "bbox": [200, 0, 10, 10]} if each["score"] == 0.6 else each for each in results]
    before, after = (coco_metrics(truth, boxes, NAMES)["AP50"] for boxes in (results, repaired))
    assert lost["badly placed"] == pytest.approx(after - before) and lost["badly placed"] > 1
    assert lost["wrong class and badly placed"] == 0


def test_confused_classes_are_counted_in_the_order_of_the_names() -> None:
    found = confusion(coco_run(*known(), NAMES), tuple(NAMES.values()), min_score=0.3)
    assert found.classes == ("cat", "dog")
    # A cat is found, one is taken for a dog, two have no box; three boxes of cats are on nothing that is free.
    assert found.counts.tolist() == [[1, 1, 2], [0, 1, 0], [3, 0, 0]]


def test_without_boxes_everything_is_missed() -> None:
    run = coco_run(known()[0], [], NAMES)
    assert error_counts(run) == {**dict.fromkeys(KINDS, 0), "missed": 5}
    assert confusion(run, tuple(NAMES.values()), 0.3).counts.tolist() == [[0, 0, 4], [0, 0, 1], [0, 0, 0]]
    assert set(precision_curves(run)[0.5]) == {0.0}


@pytest.mark.parametrize("seed", range(3))
def test_the_area_under_precision_is_cocos_ap(seed: int) -> None:
    truth, results = random_set(seed)
    metrics = coco_metrics(truth, results, CATEGORIES)
    curves = precision_curves(coco_run(truth, results, CATEGORIES))
    assert 100 * curves[0.5].mean() == pytest.approx(metrics["AP50"])
    assert 100 * curves[0.75].mean() == pytest.approx(metrics["AP75"])


@pytest.mark.parametrize("seed", range(3))
def test_the_ap_of_an_image_is_that_of_a_set_with_this_image_alone(seed: int) -> None:
    matches = match(*random_set(seed), CATEGORIES)
    alone = average_precision(matches, np.eye(matches.images))
    by_image = image_precision(matches)
    np.testing.assert_allclose(by_image, alone, rtol=1e-9)
    assert np.isnan(by_image).any() and np.isfinite(by_image).any()  # one image has no object
