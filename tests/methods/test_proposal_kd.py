"""Proposal distillation: each head on its own pyramid, isolation of gradients, options."""

import pytest
import torch

from detdistill.errors import UserError
from detdistill.methods.proposal_kd import ProposalKD
from detdistill.methods.shared.rois import RoIConfig
from tests.detectors.builders import tiny
from tests.methods.pairs import built
from tests.methods.two_stage import check_teaching, duo, renamed, seen, touched


def test_each_head_reads_its_own_pyramid():
    student, teacher = duo()
    method = built("proposal_kd", student, teacher)
    mine, lesson, targets = seen(method, student, teacher)
    own, other = mine.stages[-1], lesson.proposals.classify(mine.proposals.boxes)
    trust, top = other.scores().max(-1)
    codes = [stage.deltas.gather(2, top[..., None, None].expand(-1, -1, 1, 4))[:, :, 0] for stage in (own, other)]
    rows = (codes[0] - codes[1]).abs().sum(-1) * trust * own.valid
    terms = method(mine, lesson, targets)
    torch.testing.assert_close(terms["box"], rows.sum() / (4 * (trust * own.valid).sum()))
    assert terms["class"] > 1e-3


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, {"neck", "box_head", "classes", "codes"}),
        ({"weight_box": 0.0}, {"neck", "box_head", "classes"}),
        ({"weight_class": 0.0}, {"neck", "box_head", "codes"}),
    ],
)
def test_the_students_head_learns_what_is_weighed(options: dict, parts: set[str]):
    student, teacher = duo()
    method = built("proposal_kd", student, teacher, **options)
    sum(method(*seen(method, student, teacher)).values()).backward()
    assert touched(student) == parts
    assert touched(teacher) == set()


def test_teacher_as_student_is_zero():
    _, teacher = duo()
    method = built("proposal_kd", teacher, teacher)
    terms = method(*seen(method, teacher, teacher))
    assert terms["class"].abs() < 1e-5
    assert terms["box"].abs() < 1e-5


def test_the_order_of_classes_does_not_matter():
    student, teacher = duo()
    mixed = renamed(teacher, {"square": "square", "cross": "cross", "disc": "disc"})
    plain, turned = (built("proposal_kd", student, lecturer) for lecturer in (teacher, mixed))
    torch.testing.assert_close(turned(*seen(turned, student, mixed)), plain(*seen(plain, student, teacher)))


def test_other_strides_and_widths_need_nothing():
    student, teacher = duo(strides=(8, 16, 32), channels=48)
    method = built("proposal_kd", student, teacher)
    assert list(method.parameters()) == []
    assert all(term.isfinite() and term > 0 for term in method(*seen(method, student, teacher)).values())


def test_weights_of_nothing_are_refused():
    info = tiny("faster_rcnn").info
    with pytest.raises(UserError, match="method proposal_kd: all its weights are 0"):
        ProposalKD.build(RoIConfig(weight_class=0.0, weight_box=0.0), info, info)


def test_it_teaches():
    check_teaching("proposal_kd")
