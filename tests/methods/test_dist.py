"""DIST: its rows for two-stage and dense pairs, minimum, gradient, refusals."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import relation_match
from detdistill.methods.dist import DIST, DISTConfig
from detdistill.methods.shared.rois import roi_rows
from detdistill.types import Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, method_inputs, pair


@pytest.mark.parametrize("head", ["retinanet", "gfl"])
def test_dense_heads_are_compared_on_the_students_positives(head: str):
    student, teacher = pair(head)
    method = built("dist", student, teacher, temperature=2.0, beta=0.5)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    positive = student_output.stages[-1].assignment.positive
    assert positive.sum() > 2
    student_logits, teacher_logits = (output.stages[-1].logits[positive] for output in (student_output, teacher_output))
    expected = 2 * relation_match(student_logits, teacher_logits, 2.0, 0.5, 1.0)
    torch.testing.assert_close(method(student_output, teacher_output, targets)["relations"], expected)


def test_two_stages_are_compared_on_the_students_proposals_with_the_background():
    student, teacher = pair("faster_rcnn")
    method = built("dist", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    rows = roi_rows(student_output, teacher_output, targets, method.shared)
    assert rows.student.shape[1] == 4
    expected = 2 * relation_match(rows.student, rows.teacher)
    torch.testing.assert_close(method(student_output, teacher_output, targets)["relations"], expected)
    # Without objects all rows are background; they are compared too.
    assert method(*method_inputs(method, student, teacher, scene(objects=False)))["relations"].isfinite()


@pytest.mark.parametrize("head", ["faster_rcnn", "atss"])
def test_the_term_is_zero_if_the_student_is_the_teacher_and_only_the_student_gets_gradient(head: str):
    student, teacher = pair(head)
    method = built("dist", student, teacher)
    assert (
        method(*method_inputs(method, teacher, teacher))["relations"].abs() < 1e-3
    )  # because 1e-8 is added to the norms
    method(*method_inputs(method, student, teacher))["relations"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_doubled_batch_changes_nothing_and_a_batch_without_objects_is_zero():
    student, teacher = pair("gfl")
    method = built("dist", student, teacher)
    batch, targets = scene()
    tensors = {name: torch.cat([getattr(batch, name)] * 2) for name in ("images", "sizes", "originals", "ids")}
    doubled_scene = replace(batch, **tensors, names=batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    single = method(*method_inputs(method, student, teacher))["relations"]
    doubled = method(*method_inputs(method, student, teacher, doubled_scene))["relations"]
    torch.testing.assert_close(single, doubled)
    without_objects = method(*method_inputs(method, student, teacher, scene(objects=False)))["relations"]
    without_objects.backward()
    assert without_objects == 0


def test_unsupported_pairs_are_refused_at_build():
    gfl, faster = tiny("gfl").info, tiny("faster_rcnn").info
    for student, teacher, message in (
        (gfl, faster, r"the student \(gfl\) has no RoI head"),
        (tiny("deformable_detr").info, gfl, "no dense head"),
        (gfl, replace(gfl, strides=(8,)), "cell by cell"),
        (gfl, replace(gfl, classes=("ring",)), "no class in common"),
        (gfl, replace(gfl, classes=("disc", "ring")), "the one shared class is always 1; use bckd"),
    ):
        with pytest.raises(UserError, match=message):
            DIST.build(DISTConfig(), student, teacher)
    for config in (DISTConfig(weight=0.0), DISTConfig(beta=0.0, gamma=0.0)):
        with pytest.raises(UserError, match="method dist: all its weights are 0"):
            DIST.build(config, gfl, gfl)
    # With two stages one shared class is enough, because the background is the second class.
    assert DIST.build(DISTConfig(), faster, replace(faster, classes=("disc",))).two_stage
