"""DeFeat: two parts of the neck and of the RoI head."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detdistill.errors import UserError
from detdistill.geometry import decoupled_regions
from detdistill.losses import softmax_kl
from detdistill.methods.defeat import DeFeat, DeFeatConfig
from detdistill.methods.shared.rois import roi_rows
from detdistill.types import Batch, Need, Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, looks, pair

HEAD = {"weight_head_object": 2.0, "weight_head_background": 2.0}


def identity(method):
    """Its connectors as if they were not there."""
    for layer in method.levels.connectors:
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    return method


def test_it_is_the_formula_over_levels():
    student, teacher = pair("retinanet")
    method = built("defeat", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    inside, outside = [], []
    for (stride, _), layer, s, t in zip(
        method.levels.strides,
        method.levels.connectors,
        mine.pyramids["neck"].levels,
        theirs.pyramids["neck"].levels,
        strict=True,
    ):
        # All three boxes are smaller than 112 pixels: level 0, whatever its stride.
        mask = (
            decoupled_regions(targets.boxes, [s.shape[-2:]], [stride])[0]
            if stride == 8
            else torch.zeros_like(s[:, 0], dtype=torch.bool)
        )
        mask = mask[:, None].expand_as(s)
        squares = (layer(s) - t).square()
        inside.append((squares * mask).sum() / max(1, 2 * mask.sum()))
        outside.append((squares * ~mask).sum() / max(1, 2 * (~mask).sum()))
    terms = method(mine, theirs, targets)
    assert terms.keys() == {"object", "background"}
    torch.testing.assert_close(terms["object"], 3 * torch.stack(inside).mean())
    torch.testing.assert_close(terms["background"], 12 * torch.stack(outside).mean())
    assert terms["object"] > 0


def test_the_connector_begins_near_zero():
    method = built("defeat", *pair("retinanet"))
    weights = torch.cat([layer.weight.flatten() for layer in method.levels.connectors])
    assert weights.abs().max() < 2e-4
    assert 0.7e-4 < weights.std() < 1.0e-4  # a normal's remainder by 2 is a little narrower than the normal
    assert all(layer.bias.abs().max() > 1e-3 for layer in method.levels.connectors)


def test_it_is_zero_for_itself_and_teaches_the_student_only():
    student, teacher = pair("retinanet")
    method = identity(built("defeat", student, teacher))
    mine, theirs, targets = looks(method, student, teacher)
    assert theirs.stages == ()
    assert all(term.item() < 1e-9 for term in method(mine, mine, targets).values())
    levels = tuple(nn.Parameter(level) for level in theirs.pyramids["neck"].levels)
    theirs = replace(theirs, pyramids={"neck": replace(theirs.pyramids["neck"], levels=levels)})
    sum(method(mine, theirs, targets).values()).backward()
    assert all(level.grad is None for level in levels)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())


def test_without_objects_all_is_background():
    student, teacher = pair("retinanet")
    method = identity(built("defeat", student, teacher))
    mine, theirs, targets = looks(method, student, teacher, scene(objects=False))
    terms = method(mine, theirs, targets)
    levels = zip(mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels, strict=True)
    assert terms["object"] == 0
    torch.testing.assert_close(terms["background"], 12 * torch.stack([F.mse_loss(s, t) / 2 for s, t in levels]).mean())


def test_the_object_part_stays_when_the_batch_is_padded_further():
    student, teacher = pair("retinanet")
    method = built("defeat", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    once = method(mine, theirs, targets)
    padded = []
    for output in (mine, theirs):
        neck = output.pyramids["neck"]
        levels = tuple(
            F.pad(level, (0, 64 // stride, 0, 32 // stride))
            for level, stride in zip(neck.levels, neck.strides, strict=True)
        )
        padded.append(replace(output, pyramids={"neck": replace(neck, levels=levels)}))
    torch.testing.assert_close(method(padded[0], padded[1], targets)["object"], once["object"])


@pytest.mark.parametrize("head", ["retinanet", "faster_rcnn"])
def test_a_batch_twice_is_no_more_than_once(head: str):
    student, teacher = pair(head)
    method = built("defeat", student, teacher)
    batch, targets = scene()
    parts = (torch.cat([part, part]) for part in (batch.images, batch.sizes, batch.originals, batch.ids))
    twice = Batch(*parts, batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    once, doubled = (method(*looks(method, student, teacher, scenery)) for scenery in ((batch, targets), twice))
    for name, term in once.items():
        torch.testing.assert_close(doubled[name], term, rtol=1e-4, atol=0)


def test_counting_cells_alone_weighs_as_many_times_more_as_there_are_channels():
    student, teacher = pair("retinanet")
    code, paper = (built("defeat", student, teacher, counts=counts) for counts in ("code", "paper"))
    inputs = looks(code, student, teacher)
    for name, term in code(*inputs).items():
        torch.testing.assert_close(paper(*inputs)[name], 32 * term)


def test_the_base_moves_boxes_between_levels():
    student, teacher = pair("retinanet")
    terms = [
        built("defeat", student, teacher, base=base)(*looks(built("defeat", student, teacher), student, teacher))
        for base in (56, 20, None)
    ]
    assert terms[0]["object"] != terms[1]["object"]
    assert terms[0]["object"] == terms[2]["object"]  # 14 strides of 8: 112, and no box is larger


def test_the_head_splits_its_rows_by_what_they_were_sampled_for():
    student, teacher = pair("faster_rcnn")
    method = built(
        "defeat", student, teacher, weight_head_object=2.0, weight_head_background=5.0, temperature_background=3.0
    )
    assert method.need == Need(pyramids=frozenset({"neck"}), classify=True)
    mine, theirs, targets = looks(method, student, teacher)
    terms = method(mine, theirs, targets)
    assert terms.keys() == {"object", "background", "head_object", "head_background"}
    rows = roi_rows(mine, theirs, targets, method.shared)
    objects = rows.labels < 3
    assert 0 < objects.sum() < len(objects)
    torch.testing.assert_close(
        terms["head_object"], 2 * softmax_kl(rows.student[objects], rows.teacher[objects]).mean()
    )
    torch.testing.assert_close(
        terms["head_background"], 5 * softmax_kl(rows.student[~objects], rows.teacher[~objects], 3.0).mean()
    )
    (terms["head_object"] + terms["head_background"]).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0
    itself = student.observe(scene()[0], need=method.need)
    terms = method(mine, itself, targets)
    assert terms["head_object"].abs() < 1e-6 and terms["head_background"].abs() < 1e-6


def test_without_objects_the_head_has_no_object_rows():
    student, teacher = pair("faster_rcnn")
    method = built("defeat", student, teacher, **HEAD)
    terms = method(*looks(method, student, teacher, scene(objects=False)))
    assert terms["head_object"] == 0
    assert terms["head_background"] > 0
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_what_it_can_not_serve_is_refused_at_build():
    dense, two_stage = tiny("retinanet").info, tiny("faster_rcnn").info
    with pytest.raises(
        UserError, match=r"the student \(retinanet\) has no RoI head; take two-stage .* weight_head_background at 0"
    ):
        DeFeat.build(DeFeatConfig(**HEAD), dense, two_stage)
    with pytest.raises(UserError, match="no class in common"):
        DeFeat.build(DeFeatConfig(**HEAD), replace(two_stage, classes=("cat",)), two_stage)
    DeFeat.build(DeFeatConfig(), replace(two_stage, classes=("cat",)), two_stage)  # the neck knows no classes
    with pytest.raises(UserError, match="no level in common"):
        DeFeat.build(DeFeatConfig(), replace(dense, strides=(2,)), dense)
    with pytest.raises(UserError, match="all its weights are 0"):
        DeFeat.build(DeFeatConfig(weight_object=0, weight_background=0), dense, dense)
