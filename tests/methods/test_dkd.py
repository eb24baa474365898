"""DKD on RoI heads: golden number, published options, the background as a label, refusals."""

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
from tests.methods.two_stage import check_teaching, duo, renamed, seen, touched


def test_it_is_golden_and_its_parts_weigh_apart(monkeypatch: pytest.MonkeyPatch):
    info = tiny("faster_rcnn").info
    monkeypatch.setattr(module, "roi_rows", lambda *_: golden_rows())

    def term(**options: float) -> float:
        return DKD.build(DKDConfig(**options), info, info)(None, None, Targets((), ()))["class"].item()

    # Targets [0, 3, 7, 9], of which 9 is the background here.
    assert term(alpha=1.0, beta=8.0, temperature=4.0) == pytest.approx(36.26705886481297, rel=1e-6)
    assert term(alpha=1.0, beta=0.0, temperature=4.0) == pytest.approx(0.17337103858608266, rel=1e-6)
    assert term(alpha=0.0, beta=1.0, temperature=4.0) == pytest.approx(4.51171097827836, rel=1e-6)
    assert term(alpha=1.0, beta=8.0, temperature=4.0, weight=2.0) == pytest.approx(2 * 36.26705886481297, rel=1e-6)


def test_its_defaults_are_those_published_for_detection():
    student, teacher = duo()
    method = built("dkd", student, teacher)
    assert method.config == DKDConfig(alpha=1.0, beta=0.25, temperature=1.0, weight=1.0)
    mine, lesson, targets = seen(method, student, teacher)
    own, other = mine.stages[-1], lesson.proposals.classify(mine.proposals.boxes)
    columns = [torch.cat([stage.logits, stage.background[..., None]], -1)[own.valid] for stage in (own, other)]
    matched = own.assignment.matched[own.valid]
    labels = torch.tensor([0, 2, 1, 3])[matched]  # of the three targets; -1 is the last: the background
    expected = decoupled_kl(*columns, labels, 1.0, 0.25, 1.0).mean()
    torch.testing.assert_close(method(mine, lesson, targets)["class"], expected)


def test_the_class_branch_learns_and_nothing_of_the_teacher():
    student, teacher = duo()
    method = built("dkd", student, teacher)
    method(*seen(method, student, teacher))["class"].backward()
    assert touched(student) == {"neck", "box_head", "classes"}
    assert touched(teacher) == set()


def test_teacher_as_student_is_zero():
    _, teacher = duo()
    method = built("dkd", teacher, teacher)
    assert method(*seen(method, teacher, teacher))["class"].abs() < 1e-5


def test_one_shared_class_in_another_place_will_do():
    student, teacher = duo()
    other = renamed(teacher, {"ring": "disc", "cross": "cross"})
    method = built("dkd", student, other)
    assert (method.shared.student, method.shared.teacher) == ((2,), (1,))
    term = method(*seen(method, student, other))["class"]
    assert term.isfinite() and term > 0


def test_weights_of_nothing_are_refused():
    info = tiny("faster_rcnn").info
    for config in (DKDConfig(weight=0.0), DKDConfig(alpha=0.0, beta=0.0)):
        with pytest.raises(UserError, match="method dkd: all its weights are 0"):
            DKD.build(config, info, info)


def test_it_teaches():
    check_teaching("dkd")
