"""GFL: losses against values by hand and a slow loop, decoding by hand, single precision under autocast."""

import math

import pytest
import torch
from torch import Tensor

from detdistill.detectors.dense.gfl import distribution_focal, gfl_losses
from detdistill.geometry import expected_distance, to_boxes
from detdistill.types import Assignment, Need, Predictions, Targets
from tests.detectors.builders import scene, shake, tiny
from tests.detectors.dense.examples import (
    BINS,
    MATCHED,
    NUM_CLASSES,
    POINTS,
    STRIDES,
    TARGETS,
    VALID,
    constant_predictions,
    cross_entropy,
    example_assignment,
    example_predictions,
    iou_and_giou_distance,
    sigmoid,
)


def slow_gfl_losses(stage: Predictions) -> dict[str, float]:
    """The losses of GFL, equations 3 to 6, row by row.

    Box and edge terms are sums over positives, weighted by the best score and divided by the sum of these weights,
    which is at least 1.
    """
    terms, total_weight = {"classification": 0.0, "box": 0.0, "edges": 0.0}, 0.0
    for image in range(2):
        for row in range(7):
            match, class_targets = int(MATCHED[image, row]), [0.0] * NUM_CLASSES
            logits = stage.logits[image, row].tolist()
            if match >= 0:
                truth = TARGETS.boxes[image][match].tolist()
                iou, giou_distance = iou_and_giou_distance(stage.boxes[image, row].tolist(), truth)
                class_targets[int(TARGETS.labels[image][match])] = iou
                weight = max(map(sigmoid, logits))
                total_weight += weight
                terms["box"] += 2.0 * weight * giou_distance
                x, y, stride = *POINTS[row].tolist(), float(STRIDES[row])
                for side, pixels in enumerate((x - truth[0], y - truth[1], truth[2] - x, truth[3] - y)):
                    distance = min(max(pixels / stride, 0.0), BINS - 1 - 0.1)
                    low = math.floor(distance)
                    powers = [math.exp(value) for value in stage.edges[image, row, side].tolist()]
                    below, above = math.log(powers[low] / sum(powers)), math.log(powers[low + 1] / sum(powers))
                    terms["edges"] -= 0.25 / 4 * weight * ((low + 1 - distance) * below + (distance - low) * above)
            if VALID[image, row]:
                pairs = zip(logits, class_targets, strict=True)
                terms["classification"] += sum((sigmoid(z) - y) ** 2 * cross_entropy(z, y) for z, y in pairs) / 5
    return terms | {name: terms[name] / max(total_weight, 1) for name in ("box", "edges")}


@pytest.mark.parametrize("shift", [0.0, -6.0])  # with -6, the weights add up to less than 1
def test_losses_equal_a_slow_loop(shift: float):
    stage = example_predictions(shift)
    assert (sum(stage.logits[MATCHED >= 0].sigmoid().amax(-1)) < 1) == (shift < 0)
    losses = gfl_losses(stage, example_assignment(), TARGETS, POINTS, STRIDES)
    assert {name: float(term) for name, term in losses.items()} == pytest.approx(slow_gfl_losses(stage), rel=1e-4)


def with_gradient(term: Tensor, leaves: dict[str, Tensor]) -> set[str]:
    """Names of the leaves that get a gradient from the term."""
    gradients = torch.autograd.grad(term, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None and gradient.any()}


def test_each_term_gives_a_gradient_to_one_output_only():
    # The IoU in the class targets, and the score that weights box and edges, are constants.
    stage = example_predictions(0.0)
    leaves = {name: getattr(stage, name).requires_grad_() for name in ("logits", "boxes", "edges")}
    losses = gfl_losses(stage, example_assignment(), TARGETS, POINTS, STRIDES)
    assert with_gradient(losses["classification"], leaves) == {"logits"}
    assert with_gradient(losses["box"], leaves) == {"boxes"}
    assert with_gradient(losses["edges"], leaves) == {"edges"}


def test_expected_distance_by_hand():
    # 0 * 0.5 + 1 * 0.25 + 2 * 0.125 + 3 * 0.125 = 0.875 strides. A flat distribution over 0..4 gives 2, a sharp one its
    # bin.
    assert expected_distance(torch.tensor([0.5, 0.25, 0.125, 0.125]).log()).item() == pytest.approx(0.875)
    assert expected_distance(torch.zeros(2, 3, 5)).tolist() == [[2.0] * 3] * 2
    assert expected_distance(50 * torch.eye(4)).tolist() == pytest.approx([0.0, 1, 2, 3], abs=1e-6)


def test_distribution_focal_by_hand():
    edges = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    # 1.25 lies between bins 1 and 2: 0.75 * log 4 + 0.25 * log 8 = 2.25 log 2. A distance on a bin uses this bin alone.
    expected = {1.25: 2.25, 0.0: 1.0, 1.0: 2.0, 0.1: 0.9 * 1 + 0.1 * 2, 2.9: 3.0, 3.0: 3.0}
    losses = distribution_focal(edges.expand(len(expected), 4), torch.tensor(list(expected)))
    assert losses.tolist() == pytest.approx([bits * math.log(2) for bits in expected.values()], rel=1e-5)


def test_distances_end_a_tenth_before_the_last_bin():
    # All sides are 54 strides away, which is clamped to 3.9 of bins 0..4: a tenth of bin 3 and nine tenths of bin 4.
    edges = torch.tensor([0.0, 0, 0, 2, -1])
    stage = Predictions(
        torch.zeros(1, 1, 1), "sigmoid", torch.zeros(1, 1, 4), VALID[:1, :1], edges=edges.expand(1, 1, 4, BINS)
    )
    targets = Targets((torch.tensor([[-54.0, -54, 54, 54]]),), (torch.tensor([0]),))
    assignment = Assignment(torch.zeros(1, 1, dtype=torch.long), VALID[:1, :1], torch.tensor(1.0))
    term = gfl_losses(stage, assignment, targets, torch.zeros(1, 2), torch.ones(1))["edges"]
    log_sum = math.log(3 + math.exp(2) + math.exp(-1))
    # 0.25 is the weight of the term and 0.5 the score, but the sum of the weights is at least 1.
    assert term.item() == pytest.approx(0.25 * 0.5 * (0.1 * (log_sum - 2) + 0.9 * (log_sum + 1)), rel=1e-5)


def test_distributions_are_decoded_by_hand():
    # The distances are certain: left 1, top 3, right 6 and bottom 16 strides from the cell's corner.
    edges = 60.0 * torch.eye(17)[[1, 3, 6, 16]]
    stage = constant_predictions("gfl", edges)
    for level, stride in zip(stage.layout.split(stage.boxes), (8, 16, 32), strict=True):
        x, y = 2 * stride, 1 * stride
        expected = [x - stride, y - 3 * stride, x + 6 * stride, y + 16 * stride]
        assert level[0, 1, 2, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_boxes_are_in_single_precision_under_autocast():
    # The 8 bits of a bfloat16 can't represent a coordinate above 256.
    detector = shake(tiny("gfl")).eval()
    batch, targets = scene()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            output = detector.observe(batch, targets, Need(predictions=True))
        stage = output.stages[0]
        levels = [level.reshape(-1, 4) for level in output.pyramids["neck"].anchors]
        pairs = zip(levels, (8, 16, 32), strict=True)
        strides = torch.cat([torch.full((len(level), 1), 1.0 * stride) for level, stride in pairs])
        anchors = torch.cat(levels)
        points = (anchors[:, :2] + anchors[:, 2:]) / 2
        expected = to_boxes(points, (stage.edges.softmax(-1) @ torch.arange(17.0)) * strides)
    assert stage.boxes.dtype == stage.edges.dtype == torch.float32
    assert stage.edges.std() > 0.01
    torch.testing.assert_close(stage.boxes, expected, rtol=1e-5, atol=1e-3)
    assert all(term.dtype == torch.float32 for term in output.losses.values())
