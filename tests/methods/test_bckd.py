"""BCKD: values by hand, gradients, a doubled or padded batch, refusals."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import giou_distance
from detdistill.methods import bckd
from detdistill.methods.bckd import BCKD, BCKDConfig
from detdistill.methods.shared.classes import SharedClasses
from detdistill.types import Assignment, DetectorOutput, Layout, Predictions, Targets
from tests.detectors.builders import DENSE, scene, tiny
from tests.methods.pairs import built, method_inputs, pair


def test_terms_by_hand():
    # Two rows, two classes. Student 1/2 everywhere; teacher 3/4 and 1/2 in the first row, 1/2 and 1/2 in the second.
    # Class: |1/4| BCE(1/2, 3/4) = ln 2 / 4, divided by two positives.
    # Boxes: a 2 x 2 square shifted by one pixel, 1 - GIoU = 2/3, times the gap of 1/4, times the weight 4. The boxes of
    # the second row differ too, but its gap is 0.
    square = torch.tensor([0.0, 0, 2, 2]).expand(1, 2, 4)
    shifted = square + torch.tensor([1.0, 0, 1, 0])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assignment = Assignment(torch.tensor([[0, -1]]), valid, torch.tensor(2.0))
    student_logits = torch.zeros(1, 2, 2, requires_grad=True)
    teacher_logits = torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]).log().requires_grad_()
    layout = Layout(((1, 2),), (8,))
    student_predictions = Predictions(student_logits, "sigmoid", shifted, valid, layout, assignment=assignment)
    teacher_predictions = Predictions(teacher_logits, "sigmoid", square, valid, layout, assignment=assignment)
    method = BCKD(BCKDConfig(), SharedClasses((0, 1), (0, 1), (2, 2)))
    student_output, teacher_output = (
        DetectorOutput({}, (student_predictions,)),
        DetectorOutput({}, (teacher_predictions,)),
    )
    terms = method(student_output, teacher_output, Targets((), ()))
    assert terms["class"].item() == pytest.approx(0.6931472 / 4 / 2)
    assert terms["box"].item() == pytest.approx(4 * (2 / 3) * (1 / 4) / 2)
    assert not terms["box"].requires_grad  # the gap is a constant, and these boxes have no gradient
    terms["class"].backward()
    # The factor has a gradient: d/dz |p - t| BCE = -p(1 - p) ln 2 + |p - t| (p - t) = -ln 2 / 4 - 1/16.
    assert student_logits.grad[0, 0, 0].item() == pytest.approx((-0.6931472 / 4 - 1 / 16) / 2)
    assert teacher_logits.grad is None


@pytest.mark.parametrize(
    ("region", "matched", "elsewhere", "cells"),
    [
        ("positive_levels", [0, -1, -1], 0.0, 2),  # the first level has a positive; both of its cells count
        ("positive_levels", [-1, -1, 0], 0.0, 1),  # the second level, of one cell
        ("positive_levels", [-1, -1, -1], 0.0, 0),
        ("positive_levels", [0, -1, -1], 1.0, 3),  # another process has a positive on the second level
        ("valid", [-1, -1, -1], 0.0, 3),
    ],
)
def test_levels_without_a_positive_do_not_count_as_in_the_released_code(
    region: str, matched: list[int], elsewhere: float, cells: int, monkeypatch: pytest.MonkeyPatch
):
    """Two levels of two cells and of one. Each cell adds |3/4 - 1/2| ln 2 to the class term, 4/4 * 2/3 to the box term.

    elsewhere: positives of another process on the second level.
    """
    monkeypatch.setattr(bckd, "mean_over_processes", lambda counts, floor: counts + torch.tensor([0.0, elsewhere]))
    layout, valid = Layout(((1, 2), (1, 1)), (8, 16)), torch.ones(1, 3, dtype=torch.bool)
    assignment = Assignment(torch.tensor([matched]), valid, torch.tensor(1.0))
    square = torch.tensor([0.0, 0, 2, 2]).expand(1, 3, 4)
    shifted = square + torch.tensor([1.0, 0, 1, 0])
    student_logits, teacher_logits = torch.zeros(1, 3, 1), torch.full((1, 3, 1), 3.0).log()
    student = Predictions(student_logits, "sigmoid", shifted, valid, layout, assignment=assignment)
    teacher = Predictions(teacher_logits, "sigmoid", square, valid, layout)
    method = BCKD(BCKDConfig(region=region), SharedClasses((0,), (0,), (1, 1)))
    terms = method(DetectorOutput({}, (student,)), DetectorOutput({}, (teacher,)), Targets((), ()))
    assert terms["class"].item() == pytest.approx(cells * 0.6931472 / 4)
    assert terms["box"].item() == pytest.approx(cells * 2 / 3)


@pytest.mark.parametrize("head", DENSE)
def test_terms_are_zero_if_the_student_is_the_teacher_and_the_whole_head_learns(head: str):
    student, teacher = pair(head)
    method = built("bckd", student, teacher)
    assert all(term.abs() < 1e-6 for term in method(*method_inputs(method, teacher, teacher)).values())
    sum(method(*method_inputs(method, student, teacher)).values()).backward()
    not_read = ("bbox_ctrness", "quality")
    assert all(p.grad is not None for n, p in student.named_parameters() if not any(part in n for part in not_read))
    assert all(p.grad is None for p in teacher.parameters())


def test_boxes_are_weighted_by_the_largest_difference_of_scores():
    student, teacher = pair("atss")
    method = built("bckd", student, teacher, weight_class=0.0, region="valid")
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    student_predictions, teacher_predictions = student_output.stages[-1], teacher_output.stages[-1]
    assignment = student_predictions.assignment
    gap = (student_predictions.scores() - teacher_predictions.scores()).abs().amax(-1) * assignment.valid
    distances = giou_distance(student_predictions.boxes, teacher_predictions.boxes)
    expected = 4 * (distances * gap).sum() / assignment.num_positives
    terms = method(student_output, teacher_output, targets)
    assert terms.keys() == {"box"}
    torch.testing.assert_close(terms["box"], expected)


def test_a_doubled_batch_and_padded_cells_change_nothing():
    student, teacher = pair("gfl")
    method = built("bckd", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    terms = method(student_output, teacher_output, targets)
    batch, _ = scene()
    tensors = {name: torch.cat([getattr(batch, name)] * 2) for name in ("images", "sizes", "originals", "ids")}
    doubled_scene = replace(batch, **tensors, names=batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    for name, term in method(*method_inputs(method, student, teacher, doubled_scene)).items():
        torch.testing.assert_close(term, terms[name])
    valid = student_output.stages[-1].valid
    teacher_predictions = teacher_output.stages[-1]
    high_logits = teacher_predictions.logits.masked_fill(~valid[..., None], 20.0)
    high_output = replace(teacher_output, stages=(replace(teacher_predictions, logits=high_logits),))
    for name, term in method(student_output, high_output, targets).items():
        torch.testing.assert_close(term, terms[name])


@pytest.mark.parametrize("head", DENSE)
def test_a_batch_without_objects_is_finite(head: str):
    student, teacher = pair(head)
    method = built("bckd", student, teacher)
    terms = method(*method_inputs(method, student, teacher, scene(objects=False)))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())


def test_unsupported_pairs_are_refused_at_build():
    gfl = tiny("gfl").info
    for student, config, message in (
        (tiny("faster_rcnn").info, BCKDConfig(), "no dense head"),
        (replace(gfl, activation="softmax"), BCKDConfig(), "compete in a softmax"),
        (replace(gfl, strides=(8,)), BCKDConfig(), "cell by cell"),
        (replace(gfl, classes=("ring",)), BCKDConfig(), "no class in common"),
        (gfl, BCKDConfig(0, 0), "all its weights are 0"),
    ):
        with pytest.raises(UserError, match=message):
            BCKD.build(config, student, gfl)
