"""DIST: its rows on two-stage and dense pairs, minimum, gradient, refusals."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import relation_match
from detdistill.methods.dist import DIST, DISTConfig
from detdistill.methods.shared.rois import roi_rows
from detdistill.types import Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, looks, pair


@pytest.mark.parametrize("head", ["retinanet", "gfl"])
def test_a_dense_head_is_compared_on_its_positives(head: str):
    student, teacher = pair(head)
    method = built("dist", student, teacher, temperature=2.0, beta=0.5)
    mine, theirs, targets = looks(method, student, teacher)
    positive = mine.stages[-1].assignment.positive
    assert positive.sum() > 2
    rows = (output.stages[-1].logits[positive] for output in (mine, theirs))
    torch.testing.assert_close(method(mine, theirs, targets)["relations"], 2 * relation_match(*rows, 2.0, 0.5, 1.0))


def test_two_stages_are_compared_on_the_students_proposals_with_the_background():
    student, teacher = pair("faster_rcnn")
    method = built("dist", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    rows = roi_rows(mine, theirs, targets, method.shared)
    assert rows.student.shape[1] == 4
    torch.testing.assert_close(
        method(mine, theirs, targets)["relations"], 2 * relation_match(rows.student, rows.teacher)
    )
    # Without objects the rows are background, and there are still rows.
    assert method(*looks(method, student, teacher, scene(objects=False)))["relations"].isfinite()


@pytest.mark.parametrize("head", ["faster_rcnn", "atss"])
def test_teacher_as_student_gives_zero_and_gradient_goes_to_the_student_alone(head: str):
    student, teacher = pair(head)
    method = built("dist", student, teacher)
    assert method(*looks(method, teacher, teacher))["relations"].abs() < 1e-3  # the 1e-8 beside the norms
    method(*looks(method, student, teacher))["relations"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_doubling_the_batch_changes_nothing_and_no_objects_give_zero():
    student, teacher = pair("gfl")
    method = built("dist", student, teacher)
    batch, targets = scene()
    fields = {name: torch.cat([getattr(batch, name)] * 2) for name in ("images", "sizes", "originals", "ids")}
    twice = replace(batch, **fields, names=batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    once, both = (method(*looks(method, student, teacher, what))["relations"] for what in (None, twice))
    torch.testing.assert_close(once, both)
    nothing = method(*looks(method, student, teacher, scene(objects=False)))["relations"]
    nothing.backward()
    assert nothing == 0


def test_what_it_cannot_serve_is_refused_at_build():
    gfl, faster = tiny("gfl").info, tiny("faster_rcnn").info
    for student, teacher, message in (
        (gfl, faster, r"the student \(gfl\) has no RoI head"),
        (tiny("deformable_detr").info, gfl, "no dense head"),
        (gfl, replace(gfl, strides=(8,)), "cell by cell"),
        (gfl, replace(gfl, classes=("ring",)), "no class in common"),
        (gfl, replace(gfl, classes=("disc", "ring")), "the one shared class says nothing; use bckd"),
    ):
        with pytest.raises(UserError, match=message):
            DIST.build(DISTConfig(), student, teacher)
    for nothing in (DISTConfig(weight=0.0), DISTConfig(beta=0.0, gamma=0.0)):
        with pytest.raises(UserError, match="method dist: all its weights are 0"):
            DIST.build(nothing, gfl, gfl)
    assert DIST.build(
        DISTConfig(), faster, replace(faster, classes=("disc",))
    ).two_stage  # the background is the other class
