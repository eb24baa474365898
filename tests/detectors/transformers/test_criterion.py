"""The published weights of the detectors of transformers, by hand: in the losses and in the cost of matching."""

import math

import pytest
import torch

from detdistill.types import Assignment, Predictions, Targets
from tests.detectors.builders import tiny

FRAME = torch.tensor([[100, 100]])
TARGETS = Targets((torch.tensor([[20.0, 20.0, 60.0, 60.0]]),), (torch.tensor([0]),))
KINDS = {"deformable_detr": (2, 2), "conditional_detr": (2, 2), "dab_detr": (1, 2)}  # of loss and matching


def stage_of(scores: list[float], shifts: list[float], matched: list[int]) -> Predictions:
    """One class, and one query per score. Its box is the target, moved to the right by the shift in pixels."""
    logits = torch.tensor(scores).logit()[None, :, None]  # (1, Q, 1)
    shift = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]]) * torch.tensor(shifts)[None, :, None]
    valid = torch.ones(1, len(scores), dtype=torch.bool)
    assignment = Assignment(torch.tensor([matched]), valid, torch.tensor(1.0))
    return Predictions(logits, "sigmoid", TARGETS.boxes[0] + shift, valid, assignment=assignment)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_by_hand(kind: str):
    """One query with a score of 1/2, 10 pixels from its object. The image has 100 pixels, the box 40."""
    family = tiny(kind).family
    family.losses.host.num_classes = 1
    terms = family.losses([stage_of([0.5], [10.0], [0])], FRAME, TARGETS)
    focal = 0.25 * (1 - 0.5) ** 2 * math.log(2)
    assert terms["classification"].item() == pytest.approx(KINDS[kind][0] * focal, rel=1e-5)
    assert terms["box"].item() == pytest.approx(5 * 0.1, rel=1e-5)
    assert terms["giou"].item() == pytest.approx(2 * (1 - 30 / 50), rel=1e-5)  # the hull is the union


@pytest.mark.parametrize("kind", KINDS)
def test_costs_of_matching_by_hand(kind: str):
    """The focal cost of a score of 1/2 is (1/16 - 3/16) ln 2 = -0.0866, and that of 0.8 is 0.0022 - 0.7725 = -0.7703.

    The box of the query with 0.8 is 8 of 100 pixels away. Its box cost is higher by 5 * 0.08 + 2 (1 - 32/48) = 1.0667.
    So it has the lower cost with a class weight of 2 (gain 1.367), and the higher with a class weight of 1 (0.684).
    """
    family = tiny(kind).family
    stage = stage_of([0.5, 0.8], [0.0, 8.0], [-1, -1])
    costs = family.matcher.costs([stage], FRAME, TARGETS)[0, 0, :, 0]
    weight = KINDS[kind][1]
    assert costs[0].item() == pytest.approx(weight * -math.log(2) / 8 - 2, rel=1e-5)
    focal = 0.25 * 0.04 * -math.log(0.8) - 0.75 * 0.64 * -math.log(0.2)
    assert costs[1].item() == pytest.approx(weight * focal + 5 * 0.08 - 2 * 32 / 48, rel=1e-5)
    (assignment,) = family.matcher([stage], FRAME, TARGETS)
    assert assignment.matched.tolist() == [[-1, 0]]


def test_detr_has_a_class_weight_of_1_in_both():
    family = tiny("detr").family
    stage = stage_of([0.5], [0.0], [0])
    softmax = Predictions(
        stage.logits, "softmax", stage.boxes, stage.valid, background=torch.zeros(1, 1), assignment=stage.assignment
    )
    family.losses.host.num_classes, family.losses.host.empty_weight = 1, torch.tensor([1.0, 0.1])
    assert family.losses([softmax], FRAME, TARGETS)["classification"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert family.matcher.costs([softmax], FRAME, TARGETS).item() == pytest.approx(-0.5 - 2, rel=1e-5)
