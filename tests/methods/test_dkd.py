"""DKD on RoI heads: golden numbers, published options, the background as a label, refusals."""

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import decoupled_kl
from detdistill.methods import dkd as module
from detdistill.methods.dkd import DKD, DKDConfig
from detdistill.types import Targets
from tests.detectors.builders import tiny
from tests.methods.pairs import built
from tests.methods.test_kd import golden_rows
from tests.methods.two_stage import (
    check_training,
    parts_with_gradient,
    sampled_outputs,
    two_stage_pair,
    with_classes,
)


def test_golden_numbers_of_each_part(monkeypatch: pytest.MonkeyPatch):
    info = tiny("faster_rcnn").info
    monkeypatch.setattr(module, "roi_rows", lambda *_: golden_rows())

    def term(**options: float) -> float:
        return DKD.build(DKDConfig(**options), info, info)(None, None, Targets((), ()))["class"].item()

    # Labels [0, 3, 7, 9]; 9 is the background here.
    assert term(alpha=1.0, beta=8.0, temperature=4.0) == pytest.approx(36.26705886481297, rel=1e-6)
    assert term(alpha=1.0, beta=0.0, temperature=4.0) == pytest.approx(0.17337103858608266, rel=1e-6)
    assert term(alpha=0.0, beta=1.0, temperature=4.0) == pytest.approx(4.51171097827836, rel=1e-6)
    assert term(alpha=1.0, beta=8.0, temperature=4.0, weight=2.0) == pytest.approx(2 * 36.26705886481297, rel=1e-6)


def test_its_defaults_are_those_published_for_detection():
    student, teacher = two_stage_pair()
    method = built("dkd", student, teacher)
    assert method.config == DKDConfig(alpha=1.0, beta=0.25, temperature=1.0, weight=1.0)
    student_output, teacher_output, targets = sampled_outputs(method, student, teacher)
    student_predictions = student_output.stages[-1]
    teacher_predictions = teacher_output.proposals.classify(student_output.proposals.boxes)
    valid = student_predictions.valid
    student_logits, teacher_logits = [
        torch.cat([stage.logits, stage.background[..., None]], -1)[valid]
        for stage in (student_predictions, teacher_predictions)
    ]
    matched = student_predictions.assignment.matched[valid]
    labels = torch.tensor([0, 2, 1, 3])[matched]  # of the three targets; index -1, unmatched, is the background
    expected = decoupled_kl(student_logits, teacher_logits, labels, 1.0, 0.25, 1.0).mean()
    torch.testing.assert_close(method(student_output, teacher_output, targets)["class"], expected)


def test_the_class_branch_learns_and_the_teacher_gets_no_gradient():
    student, teacher = two_stage_pair()
    method = built("dkd", student, teacher)
    method(*sampled_outputs(method, student, teacher))["class"].backward()
    assert parts_with_gradient(student) == {"neck", "box_head", "classes"}
    assert parts_with_gradient(teacher) == set()


def test_the_term_is_zero_if_the_student_is_the_teacher():
    _, teacher = two_stage_pair()
    method = built("dkd", teacher, teacher)
    assert method(*sampled_outputs(method, teacher, teacher))["class"].abs() < 1e-5


def test_one_shared_class_in_another_column_is_enough():
    student, teacher = two_stage_pair()
    teacher = with_classes(teacher, {"ring": "disc", "cross": "cross"})
    method = built("dkd", student, teacher)
    assert (method.shared.student, method.shared.teacher) == ((2,), (1,))
    term = method(*sampled_outputs(method, student, teacher))["class"]
    assert term.isfinite() and term > 0


def test_weights_of_0_are_refused():
    info = tiny("faster_rcnn").info
    for config in (DKDConfig(weight=0.0), DKDConfig(alpha=0.0, beta=0.0)):
        with pytest.raises(UserError, match="method dkd: all its weights are 0"):
            DKD.build(config, info, info)


def test_training_with_it_works():
    check_training("dkd")
