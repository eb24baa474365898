"""KD on RoI heads: golden numbers per reduction, gradients, refusals."""

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import softmax_kl
from detdistill.methods import kd as module
from detdistill.methods.kd import KD, KDConfig
from detdistill.methods.shared.rois import Rows
from detdistill.types import Need, Targets
from tests.detectors.builders import tiny
from tests.methods.pairs import built
from tests.methods.two_stage import (
    STUDENT,
    TEACHER,
    check_training,
    parts_with_gradient,
    sampled_outputs,
    two_stage_pair,
    with_classes,
)


def golden_rows() -> Rows:
    """Returns the rows of the golden numbers, with box codes of 0."""
    deltas = torch.zeros(4, 9, 4).double()
    return Rows(STUDENT, TEACHER, deltas, deltas, torch.tensor([0, 3, 7, 9]), torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("reduction", "temperature", "golden"),
    [
        ("classes_sum", 1.0, 2.3697012326439073),
        ("classes_sum", 2.0, 3.5579301165715944),
        ("classes_sum", 4.0, 4.256155069292156),
        ("classes_mean", 2.0, 0.3557930116571593),
        ("classes_mean", 10.0, 0.4554144459070017),
    ],
)
def test_golden_numbers(reduction: str, temperature: float, golden: float, monkeypatch: pytest.MonkeyPatch):
    info = tiny("faster_rcnn").info
    method = KD.build(KDConfig(reduction=reduction, weight=1.0, temperature=temperature), info, info)
    monkeypatch.setattr(module, "roi_rows", lambda *_: golden_rows())
    term = method(None, None, Targets((), ()))["class"]
    assert term.item() == pytest.approx(golden, rel=1e-9)


def test_each_reduction_has_its_own_weight_and_temperature():
    info = tiny("faster_rcnn").info
    for config, weight, temperature in (
        (KDConfig(), 0.5, 3.0),
        (KDConfig(reduction="classes_mean"), 10.0, 2.0),
        (KDConfig(reduction="classes_mean", weight=1.0, temperature=5.0), 1.0, 5.0),
    ):
        method = KD.build(config, info, info)
        assert (method.weight, method.temperature) == (weight, temperature)


def test_it_is_the_mean_over_the_students_samples():
    student, teacher = two_stage_pair()
    method = built("kd", student, teacher)
    assert method.need == Need(classify=True)  # the teacher's RPN is not run
    student_output, teacher_output, targets = sampled_outputs(method, student, teacher)
    assert (len(teacher_output.stages), teacher_output.proposals.boxes.shape) == (0, (2, 0, 4))
    student_predictions = student_output.stages[-1]
    teacher_predictions = teacher_output.proposals.classify(student_output.proposals.boxes)
    student_logits, teacher_logits = [
        torch.cat([stage.logits, stage.background[..., None]], -1)[student_predictions.valid]
        for stage in (student_predictions, teacher_predictions)
    ]
    expected = 0.5 * softmax_kl(student_logits, teacher_logits, 3.0).mean()
    assert expected > 1e-3
    torch.testing.assert_close(method(student_output, teacher_output, targets)["class"], expected)


def test_the_class_branch_learns_and_the_teacher_gets_no_gradient():
    student, teacher = two_stage_pair()
    method = built("kd", student, teacher)
    method(*sampled_outputs(method, student, teacher))["class"].backward()
    assert parts_with_gradient(student) == {"neck", "box_head", "classes"}
    assert parts_with_gradient(teacher) == set()


def test_the_term_is_zero_if_the_student_is_the_teacher():
    _, teacher = two_stage_pair()
    method = built("kd", teacher, teacher)
    assert method(*sampled_outputs(method, teacher, teacher))["class"].abs() < 1e-5


def test_the_order_of_classes_does_not_matter():
    student, teacher = two_stage_pair()
    reordered = with_classes(teacher, {"cross": "cross", "disc": "disc", "square": "square"})
    terms = []
    for some_teacher in (teacher, reordered):
        method = built("kd", student, some_teacher)
        terms.append(method(*sampled_outputs(method, student, some_teacher)))
    torch.testing.assert_close(terms[1], terms[0])


def test_sigmoid_heads_are_refused_with_an_alternative():
    retinanet, faster = tiny("retinanet").info, tiny("faster_rcnn").info
    with pytest.raises(UserError, match=r"has no RoI head; .* for sigmoid scores use mimicking or bckd"):
        KD.build(KDConfig(), retinanet, retinanet)
    with pytest.raises(UserError, match="its weight is 0"):
        KD.build(KDConfig(weight=0.0), faster, faster)


def test_training_with_it_works():
    check_training("kd")
