"""CrossKD on RoI heads: the teacher's head on both pyramids, the way of the gradient, connectors, refusals."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.methods.crosskd import CrossKD, CrossKDConfig
from detdistill.methods.crosskd_roi import CrossKDRoI
from detdistill.methods.shared.rois import RoIConfig
from tests.detectors.builders import tiny
from tests.methods.pairs import built
from tests.methods.two_stage import check_teaching, duo, renamed, seen, touched


def test_the_teachers_head_speaks_of_both_pyramids():
    student, teacher = duo()
    method = built("crosskd_roi", student, teacher, temperature=1.0, weight_class=1.0)
    mine, lesson, targets = seen(method, student, teacher)
    boxes, valid = mine.proposals.boxes, mine.proposals.valid
    crossed, own = lesson.proposals.classify(boxes, mine.pyramids["neck"]), lesson.proposals.classify(boxes)
    scores = [
        torch.cat([stage.logits, stage.background[..., None]], -1)[valid].log_softmax(-1) for stage in (crossed, own)
    ]
    expected = (scores[1].exp() * (scores[1] - scores[0])).sum(-1).mean()
    assert expected > 1e-3
    torch.testing.assert_close(method(mine, lesson, targets)["class"], expected)
    loud = replace(
        mine,
        stages=(
            mine.stages[0],
            replace(mine.stages[1], logits=mine.stages[1].logits + 9, deltas=mine.stages[1].deltas + 9),
        ),
    )
    torch.testing.assert_close(
        method(loud, lesson, targets), method(mine, lesson, targets)
    )  # the student's head isn't asked


def test_gradient_passes_the_teachers_head_into_the_students_neck_alone():
    student, teacher = duo()
    method = built("crosskd_roi", student, teacher)
    sum(method(*seen(method, student, teacher)).values()).backward()
    assert touched(teacher) == set()
    assert touched(student) == {"neck"}
    reached = [p.grad is not None and bool(p.grad.any()) for p in student.backbone_parameters() if p.ndim == 4]
    assert all(reached)


def test_teacher_as_student_is_zero():
    _, teacher = duo()
    method = built("crosskd_roi", teacher, teacher)
    terms = method(*seen(method, teacher, teacher))
    assert terms["class"].abs() < 1e-5
    assert terms["box"].abs() < 1e-5


def test_connectors_are_learned_where_widths_differ_on_the_levels_that_rois_are_cut_from():
    assert list(built("crosskd_roi", *duo()).parameters()) == []
    student, _ = duo(channels=48, strides=(4, 8, 16, 32, 64))
    teacher = tiny("faster_rcnn", strides=(4, 8, 16, 32, 64)).eval().requires_grad_(False)
    method = built("crosskd_roi", student, teacher)
    assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 48, 1, 1)] * 4  # not the fifth
    sum(method(*seen(method, student, teacher)).values()).backward()
    used = [p.grad is not None and bool(p.grad.any()) for p in method.parameters()]
    assert used[0]
    assert touched(student) == {"neck"}


def test_a_class_that_the_teacher_lacks_is_no_hindrance():
    student, teacher = duo()
    other = renamed(teacher, {"cross": "cross", "disc": "disc"})
    method = built("crosskd_roi", student, other)
    terms = method(*seen(method, student, other))
    assert all(term.isfinite() and term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert touched(student) == {"neck"}


def test_levels_that_the_student_lacks_are_refused_at_build():
    coarse, fine = tiny("faster_rcnn", strides=(8, 16, 32)).info, tiny("faster_rcnn").info
    with pytest.raises(
        UserError,
        match=r"cuts RoIs from strides \(4, 8, 16, 32\), the student's strides are \(8, 16, 32\); give the student",
    ):
        CrossKDRoI.build(RoIConfig(), coarse, fine)
    CrossKDRoI.build(RoIConfig(), fine, coarse)  # the finest level is not asked for


def test_dense_crosskd_points_here():
    info = tiny("faster_rcnn").info
    with pytest.raises(UserError, match=r"method crosskd: the student \(faster_rcnn\) has no towers; take crosskd_roi"):
        CrossKD.build(CrossKDConfig(), info, info)


def test_it_teaches():
    check_teaching("crosskd_roi", channels=48)
