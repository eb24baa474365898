"""AP from matches equals COCO's AP, if every image counts once and if images repeat."""

import copy

import numpy as np
import pytest

from detdistill.evaluation import average_precision, coco_metrics, gain_interval, match, resample

from .synthetic import CATEGORIES, random_set


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_one_give_cocos_ap(seed: int) -> None:
    ground_truth, results = random_set(seed)
    matches = match(ground_truth, results, CATEGORIES)
    expected = coco_metrics(ground_truth, results, CATEGORIES)["AP"]
    np.testing.assert_allclose(average_precision(matches, np.ones((2, matches.images))), [expected] * 2, rtol=1e-9)


def repeated(ground_truth: dict, results: list, weights: list[int]) -> tuple[dict, list]:
    """The data set in which image i occurs weights[i] times. Each copy has its own id."""
    images, annotations, repeated_results = [], [], []
    ids = sorted(image["id"] for image in ground_truth["images"])
    for image, times in zip(ids, weights, strict=True):
        original = next(entry for entry in ground_truth["images"] if entry["id"] == image)
        for copy_index in range(times):
            number = 10_000 * (copy_index + 1) + image
            images.append({**original, "id": number})
            annotations += [
                {**entry, "image_id": number} for entry in ground_truth["annotations"] if entry["image_id"] == image
            ]
            repeated_results += [{**entry, "image_id": number} for entry in results if entry["image_id"] == image]
    return {**ground_truth, "images": images, "annotations": annotations}, repeated_results


@pytest.mark.parametrize("weights", [[2, 2, 2, 2, 2, 2], [0, 3, 1, 0, 2, 0], [1, 0, 0, 4, 0, 1]])
def test_a_weight_equals_that_many_copies_of_the_image(weights: list[int]) -> None:
    ground_truth, results = random_set(5)
    for number, result in enumerate(results):  # copies would change the order of images with equal scores
        result["score"] = 1 / (2 + number)
    matches = match(ground_truth, results, CATEGORIES)
    expected = coco_metrics(*repeated(copy.deepcopy(ground_truth), results, weights), CATEGORIES)["AP"]
    np.testing.assert_allclose(average_precision(matches, np.array([weights], float)), [expected], rtol=1e-9)


def test_a_resample_draws_as_many_images_as_the_set_has() -> None:
    weights = resample(7, 50, seed=3)
    assert (weights.sum(axis=1) == 7).all() and weights.std() > 0
    np.testing.assert_array_equal(weights, resample(7, 50, seed=3))


def test_the_gain_of_a_detector_over_itself_is_zero_and_of_a_better_one_positive() -> None:
    ground_truth, results = random_set(1)
    matches = match(ground_truth, results, CATEGORIES)
    weights = resample(matches.images, 200)
    plain = average_precision(matches, weights)
    assert gain_interval([plain], [plain]) == (0.0, 0.0)
    perfect = [
        {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": entry["bbox"], "score": 0.9}
        for entry in ground_truth["annotations"]
        if not entry["iscrowd"]
    ]
    interval = gain_interval([plain], [average_precision(match(ground_truth, perfect, CATEGORIES), weights)])
    assert interval is not None and 0 < interval[0] < interval[1] <= 100
    without_objects = average_precision(match({**ground_truth, "annotations": []}, [], CATEGORIES), weights)
    assert gain_interval([without_objects], [without_objects]) is None
