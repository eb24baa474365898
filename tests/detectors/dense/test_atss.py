"""ATSS: losses against a slow loop, decoding by hand."""

import math

import pytest
import torch

from detdistill.detectors.dense.atss import atss_losses
from detdistill.types import Predictions
from tests.detectors.dense.examples import (
    MATCHED,
    QUALITY,
    TARGETS,
    VALID,
    constant_predictions,
    cross_entropy,
    example_assignment,
    example_predictions,
    iou_and_giou_distance,
    sigmoid,
)


def slow_atss_losses(stage: Predictions) -> dict[str, float]:
    """The losses of ATSS, row by row.

    Focal loss (alpha 0.25, gamma 2) and centerness are divided by the number of positives, 5. GIoU is weighted by the
    centerness target and divided by the sum of these weights, which is at least 1.
    """
    terms, total_weight = {"classification": 0.0, "box": 0.0, "centerness": 0.0}, 0.0
    for image in range(2):
        for row in range(7):
            match, quality, label = int(MATCHED[image, row]), float(QUALITY[image, row]), -1
            if match >= 0:
                label = int(TARGETS.labels[image][match])
                total_weight += quality
                truth = TARGETS.boxes[image][match].tolist()
                terms["box"] += 2.0 * quality * iou_and_giou_distance(stage.boxes[image, row].tolist(), truth)[1]
                terms["centerness"] += cross_entropy(float(stage.quality[image, row]), quality) / 5
            for index, logit in enumerate(stage.logits[image, row].tolist() if VALID[image, row] else []):
                correct = sigmoid(logit) if index == label else sigmoid(-logit)
                alpha = 0.25 if index == label else 0.75
                terms["classification"] += alpha * (1 - correct) ** 2 * -math.log(correct) / 5
    return terms | {"box": terms["box"] / max(total_weight, 1)}


def test_losses_equal_a_slow_loop():
    stage = example_predictions(0.0)
    losses = atss_losses(stage, example_assignment(), TARGETS)
    assert {name: float(term) for name, term in losses.items()} == pytest.approx(slow_atss_losses(stage), rel=1e-4)


def test_deltas_are_decoded_by_hand():
    # Anchors are squares of 8 strides around the cell's corner. A delta of 1 moves a center by 0.1 of the anchor's
    # side, and scales a side by exp(0.2), up to a factor of 62.5.
    stage = constant_predictions("atss", torch.tensor([1.0, -2, 0.5, 30]))
    fine, coarse, _ = stage.layout.split(stage.boxes)
    for level, stride, scale in ((fine, 8, 1), (coarse, 16, 2)):
        side = 8.0 * stride
        x, y = 3 * stride + 0.1 * scale * side, 2 * stride - 0.2 * scale * side
        width, height = side * math.exp(0.1 * scale), side * 62.5
        expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        assert level[0, 2, 3, 0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-3)
