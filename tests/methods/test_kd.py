"""KD on RoI heads: golden numbers by reduction, isolation of gradients, refusals."""

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
from tests.methods.two_stage import STUDENT, TEACHER, check_teaching, duo, renamed, seen, touched


def golden_rows() -> Rows:
    nothing = torch.zeros(4, 9, 4).double()
    return Rows(STUDENT, TEACHER, nothing, nothing, torch.tensor([0, 3, 7, 9]), torch.zeros(4, 4))


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
def test_it_is_golden(reduction: str, temperature: float, golden: float, monkeypatch: pytest.MonkeyPatch):
    info = tiny("faster_rcnn").info
    method = KD.build(KDConfig(reduction=reduction, weight=1.0, temperature=temperature), info, info)
    monkeypatch.setattr(module, "roi_rows", lambda *_: golden_rows())
    term = method(None, None, Targets((), ()))["class"]
    assert term.item() == pytest.approx(golden, rel=1e-9)


def test_a_reduction_brings_its_own_weight_and_temperature():
    info = tiny("faster_rcnn").info
    for config, weight, temperature in (
        (KDConfig(), 0.5, 3.0),
        (KDConfig(reduction="classes_mean"), 10.0, 2.0),
        (KDConfig(reduction="classes_mean", weight=1.0, temperature=5.0), 1.0, 5.0),
    ):
        method = KD.build(config, info, info)
        assert (method.weight, method.temperature) == (weight, temperature)


def test_it_is_the_mean_over_the_students_samples():
    student, teacher = duo()
    method = built("kd", student, teacher)
    assert method.need == Need(classify=True)  # the teacher neither proposes nor classifies its own
    mine, lesson, targets = seen(method, student, teacher)
    assert (len(lesson.stages), lesson.proposals.boxes.shape) == (0, (2, 0, 4))
    own = mine.stages[-1]
    other = lesson.proposals.classify(mine.proposals.boxes)
    columns = [torch.cat([stage.logits, stage.background[..., None]], -1)[own.valid] for stage in (own, other)]
    expected = 0.5 * softmax_kl(*columns, 3.0).mean()
    assert expected > 1e-3
    torch.testing.assert_close(method(mine, lesson, targets)["class"], expected)


def test_the_class_branch_learns_and_nothing_of_the_teacher():
    student, teacher = duo()
    method = built("kd", student, teacher)
    method(*seen(method, student, teacher))["class"].backward()
    assert touched(student) == {"neck", "box_head", "classes"}
    assert touched(teacher) == set()


def test_teacher_as_student_is_zero():
    _, teacher = duo()
    method = built("kd", teacher, teacher)
    assert method(*seen(method, teacher, teacher))["class"].abs() < 1e-5


def test_the_order_of_classes_does_not_matter():
    student, teacher = duo()
    mixed = renamed(teacher, {"cross": "cross", "disc": "disc", "square": "square"})
    plain, turned = (built("kd", student, lecturer) for lecturer in (teacher, mixed))
    torch.testing.assert_close(turned(*seen(turned, student, mixed)), plain(*seen(plain, student, teacher)))


def test_sigmoid_heads_are_sent_elsewhere():
    info = tiny("retinanet").info
    with pytest.raises(
        UserError, match=r"has no RoI head; .* where classes have a sigmoid each, take mimicking or bckd"
    ):
        KD.build(KDConfig(), info, info)
    two = tiny("faster_rcnn").info
    with pytest.raises(UserError, match="its weight is 0"):
        KD.build(KDConfig(weight=0.0), two, two)


def test_it_teaches():
    check_teaching("kd")
