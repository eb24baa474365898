"""GO-LSD between two D-FINEs: LD's divergence on paired queries, with the weights of the self-distillation."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import edge_kl, paired_iou
from detdistill.methods.shared.queries import pair_stages
from detdistill.types import Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, method_inputs, pair


def made():
    """Returns the method, student, teacher, and the inputs of the method."""
    student, teacher = pair("d_fine")
    method = built("go_lsd", student, teacher)
    return method, student, teacher, method_inputs(method, student, teacher)


def test_the_term_equals_a_plain_loop_over_queries_and_sides():
    method, _, _, (student_output, teacher_output, targets) = made()
    sizes, total = scene()[0].sizes, 0.0
    teacher_stage = teacher_output.stages[-1]
    for stage in student_output.stages:
        (stage_pair,) = pair_stages([stage], [teacher_stage], [(0, 0)], sizes)
        matched, unmatched = [], []
        for image in range(2):
            for query in range(stage.boxes.shape[1]):
                partner = int(stage_pair.partner[image, query])
                truth = int(stage.assignment.matched[image, query])
                sides = edge_kl(stage.edges[image, query], teacher_stage.edges[image, partner], 5.0)
                if truth >= 0:
                    iou = paired_iou(stage.boxes[image, query], targets.boxes[image][truth])
                    matched += [side * iou for side in sides]
                else:
                    unmatched += [side * teacher_stage.scores()[image, partner].max() for side in sides]
        a, b = (len(matched) / 2) ** 0.5, (len(unmatched) / 2) ** 0.5
        total = total + (a * torch.stack(matched).mean() + b * torch.stack(unmatched).mean()) / (a + b)
    torch.testing.assert_close(method(student_output, teacher_output, targets)["edges"], 1.5 * total)


def test_zero_for_equal_stages_and_only_the_student_gets_a_gradient():
    method, student, teacher, (student_output, teacher_output, targets) = made()
    value = method(student_output, teacher_output, targets)["edges"]
    assert value > 0
    value.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    last = student_output.stages[-1:]
    assert (
        method(replace(student_output, stages=last), replace(teacher_output, stages=last), targets)["edges"].abs()
        < 1e-6
    )


def test_without_objects_only_unmatched_queries_count():
    method, student, teacher, _ = made()
    student_output, teacher_output, targets = method_inputs(method, student, teacher, scene(objects=False))
    assert isinstance(targets, Targets)
    assert method(student_output, teacher_output, targets)["edges"] > 0


def test_bins_must_mean_the_same_distance():
    d_fine = tiny("d_fine").info
    kind = type(built("go_lsd", tiny("d_fine"), tiny("d_fine")))
    with pytest.raises(UserError, match=r"rt_detr.*no side distributions"):
        kind.build(kind.Config(), tiny("rt_detr").info, d_fine)
    with pytest.raises(UserError, match="must mean the same distance"):
        kind.build(kind.Config(), d_fine, replace(d_fine, edges=replace(d_fine.edges, code=(0.5, 8.0))))
    with pytest.raises(UserError, match=r"gfl.*no queries"):
        kind.build(kind.Config(), d_fine, tiny("gfl").info)
