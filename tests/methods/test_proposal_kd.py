"""Proposal distillation: each head on its own pyramid, gradients, options."""

import pytest
import torch

from detdistill.errors import UserError
from detdistill.methods.proposal_kd import ProposalKD
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


def test_each_head_reads_its_own_pyramid():
    student, teacher = two_stage_pair()
    method = built("proposal_kd", student, teacher)
    student_output, teacher_output, targets = sampled_outputs(method, student, teacher)
    student_predictions = student_output.stages[-1]
    teacher_predictions = teacher_output.proposals.classify(student_output.proposals.boxes)
    trust, top = teacher_predictions.scores().max(-1)
    student_codes, teacher_codes = [
        stage.deltas.gather(2, top[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
        for stage in (student_predictions, teacher_predictions)
    ]
    trust = trust * student_predictions.valid
    rows = (student_codes - teacher_codes).abs().sum(-1) * trust
    terms = method(student_output, teacher_output, targets)
    torch.testing.assert_close(terms["box"], rows.sum() / (4 * trust.sum()))
    assert terms["class"] > 1e-3


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, {"neck", "box_head", "classes", "codes"}),
        ({"weight_box": 0.0}, {"neck", "box_head", "classes"}),
        ({"weight_class": 0.0}, {"neck", "box_head", "codes"}),
    ],
)
def test_the_parts_of_the_students_head_with_a_weight_learn(options: dict, parts: set[str]):
    student, teacher = two_stage_pair()
    method = built("proposal_kd", student, teacher, **options)
    sum(method(*sampled_outputs(method, student, teacher)).values()).backward()
    assert parts_with_gradient(student) == parts
    assert parts_with_gradient(teacher) == set()


def test_terms_are_zero_if_the_student_is_the_teacher():
    _, teacher = two_stage_pair()
    method = built("proposal_kd", teacher, teacher)
    terms = method(*sampled_outputs(method, teacher, teacher))
    assert terms["class"].abs() < 1e-5
    assert terms["box"].abs() < 1e-5


def test_the_order_of_classes_does_not_matter():
    student, teacher = two_stage_pair()
    reordered = with_classes(teacher, {"square": "square", "cross": "cross", "disc": "disc"})
    terms = []
    for some_teacher in (teacher, reordered):
        method = built("proposal_kd", student, some_teacher)
        terms.append(method(*sampled_outputs(method, student, some_teacher)))
    torch.testing.assert_close(terms[1], terms[0])


def test_strides_and_widths_may_differ():
    student, teacher = two_stage_pair(strides=(8, 16, 32), channels=48)
    method = built("proposal_kd", student, teacher)
    assert list(method.parameters()) == []
    terms = method(*sampled_outputs(method, student, teacher))
    assert all(term.isfinite() and term > 0 for term in terms.values())


def test_weights_of_0_are_refused():
    info = tiny("faster_rcnn").info
    with pytest.raises(UserError, match="method proposal_kd: all its weights are 0"):
        ProposalKD.build(RoIConfig(weight_class=0.0, weight_box=0.0), info, info)


def test_training_with_it_works():
    check_training("proposal_kd")
