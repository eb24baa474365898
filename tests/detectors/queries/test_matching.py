"""The matcher against the matchers of transformers, and `best_queries`."""

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher

from detdistill.detectors.queries.frames import best_queries
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.transformers.criterion import host_labels
from detdistill.geometry import to_pixels
from detdistill.types import Predictions, Targets

SIZES = torch.tensor([[64, 96], [50, 70], [64, 64]])


def random_stage(seed: int, softmax: bool, queries: int = 9) -> Predictions:
    """A stage of random predictions of four classes for three images."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, queries, 4, generator=generator)
    boxes = torch.rand(3, queries, 4, generator=generator) * 0.4 + 0.2
    background = torch.randn(3, queries, generator=generator) if softmax else None
    valid = torch.ones(3, queries, dtype=torch.bool)
    activation = "softmax" if softmax else "sigmoid"
    return Predictions(logits, activation, to_pixels(boxes, SIZES), valid, background=background)


def three_targets() -> Targets:
    """Two objects in the first image, none in the second, three in the third."""
    boxes = torch.tensor([[6.0, 8, 40, 44], [30, 10, 90, 60], [5, 5, 20, 20]])
    labels = (torch.tensor([3, 1]), torch.zeros(0, dtype=torch.long), torch.tensor([0, 2, 2]))
    return Targets((boxes[:2], boxes[:0], boxes), labels)


def relative(boxes: Tensor) -> Tensor:
    """xyxy in pixels to cx cy w h in 0..1 of each image."""
    scale = SIZES.flip(-1).repeat(1, 2)[:, None]
    center, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return torch.cat([center, sides], -1) / scale


@pytest.mark.parametrize("softmax", [False, True])
def test_every_stage_is_matched_as_the_host_matches_one_stage(softmax: bool):
    stages, targets = [random_stage(seed, softmax) for seed in range(4)], three_targets()
    host = HungarianMatcher(1.5, 5.0, 2.0) if softmax else DeformableDetrHungarianMatcher(1.5, 5.0, 2.0)
    for stage, assignment in zip(stages, Matcher(1.5)(stages, SIZES, targets), strict=True):
        logits = stage.logits
        if stage.background is not None:
            logits = torch.cat([logits, stage.background[..., None]], -1)
        outputs = {"logits": logits, "pred_boxes": relative(stage.boxes)}
        for image, (rows, columns) in enumerate(host(outputs, host_labels(targets, SIZES))):
            expected = torch.full((9,), -1)
            expected[rows] = columns
            assert torch.equal(assignment.matched[image], expected)
        assert assignment.num_positives.item() == 2 + 1 + 3  # an image without objects counts as one


def test_the_distance_of_corners_equals_a_loop():
    stage, targets = random_stage(0, False), three_targets()
    costs = Matcher(0.0, 1.0, 0.0, corners=True).costs([stage], SIZES, targets)
    for image, (height, width) in enumerate(SIZES.tolist()):
        scale = torch.tensor([width, height, width, height])
        for column, box in enumerate(targets.boxes[image]):
            expected = ((stage.boxes[image] - box).abs() / scale).sum(-1)
            torch.testing.assert_close(costs[0, image, :, column], expected)


def test_a_stage_with_nan_matches_nothing_and_other_stages_are_matched():
    finite, with_nan = random_stage(0, False), random_stage(1, False)
    with_nan.logits[1, 3, 0] = float("nan")
    first, second = Matcher()([finite, with_nan], SIZES, three_targets())
    assert (first.matched >= 0).sum() == 5
    assert (second.matched == -1).all()


def test_more_objects_than_queries_and_no_objects():
    many = Targets(
        tuple(torch.rand(7, 4).sort(-1).values * 50 for _ in range(3)),
        tuple(torch.zeros(7, dtype=torch.long) for _ in range(3)),
    )
    (assignment,) = Matcher()([random_stage(0, False, queries=4)], SIZES, many)
    assert (assignment.matched >= 0).all()
    none = Targets(
        tuple(torch.zeros(0, 4) for _ in range(3)), tuple(torch.zeros(0, dtype=torch.long) for _ in range(3))
    )
    (assignment,) = Matcher()([random_stage(0, True)], SIZES, none)
    assert (assignment.matched == -1).all()


def test_a_query_gives_one_detection_per_class_with_sigmoids_and_one_with_softmax():
    for softmax, count in ((False, 9 * 4), (True, 9)):
        detections = best_queries(random_stage(0, softmax), SIZES, 100, 0.0).detections()
        assert [len(image.scores) for image in detections] == [count] * 3
