"""The matcher of set predictors against those of transformers, stage by stage."""

import pytest
import torch
from torch import Tensor
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import HungarianMatcher

from detdistill.detectors.queries.frames import to_pixels, top_detections
from detdistill.detectors.queries.matching import Matcher
from detdistill.detectors.transformers.criterion import host_labels
from detdistill.types import Predictions, Targets

SIZES = torch.tensor([[64, 96], [50, 70], [64, 64]])


def stage(seed: int, softmax: bool, queries: int = 9) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, queries, 4, generator=generator)
    boxes = torch.rand(3, queries, 4, generator=generator) * 0.4 + 0.2
    background = torch.randn(3, queries, generator=generator) if softmax else None
    valid = torch.ones(3, queries, dtype=torch.bool)
    return Predictions(
        logits, "softmax" if softmax else "sigmoid", to_pixels(boxes, SIZES), valid, background=background
    )


def truths() -> Targets:
    boxes = torch.tensor([[6.0, 8, 40, 44], [30, 10, 90, 60], [5, 5, 20, 20]])
    return Targets(
        (boxes[:2], boxes[:0], boxes), (torch.tensor([3, 1]), torch.zeros(0, dtype=torch.long), torch.tensor([0, 2, 2]))
    )


@pytest.mark.parametrize("softmax", [False, True])
def test_every_stage_is_matched_as_the_host_matches_it_alone(softmax: bool):
    stages, targets = [stage(seed, softmax) for seed in range(4)], truths()
    host = HungarianMatcher(1.5, 5.0, 2.0) if softmax else DeformableDetrHungarianMatcher(1.5, 5.0, 2.0)
    for one, assignment in zip(stages, Matcher(1.5)(stages, SIZES, targets), strict=True):
        logits = one.logits if one.background is None else torch.cat([one.logits, one.background[..., None]], -1)
        outputs = {"logits": logits, "pred_boxes": relative(one.boxes)}
        for image, (rows, columns) in enumerate(host(outputs, host_labels(targets, SIZES))):
            expected = torch.full((9,), -1)
            expected[rows] = columns
            assert torch.equal(assignment.matched[image], expected)
        assert assignment.num_positives.item() == 2 + 1 + 3  # an image without objects counts as one


def relative(boxes: Tensor) -> Tensor:
    scale = SIZES.flip(-1).repeat(1, 2)[:, None]
    middle, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return torch.cat([middle, sides], -1) / scale


def test_the_distance_of_corners_by_a_loop():
    one, targets = stage(0, False), truths()
    costs = Matcher(0.0, 1.0, 0.0, corners=True).costs([one], SIZES, targets)
    for image, (height, width) in enumerate(SIZES.tolist()):
        scale = torch.tensor([width, height, width, height])
        for column, box in enumerate(targets.boxes[image]):
            torch.testing.assert_close(costs[0, image, :, column], ((one.boxes[image] - box).abs() / scale).sum(-1))


def test_a_stage_with_a_number_that_is_none_matches_nothing_and_the_others_do():
    good, bad = stage(0, False), stage(1, False)
    bad.logits[1, 3, 0] = float("nan")
    first, second = Matcher()([good, bad], SIZES, truths())
    assert (first.matched >= 0).sum() == 5
    assert (second.matched == -1).all()


def test_more_objects_than_queries_and_no_objects_at_all():
    crowd = Targets(
        tuple(torch.rand(7, 4).sort(-1).values * 50 for _ in range(3)),
        tuple(torch.zeros(7, dtype=torch.long) for _ in range(3)),
    )
    (found,) = Matcher()([stage(0, False, queries=4)], SIZES, crowd)
    assert (found.matched >= 0).all()
    none = Targets(
        tuple(torch.zeros(0, 4) for _ in range(3)), tuple(torch.zeros(0, dtype=torch.long) for _ in range(3))
    )
    (found,) = Matcher()([stage(0, True)], SIZES, none)
    assert (found.matched == -1).all()


def test_a_query_answers_for_several_classes_with_sigmoids_and_for_one_with_softmax():
    for softmax, most in ((False, 9 * 4), (True, 9)):
        found = top_detections(stage(0, softmax), SIZES, 100, 0.0)
        assert [len(one.scores) for one in found] == [most] * 3
