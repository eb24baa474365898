"""Prediction mimicking: CrossKD's distances on the predictions of the student's own head."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import quality_focal
from detdistill.methods import mimicking as module
from detdistill.methods.mimicking import Mimicking
from detdistill.methods.shared.classes import SharedClasses
from detdistill.methods.shared.predictions import PredictionConfig
from detdistill.types import Assignment, DetectorOutput, GridInfo, Predictions, Targets
from tests.detectors.builders import DENSE, tiny
from tests.methods.pairs import built, method_inputs, pair


def test_terms_by_hand():
    # Two rows, one class. Student scores 1/2, 1/2; teacher 3/4, 1/2.
    # Class: |1/4| BCE(1/2, 3/4) = ln 2 / 4 for the first row, 0 for the second.
    # Boxes: a 2 x 2 square shifted by one pixel, 1 - GIoU = 2/3, weighted by the teacher's 3/4. The boxes of the second
    # row are equal.
    square = torch.tensor([0.0, 0, 2, 2])
    shifted = square + torch.tensor([1.0, 0, 1, 0])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assignment = Assignment(torch.tensor([[0, -1]]), valid, torch.tensor(2.0))
    student_logits = torch.tensor([[[0.0], [0.0]]])
    teacher_logits = torch.tensor([[[3.0], [1.0]]]).log()
    student_predictions = Predictions(
        student_logits, "sigmoid", torch.stack([shifted, square])[None], valid, assignment=assignment
    )
    teacher_predictions = Predictions(teacher_logits, "sigmoid", square.expand(1, 2, 4), valid)

    def terms(**options: object) -> dict[str, float]:
        method = Mimicking(PredictionConfig(**options), SharedClasses((0,), (0,), (1, 1)))
        student_output = DetectorOutput({}, (student_predictions,))
        values = method(student_output, DetectorOutput({}, (teacher_predictions,)), Targets((), ()))
        return {name: value.item() for name, value in values.items()}

    weighted = terms(weight_class=1.0, weight_box=3.0)
    assert weighted["class"] == pytest.approx(0.6931472 / 4 / 2)
    assert weighted["box"] == pytest.approx(3 * (2 / 3) * (3 / 4) / 2)
    assert terms(box_normalizer="trust")["box"] == pytest.approx((2 / 3) * (3 / 4) / (3 / 4 + 1 / 2))
    assert terms(box_region="positive", trust=False)["box"] == pytest.approx((2 / 3) / 2)


def test_a_term_of_weight_0_is_not_computed(monkeypatch: pytest.MonkeyPatch):
    student, teacher = pair("atss")
    for weight, function, term in (
        ("weight_class", "quality_focal", "class"),
        ("weight_box", "box_distance", "box"),
        ("weight_quality", "quality_distance", "quality"),
    ):
        method = built("mimicking", student, teacher, **{weight: 0.0})
        arguments = method_inputs(method, student, teacher)
        with monkeypatch.context() as patched:
            patched.delattr(module, function)
            assert method(*arguments).keys() == {"class", "box", "quality"} - {term}


@pytest.mark.parametrize("head", DENSE)
def test_it_compares_the_predictions_of_the_students_head(head: str):
    student, teacher = pair(head)
    method = built("mimicking", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    terms = method(student_output, teacher_output, targets)
    student_predictions, teacher_predictions = student_output.stages[0], teacher_output.stages[0]
    rows = quality_focal(student_predictions.logits, teacher_predictions.logits.sigmoid(), 1.0).sum(-1)
    assignment = student_predictions.assignment
    if head == "gfl":
        torch.testing.assert_close(terms["class"], (rows * assignment.valid).sum() / assignment.num_positives)
    if head == "fcos":  # published: with the padding, weight 0.4, divided by the sum of the centerness targets
        torch.testing.assert_close(terms["class"], 0.4 * rows.sum() / assignment.quality.sum().clamp(min=1))
    sum(terms.values()).backward()
    not_read = "bbox_ctrness" if head == "fcos" else "none"  # published: no centerness term for FCOS
    assert all(p.grad is not None for n, p in student.named_parameters() if not_read not in n)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("head", DENSE)
def test_terms_are_at_their_minimum_if_the_student_is_the_teacher(head: str):
    _, teacher = pair(head)
    method = built("mimicking", teacher, teacher)
    terms = method(*method_inputs(method, teacher, teacher))
    assert terms["class"].abs() < 1e-6
    assert terms["box"].abs() < 1e-5


def test_a_dense_detector_without_towers_is_served():
    student, teacher = pair("gfl")
    info = replace(student.info, towers=None)
    method = Mimicking.build(PredictionConfig(), info, replace(teacher.info, towers=None))
    terms = method(*method_inputs(method, student, teacher))
    assert all(term > 0 for term in terms.values())
    rpn = replace(tiny("faster_rcnn").info, grid=GridInfo(anchors_per_cell=1, assigner="rpn"))
    with pytest.raises(UserError, match=r"the student \(faster_rcnn\) has no dense head"):
        Mimicking.build(PredictionConfig(), rpn, rpn)
    with pytest.raises(UserError, match=r"the teacher \(gfl\) has no dense head"):
        Mimicking.build(PredictionConfig(), info, replace(info, grid=None))


def test_different_grids_are_refused():
    retinanet = tiny("retinanet").info
    message = r"9 anchors per cell, the teacher at .* with 1; predictions are compared cell by cell"
    with pytest.raises(UserError, match=message):
        Mimicking.build(PredictionConfig(), retinanet, tiny("fcos").info)
    without_anchors = replace(retinanet, grid=replace(retinanet.grid, cell_anchors=()))
    with pytest.raises(UserError, match="anchors of a cell differ in size"):
        Mimicking.build(PredictionConfig(), retinanet, without_anchors)
    with pytest.raises(UserError, match="no dense head"):
        Mimicking.build(PredictionConfig(), retinanet, tiny("faster_rcnn").info)


def test_an_exponent_between_0_and_1_is_refused_because_its_gradient_has_no_bound():
    logits = torch.tensor([200.0], requires_grad=True)
    quality_focal(logits, torch.ones(1), 0.5).sum().backward()
    assert logits.grad.isnan().all()  # the reason for the refusal
    info = tiny("gfl").info
    with pytest.raises(UserError, match=r"method mimicking: with a beta of 0\.5 the gradient has no bound"):
        Mimicking.build(PredictionConfig(beta=0.5), info, info)
    for beta in (0.0, 1.0, 2.0):
        Mimicking.build(PredictionConfig(beta=beta), info, info)
    Mimicking.build(PredictionConfig(weight_class=0.0, beta=0.5), info, info)
