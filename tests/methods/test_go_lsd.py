"""GO-LSD between two D-FINEs: LD's divergence on paired queries, weighed as the self-distillation weighs its own."""

from dataclasses import replace

import pytest
import torch

from detdistill.errors import UserError
from detdistill.losses import edge_kl, paired_iou
from detdistill.methods.shared.queries import pair_stages
from detdistill.types import Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, looks, pair


def made():
    student, teacher = pair("d_fine")
    method = built("go_lsd", student, teacher)
    return method, student, teacher, looks(method, student, teacher)


def test_it_is_a_plain_loop_over_queries_and_sides():
    method, _, _, (mine, theirs, targets) = made()
    sizes, total = scene()[0].sizes, 0.0
    for stage in mine.stages:
        (one,) = pair_stages([stage], [theirs.stages[-1]], [(0, 0)], sizes)
        known, others = [], []
        for image in range(2):
            for query in range(stage.boxes.shape[1]):
                partner, truth = int(one.partner[image, query]), int(stage.assignment.matched[image, query])
                sides = edge_kl(stage.edges[image, query], theirs.stages[-1].edges[image, partner], 5.0)
                if truth >= 0:
                    known += [
                        side * paired_iou(stage.boxes[image, query], targets.boxes[image][truth]) for side in sides
                    ]
                else:
                    others += [side * theirs.stages[-1].scores()[image, partner].max() for side in sides]
        a, b = (len(known) / 2) ** 0.5, (len(others) / 2) ** 0.5
        total = total + (a * torch.stack(known).mean() + b * torch.stack(others).mean()) / (a + b)
    torch.testing.assert_close(method(mine, theirs, targets)["edges"], 1.5 * total)


def test_it_is_zero_for_itself_and_teaches_the_student_only():
    method, student, teacher, (mine, theirs, targets) = made()
    value = method(mine, theirs, targets)["edges"]
    assert value > 0
    value.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    again = replace(theirs, stages=mine.stages[-1:])
    assert method(replace(mine, stages=mine.stages[-1:]), again, targets)["edges"].abs() < 1e-6


def test_without_objects_the_others_alone_are_left():
    method, student, teacher, _ = made()
    mine, theirs, targets = looks(method, student, teacher, scene(objects=False))
    assert isinstance(targets, Targets)
    assert method(mine, theirs, targets)["edges"] > 0


def test_bins_must_mean_the_same():
    d_fine = tiny("d_fine").info
    kind = type(built("go_lsd", tiny("d_fine"), tiny("d_fine")))
    with pytest.raises(UserError, match=r"rt_detr.*no side distributions"):
        kind.build(kind.Config(), tiny("rt_detr").info, d_fine)
    with pytest.raises(UserError, match="must mean the same distance"):
        kind.build(kind.Config(), d_fine, replace(d_fine, edges=replace(d_fine.edges, code=(0.5, 8.0))))
    with pytest.raises(UserError, match=r"gfl.*no queries"):
        kind.build(kind.Config(), d_fine, tiny("gfl").info)
