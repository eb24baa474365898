"""DeFeat: the object and the background part, of the neck and of the RoI head."""

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
from tests.methods.pairs import built, method_inputs, pair

HEAD = {"weight_head_object": 2.0, "weight_head_background": 2.0}


def with_identity_connectors(method: nn.Module) -> nn.Module:
    """Returns the method with connectors that are the identity."""
    for connector in method.levels.connectors:
        nn.init.dirac_(connector.weight)
        nn.init.zeros_(connector.bias)
    return method


def test_terms_follow_the_formula():
    student, teacher = pair("retinanet")
    method = built("defeat", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    inside, outside = [], []
    student_levels, teacher_levels = student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels
    levels = zip(method.levels.strides, method.levels.connectors, student_levels, teacher_levels, strict=True)
    for (stride, _), connector, s, t in levels:
        if stride == 8:  # all three boxes are smaller than 112 pixels, so they belong to the finest level
            (mask,) = decoupled_regions(targets.boxes, [s.shape[-2:]], [stride])
        else:
            mask = torch.zeros_like(s[:, 0], dtype=torch.bool)
        mask = mask[:, None].expand_as(s)  # (B, H, W) -> (B, C, H, W)
        squares = (connector(s) - t).square()
        inside.append((squares * mask).sum() / max(1, 2 * mask.sum()))
        outside.append((squares * ~mask).sum() / max(1, 2 * (~mask).sum()))
    terms = method(student_output, teacher_output, targets)
    assert terms.keys() == {"object", "background"}
    torch.testing.assert_close(terms["object"], 3 * torch.stack(inside).mean())
    torch.testing.assert_close(terms["background"], 12 * torch.stack(outside).mean())
    assert terms["object"] > 0


def test_the_connector_starts_near_zero():
    method = built("defeat", *pair("retinanet"))
    weights = torch.cat([connector.weight.flatten() for connector in method.levels.connectors])
    assert weights.abs().max() < 2e-4
    assert 0.7e-4 < weights.std() < 1.0e-4  # the remainder of a normal sample by 2 has a slightly smaller deviation
    assert all(connector.bias.abs().max() > 1e-3 for connector in method.levels.connectors)


def test_terms_are_zero_for_equal_maps_and_only_the_student_gets_a_gradient():
    student, teacher = pair("retinanet")
    method = with_identity_connectors(built("defeat", student, teacher))
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    assert teacher_output.stages == ()
    assert all(term.item() < 1e-9 for term in method(student_output, student_output, targets).values())
    levels = tuple(nn.Parameter(level) for level in teacher_output.pyramids["neck"].levels)
    teacher_output = replace(teacher_output, pyramids={"neck": replace(teacher_output.pyramids["neck"], levels=levels)})
    sum(method(student_output, teacher_output, targets).values()).backward()
    assert all(level.grad is None for level in levels)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())


def test_without_objects_all_cells_are_background():
    student, teacher = pair("retinanet")
    method = with_identity_connectors(built("defeat", student, teacher))
    student_output, teacher_output, targets = method_inputs(method, student, teacher, scene(objects=False))
    terms = method(student_output, teacher_output, targets)
    levels = zip(student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels, strict=True)
    assert terms["object"] == 0
    torch.testing.assert_close(terms["background"], 12 * torch.stack([F.mse_loss(s, t) / 2 for s, t in levels]).mean())


def test_padding_does_not_change_the_object_part():
    student, teacher = pair("retinanet")
    method = built("defeat", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    once = method(student_output, teacher_output, targets)
    padded = []
    for output in (student_output, teacher_output):
        neck = output.pyramids["neck"]
        levels = tuple(
            F.pad(level, (0, 64 // stride, 0, 32 // stride))
            for level, stride in zip(neck.levels, neck.strides, strict=True)
        )
        padded.append(replace(output, pyramids={"neck": replace(neck, levels=levels)}))
    torch.testing.assert_close(method(padded[0], padded[1], targets)["object"], once["object"])


@pytest.mark.parametrize("head", ["retinanet", "faster_rcnn"])
def test_duplicating_the_batch_changes_nothing(head: str):
    student, teacher = pair(head)
    method = built("defeat", student, teacher)
    batch, targets = scene()
    parts = (torch.cat([part, part]) for part in (batch.images, batch.sizes, batch.originals, batch.ids))
    scene_twice = Batch(*parts, batch.names * 2), Targets(targets.boxes * 2, targets.labels * 2)
    once = method(*method_inputs(method, student, teacher, (batch, targets)))
    doubled = method(*method_inputs(method, student, teacher, scene_twice))
    for name, term in once.items():
        torch.testing.assert_close(doubled[name], term, rtol=1e-4, atol=0)


def test_without_channels_in_the_counts_terms_are_larger_by_the_number_of_channels():
    student, teacher = pair("retinanet")
    code = built("defeat", student, teacher, counts="code")
    paper = built("defeat", student, teacher, counts="paper")
    inputs = method_inputs(code, student, teacher)
    for name, term in code(*inputs).items():
        torch.testing.assert_close(paper(*inputs)[name], 32 * term)


def test_the_base_moves_boxes_between_levels():
    student, teacher = pair("retinanet")
    terms = {}
    for base in (56, 20, None):
        method = built("defeat", student, teacher, base=base)
        terms[base] = method(*method_inputs(method, student, teacher))["object"]
    assert terms[56] != terms[20]
    assert terms[56] == terms[None]  # None is 14 strides of 8, or 112 pixels, and no box is larger


def test_a_box_thinner_than_a_cell_is_a_single_cell_unless_it_is_a_strip():
    student, teacher = pair("retinanet")
    batch, _ = scene()
    nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    # At stride 8, x 17..20 covers no cell but begins in column 2, and y 9..41 covers the rows 1 to 4.
    targets = Targets((torch.tensor([[17.0, 9, 20, 41]]), nothing[0]), (torch.tensor([0]), nothing[1]))
    for thin, rows in (("cell", 1), ("strip", 4)):
        method = with_identity_connectors(built("defeat", student, teacher, thin=thin))
        student_output, teacher_output, _ = method_inputs(method, student, teacher, (batch, targets))
        levels = zip(student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels, strict=True)
        student_level, teacher_level = next(iter(levels))
        inside = (student_level - teacher_level)[0, :, 1 : 1 + rows, 2].square()
        expected = 3 * inside.sum() / (2 * inside.numel()) / len(student_output.pyramids["neck"].levels)
        torch.testing.assert_close(method(student_output, teacher_output, targets)["object"], expected)


def test_the_head_terms_split_regions_by_their_label():
    student, teacher = pair("faster_rcnn")
    options = {"weight_head_object": 2.0, "weight_head_background": 5.0, "temperature_background": 3.0}
    method = built("defeat", student, teacher, **options)
    assert method.need == Need(pyramids=frozenset({"neck"}), classify=True)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    terms = method(student_output, teacher_output, targets)
    assert terms.keys() == {"object", "background", "head_object", "head_background"}
    rows = roi_rows(student_output, teacher_output, targets, method.shared)
    is_object = rows.labels < 3
    assert 0 < is_object.sum() < len(is_object)
    object_kl = softmax_kl(rows.student[is_object], rows.teacher[is_object]).mean()
    torch.testing.assert_close(terms["head_object"], 2 * object_kl)
    background_kl = softmax_kl(rows.student[~is_object], rows.teacher[~is_object], 3.0).mean()
    torch.testing.assert_close(terms["head_background"], 5 * background_kl)
    (terms["head_object"] + terms["head_background"]).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0
    student_as_teacher = student.observe(scene()[0], need=method.need)
    terms = method(student_output, student_as_teacher, targets)
    assert terms["head_object"].abs() < 1e-6 and terms["head_background"].abs() < 1e-6


def test_without_objects_the_head_has_no_object_term():
    student, teacher = pair("faster_rcnn")
    method = built("defeat", student, teacher, **HEAD)
    terms = method(*method_inputs(method, student, teacher, scene(objects=False)))
    assert terms["head_object"] == 0
    assert terms["head_background"] > 0
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_build_refuses_unsuitable_detectors_and_options():
    dense, two_stage = tiny("retinanet").info, tiny("faster_rcnn").info
    message = r"the student \(retinanet\) has no RoI head; use two-stage .* weight_head_background to 0"
    with pytest.raises(UserError, match=message):
        DeFeat.build(DeFeatConfig(**HEAD), dense, two_stage)
    with pytest.raises(UserError, match="no class in common"):
        DeFeat.build(DeFeatConfig(**HEAD), replace(two_stage, classes=("cat",)), two_stage)
    DeFeat.build(DeFeatConfig(), replace(two_stage, classes=("cat",)), two_stage)  # the neck has no classes
    with pytest.raises(UserError, match="no level in common"):
        DeFeat.build(DeFeatConfig(), replace(dense, strides=(2,)), dense)
    with pytest.raises(UserError, match="all its weights are 0"):
        DeFeat.build(DeFeatConfig(weight_object=0, weight_background=0), dense, dense)
