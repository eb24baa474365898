"""Prediction mimicking: CrossKD's distances on the student's own head."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import quality_focal
from detdistill.methods.mimicking import Mimicking
from detdistill.methods.shared.predictions import PredictionConfig, prediction_terms
from detdistill.types import Assignment, Predictions
from tests.detectors.builders import DENSE, tiny
from tests.methods.pairs import built, looks, pair


def test_terms_by_hand():
    # Two rows, one class. Student scores 1/2, 1/2; teacher 3/4, 1/2. |1/4| BCE(1/2, 3/4) = ln 2 / 4 for the first, 0 for the second.
    # Boxes: the first one pixel aside of a 2 x 2 square, 1 - GIoU = 2/3, weighted by the teacher's 3/4; the second equal.
    logits = torch.tensor([[[0.0], [0.0]]])
    taught = torch.tensor([[[3.0], [1.0]]]).log()
    square = torch.tensor([0.0, 0, 2, 2])
    boxes = torch.stack([square + torch.tensor([1.0, 0, 1, 0]), square])[None]
    valid = torch.ones(1, 2, dtype=torch.bool)
    guess = Predictions(logits, "sigmoid", boxes, valid)
    truth = Predictions(taught, "sigmoid", square.expand(1, 2, 4), valid)
    assignment = Assignment(torch.tensor([[0, -1]]), valid, torch.tensor(2.0))
    terms = prediction_terms(guess, truth, assignment, PredictionConfig(weight_class=1.0, weight_box=3.0))
    assert terms["class"].item() == pytest.approx(0.6931472 / 4 / 2)
    assert terms["box"].item() == pytest.approx(3 * (2 / 3) * (3 / 4) / 2)
    by_trust = prediction_terms(guess, truth, assignment, PredictionConfig(box_normalizer="trust"))
    assert by_trust["box"].item() == pytest.approx((2 / 3) * (3 / 4) / (3 / 4 + 1 / 2))
    positives = prediction_terms(guess, truth, assignment, PredictionConfig(box_region="positive", trust=False))
    assert positives["box"].item() == pytest.approx((2 / 3) / 2)


@pytest.mark.parametrize("head", DENSE)
def test_it_is_the_distance_of_the_own_predictions(head: str):
    student, teacher = pair(head)
    method = built("mimicking", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    terms = method(mine, theirs, targets)
    rows = quality_focal(mine.stages[0].logits, theirs.stages[0].logits.sigmoid(), 1.0).sum(-1)
    assignment = mine.stages[0].assignment
    if head == "gfl":
        torch.testing.assert_close(terms["class"], (rows * assignment.valid).sum() / assignment.num_positives)
    if head == "fcos":  # published: padding too, 0.4, by the sum of centre-ness targets
        torch.testing.assert_close(terms["class"], 0.4 * rows.sum() / assignment.quality.sum().clamp(min=1))
    sum(terms.values()).backward()
    unread = "bbox_ctrness" if head == "fcos" else "none"  # published: no centre-ness term for FCOS
    assert all(p.grad is not None for n, p in student.named_parameters() if unread not in n)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("head", DENSE)
def test_teacher_as_student_gives_the_minimum(head: str):
    _, teacher = pair(head)
    terms = built("mimicking", teacher, teacher)
    mine, theirs, targets = looks(terms, teacher, teacher)
    found = terms(mine, theirs, targets)
    assert found["class"].abs() < 1e-6
    assert found["box"].abs() < 1e-5


def test_other_grids_are_refused():
    with pytest.raises(
        UserError, match=r"9 anchors a cell, the teacher at .* with 1; predictions are compared cell by cell"
    ):
        Mimicking.build(PredictionConfig(), tiny("retinanet").info, tiny("fcos").info)
    info = tiny("retinanet").info
    with pytest.raises(UserError, match="anchors of a cell differ in size"):
        Mimicking.build(PredictionConfig(), info, replace(info, grid=replace(info.grid, cell_anchors=())))
    with pytest.raises(UserError, match="no dense head"):
        Mimicking.build(PredictionConfig(), info, tiny("faster_rcnn").info)


def test_an_exponent_below_one_is_refused_as_its_gradient_has_no_bound():
    logits = torch.tensor([200.0], requires_grad=True)
    quality_focal(logits, torch.ones(1), 0.5).sum().backward()
    assert logits.grad.isnan().all()  # why
    info = tiny("gfl").info
    with pytest.raises(UserError, match=r"method mimicking: with a beta of 0\.5 the gradient has no bound"):
        Mimicking.build(PredictionConfig(beta=0.5), info, info)
    for beta in (0.0, 1.0, 2.0):
        Mimicking.build(PredictionConfig(beta=beta), info, info)
    Mimicking.build(PredictionConfig(weight_class=0.0, beta=0.5), info, info)
