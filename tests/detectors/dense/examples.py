"""Predictions with an assignment, for the losses of ATSS and GFL, and slow versions of what both losses use."""

import math

import torch
from torch import Tensor

from detdistill.types import Assignment, Need, Predictions, Targets
from tests.detectors.builders import CLASSES, scene, tiny

NUM_CLASSES, BINS = len(CLASSES), 5
POINTS = torch.tensor([[8.0, 8], [16, 8], [24, 16], [16, 16], [32, 32], [0, 48], [64, 64]])
STRIDES = torch.tensor([8.0, 8, 8, 8, 16, 16, 32])
# The second box ends 62 pixels below its point (16, 8) of stride 8, which is farther than the last bin.
TARGETS = Targets(
    (torch.tensor([[2.0, 3, 30, 27], [10, 0, 20, 70]]), torch.tensor([[4.0, 4, 60, 50]])),
    (torch.tensor([2, 0]), torch.tensor([1])),
)
MATCHED = torch.tensor([[0, 1, -1, 0, -2, -1, -1], [-1, -1, 0, -2, 0, -1, -1]])
# Not valid are the ambiguous rows, and three rows in the padding.
VALID = torch.tensor([[1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 0, 0]]).bool()
QUALITY = torch.tensor([[0.9, 0.3, 0, 0.75, 0, 0, 0], [0, 0, 0.5, 0, 0.2, 0, 0]])


def example_predictions(shift: float) -> Predictions:
    """Predictions for two images of seven rows each, with boxes near their targets. shift: is added to all logits."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 7, NUM_CLASSES, generator=generator) * 2 + shift
    truth = torch.stack([boxes[rows.clamp(min=0)] for boxes, rows in zip(TARGETS.boxes, MATCHED, strict=True)])
    boxes = truth + torch.randn(2, 7, 4, generator=generator) * 3
    edges = torch.randn(2, 7, 4, BINS, generator=generator) * 2
    quality = torch.randn(2, 7, generator=generator)
    return Predictions(logits, "sigmoid", boxes, VALID, edges=edges, quality=quality)


def example_assignment() -> Assignment:
    """The assignment MATCHED, VALID and QUALITY, with 5 positives."""
    return Assignment(MATCHED, VALID, torch.tensor(5.0), QUALITY)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def cross_entropy(logit: float, target: float) -> float:
    """Binary cross-entropy."""
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(sigmoid(-logit))


def iou_and_giou_distance(first: list[float], second: list[float]) -> tuple[float, float]:
    """IoU and 1 - GIoU of two boxes."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - width * height
    hull = (max(first[2], second[2]) - min(first[0], second[0])) * (max(first[3], second[3]) - min(first[1], second[1]))
    return width * height / union, 1 - width * height / union + (hull - union) / hull


def constant_predictions(head: str, values: Tensor) -> Predictions:
    """The predictions of a detector whose regression is `values` in every cell, and twice that on the second level."""
    detector = tiny(head).eval()
    with torch.no_grad():
        detector.head.regressor.weight.zero_()
        detector.head.regressor.bias.copy_(values.flatten())
        detector.head.scales[1] = 2.0
        return detector.observe(scene()[0], need=Need(predictions=True)).stages[0]
