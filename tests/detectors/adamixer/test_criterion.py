"""The losses of AdaMixer by hand."""

import math

import pytest
import torch
from torch import Tensor

from detdistill.detectors.adamixer import criterion
from detdistill.detectors.adamixer.criterion import set_terms
from detdistill.types import Assignment, Predictions, Targets


def stage_of(boxes: list[list[float]], logits: Tensor, matched: list[int], valid: list[bool]) -> Predictions:
    """A stage of one image with this assignment. boxes: xyxy."""
    assignment = Assignment(torch.tensor([matched]), torch.tensor([valid]), torch.tensor(1.0))
    rows = torch.ones(1, len(boxes), dtype=torch.bool)
    return Predictions(logits[None], "sigmoid", torch.tensor([boxes]), rows, assignment=assignment)


def test_terms_by_hand(monkeypatch: pytest.MonkeyPatch):
    boxes = [[10.0, 10, 50, 30], [0, 0, 100, 50], [0, 0, 12, 10]]
    logits = torch.tensor([[0.0, 1.0], [-1.0, 0.5], [2.0, 2.0]])
    targets = Targets((torch.tensor([[0.0, 0, 10, 10], [20, 10, 60, 30]]),), (torch.tensor([0, 1]),))
    frame = torch.tensor([[50, 100]])
    stage = stage_of(boxes, logits, [1, -1, 0], [True, True, False])  # the third is matched but not valid

    def focal(logit: float, is_target: bool) -> float:
        p = 1 / (1 + math.exp(-logit))
        return -0.25 * (1 - p) ** 2 * math.log(p) if is_target else -0.75 * p**2 * math.log(1 - p)

    terms = set_terms([stage, stage], frame, targets)
    assert list(terms) == ["classification_0", "box_0", "giou_0", "classification", "box", "giou"]
    classification = 2 * (focal(0, False) + focal(1, True) + focal(-1, False) + focal(0.5, False)) / 2
    assert float(terms["classification"]) == pytest.approx(classification, rel=1e-5)
    assert float(terms["box"]) == pytest.approx(5 * (0.1 + 0.1) / 2)  # both corners are 10 of 100 pixels too far left
    assert float(terms["giou"]) == pytest.approx(2 * (1 - 600 / 1000) / 2)  # the smallest enclosing box is the union
    assert float(terms["giou_0"]) == float(terms["giou"])
    monkeypatch.setattr(criterion, "mean_over_processes", lambda count: 2 * count)
    assert float(set_terms([stage], frame, targets)["box"]) == pytest.approx(5 * 0.2 / 4)


def test_an_infinite_box_gives_nan_if_nothing_is_matched():
    stage = stage_of([[0.0, 0.0, float("inf"), 1.0]], torch.zeros(1, 2), [-1], [True])
    targets = Targets((torch.zeros(0, 4),), (torch.zeros(0, dtype=torch.long),))
    terms = set_terms([stage], torch.tensor([[50, 100]]), targets)
    assert terms["box"].isnan()
    assert terms["giou"].isnan()
