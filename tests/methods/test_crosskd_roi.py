"""CrossKD on RoI heads: the teacher's head on both pyramids, gradients, connectors, refusals."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.methods.crosskd import CrossKD, CrossKDConfig
from detdistill.methods.crosskd_roi import CrossKDRoI
from detdistill.methods.shared.rois import RoIConfig
from tests.detectors.builders import tiny
from tests.methods.pairs import built
from tests.methods.two_stage import (
    check_training,
    parts_with_gradient,
    sampled_outputs,
    two_stage_pair,
    with_classes,
)


def test_it_compares_the_teachers_head_on_both_pyramids():
    student, teacher = two_stage_pair()
    method = built("crosskd_roi", student, teacher, temperature=1.0, weight_class=1.0)
    student_output, teacher_output, targets = sampled_outputs(method, student, teacher)
    boxes, valid = student_output.proposals.boxes, student_output.proposals.valid
    crossed = teacher_output.proposals.classify(boxes, student_output.pyramids["neck"])
    teacher_predictions = teacher_output.proposals.classify(boxes)
    crossed_scores, teacher_scores = [
        torch.cat([stage.logits, stage.background[..., None]], -1)[valid].log_softmax(-1)
        for stage in (crossed, teacher_predictions)
    ]
    expected = (teacher_scores.exp() * (teacher_scores - crossed_scores)).sum(-1).mean()
    assert expected > 1e-3
    terms = method(student_output, teacher_output, targets)
    torch.testing.assert_close(terms["class"], expected)
    # The predictions of the student's head are not read.
    rpn, roi = student_output.stages
    changed = replace(student_output, stages=(rpn, replace(roi, logits=roi.logits + 9, deltas=roi.deltas + 9)))
    torch.testing.assert_close(method(changed, teacher_output, targets), terms)


def test_gradient_passes_the_teachers_head_and_reaches_only_the_students_neck():
    student, teacher = two_stage_pair()
    method = built("crosskd_roi", student, teacher)
    sum(method(*sampled_outputs(method, student, teacher)).values()).backward()
    assert parts_with_gradient(teacher) == set()
    assert parts_with_gradient(student) == {"neck"}
    assert all(p.grad is not None and bool(p.grad.any()) for p in student.backbone_parameters() if p.ndim == 4)


def test_terms_are_zero_if_the_student_is_the_teacher():
    _, teacher = two_stage_pair()
    method = built("crosskd_roi", teacher, teacher)
    terms = method(*sampled_outputs(method, teacher, teacher))
    assert terms["class"].abs() < 1e-5
    assert terms["box"].abs() < 1e-5


def test_connectors_are_learned_if_widths_differ_on_the_levels_that_regions_are_pooled_from():
    assert list(built("crosskd_roi", *two_stage_pair()).parameters()) == []
    student, _ = two_stage_pair(channels=48, strides=(4, 8, 16, 32, 64))
    teacher = tiny("faster_rcnn", strides=(4, 8, 16, 32, 64)).eval().requires_grad_(False)
    method = built("crosskd_roi", student, teacher)
    assert [tuple(p.shape) for p in method.parameters() if p.ndim == 4] == [(32, 48, 1, 1)] * 4  # not the fifth
    sum(method(*sampled_outputs(method, student, teacher)).values()).backward()
    finest = next(method.parameters())
    assert finest.grad is not None and bool(finest.grad.any())
    assert parts_with_gradient(student) == {"neck"}


def test_the_teacher_may_lack_a_class():
    student, teacher = two_stage_pair()
    teacher = with_classes(teacher, {"cross": "cross", "disc": "disc"})
    method = built("crosskd_roi", student, teacher)
    terms = method(*sampled_outputs(method, student, teacher))
    assert all(term.isfinite() and term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert parts_with_gradient(student) == {"neck"}


def test_a_student_that_lacks_a_level_is_refused_at_build():
    coarse, fine = tiny("faster_rcnn", strides=(8, 16, 32)).info, tiny("faster_rcnn").info
    message = r"pools regions from strides \(4, 8, 16, 32\), the student's strides are \(8, 16, 32\); give the student"
    with pytest.raises(UserError, match=message):
        CrossKDRoI.build(RoIConfig(), coarse, fine)
    CrossKDRoI.build(RoIConfig(), fine, coarse)  # the student's finest level is not read


def test_dense_crosskd_names_this_method():
    info = tiny("faster_rcnn").info
    with pytest.raises(UserError, match=r"method crosskd: the student \(faster_rcnn\) has no towers; use crosskd_roi"):
        CrossKD.build(CrossKDConfig(), info, info)


def test_training_with_it_works():
    check_training("crosskd_roi", channels=48)
