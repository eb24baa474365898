"""evaluate: from a loader to metrics, in one process and in several."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from detdistill.evaluation import evaluate

from .fake import FakeDetector, batch_of

NAMES = {9: "ship", 2: "cat"}
CATEGORY_IDS = (9, 2)
# Files of 100 x 200 are resized to 32 x 64, so boxes are multiplied by 3.125 on the way back.
DETECTED = {
    70: [([16.0, 8.0, 48.0, 24.0], 0.75, 0)],
    4: [([0.0, 0.0, 32.0, 16.0], 0.5, 1), ([0.0, 0.0, 8.0, 8.0], 0.25, 1)],
    11: [],
}
RESULTS = [
    {"image_id": 4, "category_id": 2, "bbox": [0.0, 0.0, 100.0, 50.0], "score": 0.5},
    {"image_id": 4, "category_id": 2, "bbox": [0.0, 0.0, 25.0, 25.0], "score": 0.25},
    {"image_id": 70, "category_id": 9, "bbox": [50.0, 25.0, 100.0, 50.0], "score": 0.75},
]


def truth() -> dict[str, Any]:
    """Ground truth: image 70 has a ship that is detected, 4 a cat that is detected, 11 a ship that isn't detected."""
    rows = [(70, 9, [50, 25, 100, 50]), (4, 2, [0, 0, 100, 50]), (11, 9, [5, 5, 50, 50])]
    return {
        "images": [{"id": image, "height": 100, "width": 200} for image in (4, 11, 70)],
        "categories": [{"id": category, "name": name} for category, name in NAMES.items()],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for n, (image, category, box) in enumerate(rows)
        ],
    }


def test_metrics_and_results_are_in_pixels_of_the_files() -> None:
    metrics, results = evaluate(
        FakeDetector(DETECTED), [batch_of(70, 11), batch_of(4)], truth(), CATEGORY_IDS, NAMES, "cpu"
    )
    assert results == RESULTS
    # The cat is detected with a higher score than the false alarm: AP 100. One of two ships: 51 of the 101 recall
    # points, from 0.00 to 0.50.
    assert metrics["per_class"] == pytest.approx({"ship": 100 * 51 / 101, "cat": 100.0})
    assert metrics["AP"] == pytest.approx((100 * 51 / 101 + 100) / 2)
    assert metrics["AR100"] == pytest.approx(75.0)


def test_detects_in_evaluation_mode_and_restores_all_modes() -> None:
    detector = FakeDetector(DETECTED)
    assert detector.training
    assert not detector.frozen.training
    evaluate(detector, [batch_of(70, 11, 4)], truth(), CATEGORY_IDS, NAMES, "cpu")
    assert detector.calls == [(False, False, (3, 3, 32, 64))]
    assert detector.training
    assert detector.convolution.training
    assert not detector.frozen.training


def test_modes_are_restored_after_an_error() -> None:
    detector = FakeDetector({70: [([0.0, 0.0, 1.0, 1.0], float("nan"), 0)]})
    with pytest.raises(FloatingPointError, match=r"70\.png"):
        evaluate(detector, [batch_of(70)], truth(), CATEGORY_IDS, NAMES, "cpu")
    assert detector.training
    assert not detector.frozen.training


def test_tensors_cached_by_the_detector_can_be_used_in_training() -> None:
    """Under inference_mode this product could not be saved for the backward pass."""
    detector = FakeDetector(DETECTED)
    evaluate(detector, [batch_of(70, 11, 4)], truth(), CATEGORY_IDS, NAMES, "cpu")
    assert detector.cache is not None
    (detector.convolution.weight * detector.cache).sum().backward()
    assert detector.convolution.weight.grad is not None


@pytest.mark.parametrize("ids", [(70, 11), (70, 11, 4, 5)])
def test_images_that_differ_from_the_ground_truth_are_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=f"gave {len(ids)} images, but the ground truth has 3; image [45] is in only one"
    ):
        evaluate(FakeDetector(DETECTED), [batch_of(*ids)], truth(), CATEGORY_IDS, NAMES, "cpu")


def test_an_image_that_occurs_twice_counts_once() -> None:
    _, results = evaluate(
        FakeDetector(DETECTED), [batch_of(70, 11), batch_of(4, 4), batch_of(70)], truth(), CATEGORY_IDS, NAMES, "cpu"
    )
    assert results == RESULTS


def _share(rank: int, folder: str) -> None:
    """One of two processes. The second gets image 70 again, as from a sampler that makes the shares equal."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    loader = [batch_of(70, 4)] if rank == 0 else [batch_of(11), batch_of(70)]
    torch.save(evaluate(FakeDetector(DETECTED), loader, truth(), CATEGORY_IDS, NAMES, "cpu"), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_share, (str(tmp_path),), nprocs=2)
    single = evaluate(FakeDetector(DETECTED), [batch_of(70, 4, 11)], truth(), CATEGORY_IDS, NAMES, "cpu")
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == single
