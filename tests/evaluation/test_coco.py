"""COCO's metrics by hand, compared with pycocotools, and refused inputs."""

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detdistill.errors import UserError
from detdistill.evaluation import coco_metrics, to_original, to_results
from detdistill.evaluation.coco import health
from detdistill.types import Batch, Detections

from .synthetic import CATEGORIES, IMAGES, dataset, random_set, reference

NUMBERS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def truth(*boxes: list[float]) -> dict[str, Any]:
    """Ground truth of one image with boxes (x, y, width, height) of one class."""
    rows = [
        {"id": n, "image_id": 5, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, box in enumerate(boxes)
    ]
    return {
        "images": [{"id": 5, "height": 100, "width": 100}],
        "categories": [{"id": 3, "name": "cell"}],
        "annotations": rows,
    }


def result(box: list[float], score: float, image: Any = 5, category: Any = 3) -> dict[str, Any]:
    """One COCO result."""
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_average_precision_worked_by_hand() -> None:
    # Two objects. In descending order of the score: a hit, a miss, and a box of 10 x 6.4 inside the second object of
    # 10 x 10, with an IoU of 0.64. At IoU 0.50, 0.55, 0.60 this box is a hit: precision 1, 1/2, 2/3 at recall 1/2, 1/2,
    # 1. At 51 of the 101 recall points (0.00 to 0.50) the best precision at that recall or a higher one is 1, at the
    # other 50 it is 2/3: AP = (51 + 50 * 2/3) / 101 = 83.498. At the seven higher thresholds the box is a miss: 51
    # points of 1 and 50 of 0: AP = 51 / 101 = 50.495. Together AP = (3 * 83.498 + 7 * 50.495) / 10. Recall: three times
    # 1, seven times 1/2.
    ground_truth = truth([0, 0, 10, 10], [20, 0, 10, 10])
    results = [result([0, 0, 10, 10], 0.9), result([60, 60, 10, 10], 0.8), result([20, 0, 10, 6.4], 0.7)]
    low, high = 100 * (51 + 50 * 2 / 3) / 101, 100 * 51 / 101
    expected = {"AP": (3 * low + 7 * high) / 10, "AP50": low, "AP75": high, "AR1": 50.0, "AR10": 65.0, "AR100": 65.0}
    metrics = coco_metrics(ground_truth, results, {3: "cell"})
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    # 100 square pixels are small (below 32 squared). There are no medium and no large objects.
    assert metrics["APs"] == metrics["AP"]
    assert metrics["ARs"] == 65.0
    assert [metrics[name] for name in ("APm", "APl", "ARm", "ARl")] == [None] * 4
    assert metrics["per_class"] == {"cell": metrics["AP"]}
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize("ids", [(0, 1), (7, 7), (None, "a")])
def test_annotation_ids_do_not_matter(ids: tuple[Any, Any]) -> None:
    """pycocotools treats a match with annotation 0 as no match, and may lose one of two annotations with equal ids."""
    ground_truth = truth([0, 0, 10, 10], [20, 0, 10, 10])
    for annotation, number in zip(ground_truth["annotations"], ids, strict=True):
        annotation["id"] = number
    metrics = coco_metrics(ground_truth, [result([0, 0, 10, 10], 0.9), result([20, 0, 10, 10], 0.8)], {3: "cell"})
    assert metrics["AP"] == pytest.approx(100)


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocotools(seed: int) -> None:
    ground_truth, results = random_set(seed)
    before = copy.deepcopy((ground_truth, results))
    metrics = coco_metrics(ground_truth, results, CATEGORIES)
    assert (ground_truth, results) == before
    numbers, per_class = reference(ground_truth, results)
    assert list(metrics) == [*NUMBERS, "per_class"]
    assert [metrics[name] for name in NUMBERS] == pytest.approx(numbers, abs=1e-9)
    assert metrics["per_class"] == pytest.approx(per_class, abs=1e-9)
    assert list(metrics["per_class"]) == list(CATEGORIES.values())
    assert metrics["per_class"]["never there"] is None
    assert 1 < metrics["AP"] < 99  # the comparison is not trivial


corner, side = st.integers(0, 30), st.sampled_from([4, 8, 16, 40, 110])
annotation = st.tuples(
    st.sampled_from(IMAGES), st.sampled_from(list(CATEGORIES)), corner, corner, side, side, st.booleans()
)
detection = st.tuples(
    st.sampled_from(IMAGES),
    st.sampled_from(list(CATEGORIES)),
    corner,
    corner,
    side,
    side,
    st.sampled_from([0.1, 0.5, 0.9]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(annotation, max_size=12), st.lists(detection, min_size=1, max_size=20))
def test_equal_to_pycocotools_on_random_input(
    annotations: list[tuple[Any, ...]], detections: list[tuple[Any, ...]]
) -> None:
    rows = [
        {
            "id": n + 1,
            "image_id": image,
            "category_id": category,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": int(crowd),
        }
        for n, (image, category, x, y, w, h, crowd) in enumerate(annotations)
    ]
    results = [result([x, y, w, h], score, image, category) for image, category, x, y, w, h, score in detections]
    metrics = coco_metrics(dataset(rows), results, CATEGORIES)
    numbers, per_class = reference(dataset(rows), results)
    assert [metrics[name] for name in NUMBERS] == pytest.approx(numbers, abs=1e-9)
    assert metrics["per_class"] == pytest.approx(per_class, abs=1e-9)


def test_no_detections_give_zeros() -> None:
    metrics = coco_metrics(truth([0, 0, 10, 10]), [], {3: "cell"})
    assert [metrics[name] for name in ("AP", "AP50", "AP75", "APs", "AR1", "AR100", "ARs")] == [0.0] * 7
    assert metrics["APl"] is None
    assert metrics["per_class"] == {"cell": 0.0}


def test_no_ground_truth_gives_none() -> None:
    metrics = coco_metrics(truth(), [result([0, 0, 10, 10], 0.9)], {3: "cell"})
    assert [metrics[name] for name in NUMBERS] == [None] * 12
    assert metrics["per_class"] == {"cell": None}


def test_only_the_named_classes_are_measured() -> None:
    ground_truth, results = random_set(1)
    metrics = coco_metrics(ground_truth, [row for row in results if row["category_id"] == 40], {40: "sun"})
    assert metrics["AP"] == pytest.approx(reference(ground_truth, results)[1]["sun"], abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gt: gt["images"][0].update(id="5"), "images: id '5' is not a whole number"),
        (lambda gt: gt["images"][0].update(id=-5), "images: id -5 is not a whole number"),
        (lambda gt: gt["images"][0].update(id=True), "images: id True is not a whole number"),
        (lambda gt: gt["images"].append(gt["images"][0]), "images: id 5 occurs twice"),
        (lambda gt: gt["categories"][0].update(id="3"), "categories: id '3' is not a whole number"),
        (lambda gt: gt["categories"][0].update(id=4), r"id 3 \(cell\) is missing; the file has the ids \[4\]"),
        (lambda gt: gt["annotations"][0].pop("area"), "annotation 0: field 'area' is missing"),
        (lambda gt: gt["annotations"][0].update(image_id=6), "annotation 0: image_id 6 is not the id of an image"),
        (lambda gt: gt.pop("annotations"), "field 'annotations' is missing"),
    ],
)
def test_ground_truth_that_cannot_be_read_is_refused(change: Any, message: str) -> None:
    ground_truth = truth([0, 0, 10, 10])
    change(ground_truth)
    with pytest.raises(UserError, match=message) as caught:
        coco_metrics(ground_truth, [], {3: "cell"})
    assert "\n" not in str(caught.value)


def test_two_classes_with_the_same_name_are_refused() -> None:
    ground_truth = truth()
    ground_truth["categories"].append({"id": 4, "name": "cell"})
    with pytest.raises(UserError, match="two categories have the same name"):
        coco_metrics(ground_truth, [], {3: "cell", 4: "cell"})


@pytest.mark.parametrize(
    "bad",
    [result([0, 0, 1, 1], float("nan")), result([0, 0, 1, 1], float("inf")), result([0, float("nan"), 1, 1], 0.5)],
)
def test_a_result_that_is_not_finite_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(FloatingPointError, match=r"result 1 \(image 5\).*isn't finite"):
        coco_metrics(truth([0, 0, 10, 10]), [result([0, 0, 1, 1], 0.5), bad], {3: "cell"})


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (result([0, 0, 1, 1], 0.5, image="5"), "image_id"),
        (result([0, 0, 1, 1], 0.5, image=6), "image_id"),
        (result([0, 0, 1, 1], 0.5, image=5.0), "image_id"),
        (result([0, 0, 1, 1], 0.5, category=0), "category_id"),
    ],
)
def test_results_of_other_images_or_classes_are_refused(bad: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"result 0: {field}"):
        coco_metrics(truth([0, 0, 10, 10]), [bad], {3: "cell"})


def batch() -> Batch:
    """Two images in one padded tensor of 64 x 96: one of 50 x 101 resized to 32 x 64, one of 32 x 48 to 64 x 96."""
    sizes, originals = torch.tensor([[32, 64], [64, 96]]), torch.tensor([[50, 101], [32, 48]])
    return Batch(
        torch.zeros(2, 3, 64, 96, dtype=torch.uint8), sizes, originals, torch.tensor([70, 8]), ("a.png", "b.png")
    )


def detections(scores: float = 0.75, label: int = 1) -> list[Detections]:
    """One detection in the first image, with this score and label, and two in the second."""
    first = Detections(torch.tensor([[16.0, 8.0, 48.0, 24.0]]), torch.tensor([scores]), torch.tensor([label]))
    second = torch.tensor([[0.0, 0.0, 96.0, 64.0], [10.0, 20.0, 30.0, 50.0]])
    return [first, Detections(second, torch.tensor([0.5, 0.25]), torch.tensor([0, 1]))]


def test_boxes_are_converted_to_pixels_of_the_image_file() -> None:
    # First image: x times 101 / 64, y times 50 / 32: corners (25.25, 12.5) and (75.75, 37.5). Second image: both times
    # 1 / 2. The padding has no influence.
    converted = to_original(detections(), batch())
    assert converted[0].boxes.tolist() == [[25.25, 12.5, 75.75, 37.5]]
    assert converted[1].boxes.tolist() == [[0, 0, 48, 32], [5, 10, 15, 25]]
    assert to_results(detections(), batch(), (9, 2)) == [
        result([25.25, 12.5, 50.5, 25.0], 0.75, 70, 2),
        result([0.0, 0.0, 48.0, 32.0], 0.5, 8, 9),
        result([5.0, 10.0, 10.0, 15.0], 0.25, 8, 2),
    ]


def test_the_error_for_a_diverged_detector_names_the_file() -> None:
    with pytest.raises(FloatingPointError, match=r"a\.png.*diverged"):
        to_results(detections(scores=float("nan")), batch(), (9, 2))
    diverged = detections()
    diverged[1].boxes[1, 2] = float("inf")
    with pytest.raises(FloatingPointError, match=r"b\.png.*diverged"):
        to_results(diverged, batch(), (9, 2))


@pytest.mark.parametrize("label", [2, -1])
def test_labels_without_a_class_are_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"a\.png: label {label} is not one of the 2 classes"):
        to_results(detections(label=label), batch(), (9, 2))


def test_detections_for_another_number_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        to_results(detections()[:1], batch(), (9, 2))


def test_the_health_check_names_the_affected_categories() -> None:
    codes = {code: (message, ids) for code, message, ids in health(truth([5, 5, 20, 20]))}
    assert set(codes) == {"low_instance_category"}
    message, ids = codes["low_instance_category"]
    assert "fewer than 10" in message and ids == [3]
    assert health(truth(*[[9.0 * index, 5, 8, 8] for index in range(10)])) == []


def test_the_health_check_of_categories_that_hotcoco_cannot_read() -> None:
    ground_truth = truth([5, 5, 20, 20])
    ground_truth["categories"] = [{"id": "red", "name": "red cell"}]
    ground_truth["annotations"][0]["category_id"] = "red"
    assert [(code, ids) for code, _, ids in health(ground_truth)] == [("low_instance_category", ["red"])]


@pytest.mark.parametrize("ids", [("a", "b"), (2**64, 7), (-1, 2)])
def test_category_ids_that_hotcoco_cannot_read_give_the_same_metrics(ids: tuple[Any, Any]) -> None:
    ground_truth = truth([0, 0, 10, 10], [20, 0, 10, 10])
    ground_truth["categories"] = [{"id": id, "name": f"class {id}"} for id in (*ids, "other")]
    for annotation, id in zip(ground_truth["annotations"], ids, strict=True):
        annotation["category_id"] = id
    names = {id: f"class {id}" for id in ids}
    results = [result([0, 0, 10, 10], 0.9, category=ids[0]), result([0, 0, 10, 10], 0.8, category=ids[1])]
    metrics = coco_metrics(ground_truth, results, names)
    assert metrics["per_class"] == pytest.approx({f"class {ids[0]}": 100, f"class {ids[1]}": 0})
    with pytest.raises(ValueError, match=r"result 0: category_id 1 is not in the ground truth"):
        coco_metrics(ground_truth, [result([0, 0, 1, 1], 0.9, category=1)], names)
