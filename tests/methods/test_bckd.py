"""BCKD: hand values, where its gradient goes, what doubles, padding, refusals."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import giou_distance
from detdistill.methods.bckd import BCKD, BCKDConfig
from detdistill.methods.shared.classes import SharedClasses
from detdistill.types import Assignment, DetectorOutput, Predictions, Targets
from tests.detectors.builders import DENSE, scene, tiny
from tests.methods.pairs import built, looks, pair


def test_terms_by_hand():
    # Two rows, two classes. Student 1/2 everywhere; teacher 3/4 and 1/2, then 1/2 and 1/2. |1/4| BCE(1/2, 3/4) = ln 2 / 4, by two positives.
    # Boxes: a 2 x 2 square one pixel aside, 1 - GIoU = 2/3, times the gap of 1/4, times 4; the second row's boxes differ too, its gap is 0.
    square = torch.tensor([0.0, 0, 2, 2])
    boxes = (square + torch.tensor([1.0, 0, 1, 0])).expand(1, 2, 4)
    valid = torch.ones(1, 2, dtype=torch.bool)
    assignment = Assignment(torch.tensor([[0, -1]]), valid, torch.tensor(2.0))
    taught = torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]).log().requires_grad_()
    guess = torch.zeros(1, 2, 2, requires_grad=True)
    outputs = []
    for logits, where in ((guess, boxes), (taught, square.expand(1, 2, 4))):
        outputs.append(DetectorOutput({}, (Predictions(logits, "sigmoid", where, valid, assignment=assignment),)))
    method = BCKD(BCKDConfig(), SharedClasses((0, 1), (0, 1), (2, 2)))
    terms = method(*outputs, Targets((), ()))
    assert terms["class"].item() == pytest.approx(0.6931472 / 4 / 2)
    assert terms["box"].item() == pytest.approx(4 * (2 / 3) * (1 / 4) / 2)
    assert not terms["box"].requires_grad  # the gap is a constant, and these boxes have no gradient
    terms["class"].backward()
    # The factor has a gradient: d/dz |p - t| BCE = -p(1 - p) ln 2 + |p - t| (p - t) = -ln 2 / 4 - 1/16.
    assert guess.grad[0, 0, 0].item() == pytest.approx((-0.6931472 / 4 - 1 / 16) / 2)
    assert taught.grad is None


@pytest.mark.parametrize("head", DENSE)
def test_teacher_as_student_gives_zero_and_all_of_the_head_learns(head: str):
    student, teacher = pair(head)
    method = built("bckd", student, teacher)
    assert all(term.abs() < 1e-6 for term in method(*looks(method, teacher, teacher)).values())
    sum(method(*looks(method, student, teacher)).values()).backward()
    unread = ("bbox_ctrness", "quality")
    assert all(p.grad is not None for n, p in student.named_parameters() if not any(part in n for part in unread))
    assert all(p.grad is None for p in teacher.parameters())


def test_boxes_weigh_as_the_largest_difference_of_scores():
    student, teacher = pair("atss")
    method = built("bckd", student, teacher, weight_class=0.0)
    mine, theirs, targets = looks(method, student, teacher)
    guess, taught = mine.stages[-1], theirs.stages[-1]
    gap = (guess.scores() - taught.scores()).abs().amax(-1) * guess.assignment.valid
    expected = 4 * (giou_distance(guess.boxes, taught.boxes) * gap).sum() / guess.assignment.num_positives
    terms = method(mine, theirs, targets)
    assert terms.keys() == {"box"}
    torch.testing.assert_close(terms["box"], expected)


def test_doubling_or_padding_the_batch_changes_nothing():
    student, teacher = pair("gfl")
    method = built("bckd", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    once = method(mine, theirs, targets)
    batch, _ = scene()
    fields = {name: torch.cat([getattr(batch, name)] * 2) for name in ("images", "sizes", "originals", "ids")}
    twice = replace(batch, **fields, names=batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    for name, term in method(*looks(method, student, teacher, twice)).items():
        torch.testing.assert_close(term, once[name])
    valid = mine.stages[-1].valid
    loud = replace(theirs.stages[-1], logits=theirs.stages[-1].logits.masked_fill(~valid[..., None], 20.0))
    for name, term in method(mine, replace(theirs, stages=(loud,)), targets).items():
        torch.testing.assert_close(term, once[name])


@pytest.mark.parametrize("head", DENSE)
def test_a_batch_without_objects_is_finite(head: str):
    student, teacher = pair(head)
    method = built("bckd", student, teacher)
    terms = method(*looks(method, student, teacher, scene(objects=False)))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())


def test_what_it_cannot_serve_is_refused_at_build():
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
