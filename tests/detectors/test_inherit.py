"""Neck and head of the teacher in a fresh student: by stride, by layer, by class, never the body."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn, maskrcnn_resnet50_fpn, retinanet_resnet50_fpn_v2

from detdistill.detectors.inherit import inherit, inherited
from detdistill.detectors.torchvision.fcos import FCOS
from detdistill.detectors.torchvision.mask_rcnn import adapt
from detdistill.detectors.torchvision.retinanet import RetinaNet
from detdistill.errors import UserError
from detdistill.types import Detector, EdgeInfo, Need
from tests.detectors.builders import CLASSES, SETS, STRIDES, scene, tiny

EVERY = ("retinanet", "fcos", "atss", "gfl", "faster_rcnn", "mask_rcnn", *SETS)
AS_THEY_ARE = tuple(head for head in SETS if head not in ("deformable_detr", "adamixer"))
COARSER = {head: (*STRIDES.get(head, (8, 16, 32)), *(() if head in AS_THEY_ARE else (64,))) for head in EVERY}


def changed(detector: Detector, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in detector.state_dict().items() if not torch.equal(value, before[name])}


def kept(detector: Detector) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


@pytest.mark.parametrize("head", EVERY)
def test_a_student_of_the_teachers_kind_takes_all_but_the_body(head: str):
    # The student's features then pass the teacher's neck and head: on one body the two are one detector.
    student, teacher = (tiny(head, seed, strides=COARSER[head]).eval() for seed in (0, 1))
    body = {id(parameter) for parameter in student.backbone_parameters()}
    inside = {name for name, parameter in student.named_parameters() if id(parameter) in body}
    before = kept(student)
    told = inherit(student, teacher, ("neck", "head"))
    assert not changed(student, before) & inside
    assert all(
        torch.equal(value, teacher.state_dict()[name])
        for name, value in student.state_dict().items()
        if "body" not in name and name not in inside and "backbone.model" not in name
    )
    for line, part in zip(told, ("neck", "head"), strict=True):
        words = line.split()
        assert words[:1] == ["inherited"] and words[1] == words[3] and words[4] == part  # all of them
    with torch.no_grad():
        for mine, theirs in zip(student.backbone_parameters(), teacher.backbone_parameters(), strict=True):
            mine.copy_(theirs)
        one, two = (d.observe(scene()[0], need=Need(predictions=True)).stages[-1] for d in (student, teacher))
    torch.testing.assert_close(one.logits, two.logits)


@pytest.mark.parametrize(("taught", "head"), [("faster_rcnn", "gfl"), ("gfl", "fcos"), ("fcos", "mask_rcnn")])
def test_necks_of_other_heads_meet_by_stride(taught: str, head: str):
    teacher, student = tiny(taught, 1), tiny(head)
    inherit(student, teacher, ("neck",))
    necks = [getattr(detector, "neck", None) or detector.model.backbone for detector in (student, teacher)]
    levels = [{stride: neck.fpn.layer_blocks[i] for i, stride in enumerate(neck.reductions)} for neck in necks]
    shared = levels[0].keys() & levels[1].keys()
    assert shared >= {8, 16, 32}
    assert all(torch.equal(levels[0][stride][0].weight, levels[1][stride][0].weight) for stride in shared)
    fresh = tiny(head)
    assert {name for name in changed(student, kept(fresh)) if "fpn" not in name} == set()


def test_other_widths_of_the_body_leave_the_laterals():
    teacher, student = tiny("gfl", 1, backbone="resnet18"), tiny("gfl")
    before = kept(student)
    assert inherit(student, teacher, ("neck",)) == ("inherited 6 of 12 neck tensors from the teacher",)
    assert changed(student, before) and all(
        "layer_blocks" in name for name in changed(student, before)
    )  # no bias without its weight


def test_torchvisions_own_necks_are_understood():
    host = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    teacher = FCOS(host, CLASSES, (8, 16, 32, 64, 128))
    student = tiny("fcos", channels=256, tower_depth=4, strides=(8, 16, 32, 64, 128))
    told = inherit(student, teacher, ("neck", "head"))
    assert (
        told[0] == "inherited 10 of 16 neck tensors from the teacher"
    )  # three outputs and P6, P7; the laterals read another body
    ours, theirs = student.model.backbone.fpn, host.backbone.fpn
    assert torch.equal(ours.extra_blocks.convolutions[1].weight, theirs.extra_blocks.p7.weight)
    assert torch.equal(
        student.model.head.classification_head.cls_logits.weight, host.head.classification_head.cls_logits.weight
    )
    assert told[1].split()[1] == told[1].split()[3]
    masked = adapt(
        maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4), CLASSES, (4, 8, 16, 32, 64)
    )
    two_stage = tiny("faster_rcnn", channels=256, strides=(4, 8, 16, 32, 64))
    assert inherit(two_stage, masked, ("head",)) == ("inherited 14 of 14 head tensors from the teacher",)
    normed = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=3)
    later = RetinaNet(normed, CLASSES, (8, 16, 32, 64, 128))
    assert not any(
        ".p6." in name for name in inherited(student.state_dict(), later.state_dict(), "neck", student.info, later.info)
    )


@pytest.mark.parametrize(
    ("head", "own"), [("gfl", 2), ("retinanet", 2), ("faster_rcnn", 4), ("mask_rcnn", 6), ("deformable_detr", 4)]
)
def test_another_order_of_classes_leaves_class_predictors_alone(head: str, own: int):
    student, teacher = tiny(head), tiny(head, 1)
    teacher.info = replace(teacher.info, classes=CLASSES[::-1])
    before = kept(student)
    (line,) = inherit(student, teacher, ("head",))
    assert line.endswith("; class predictors are its own, as the classes differ")
    assert int(line.split()[3]) - int(line.split()[1]) == own
    per_class = (
        "classifier",
        "head.cls_logits",
        "cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "mask_fcn_logits",
        "class_embed",
    )
    alone = [name for name in before if any(part in name for part in per_class) and ".rpn." not in name]
    assert len(alone) == own
    assert not set(alone) & changed(student, before)


def test_atss_and_gfl_share_towers_and_the_regressor_only_where_both_have_distributions():
    for edges in (False, True):
        student, teacher = tiny("atss", edges=edges), tiny("gfl", 1)
        inherit(student, teacher, ("head",))
        assert torch.equal(student.head.classification_tower[0].weight, teacher.head.classification_tower[0].weight)
        assert torch.equal(student.head.classifier.weight, teacher.head.classifier.weight)
        same = student.head.regressor.weight.shape == teacher.head.regressor.weight.shape
        assert same is edges
        assert not same or torch.equal(student.head.regressor.weight, teacher.head.regressor.weight)


def test_levels_of_other_strides_have_scales_of_their_own():
    student, teacher = tiny("gfl", strides=(16, 32, 64)), tiny("gfl", 1)
    with torch.no_grad():
        teacher.head.scales.fill_(2.0)
    inherit(student, teacher, ("head",))
    assert torch.equal(student.head.scales, torch.ones(3))


def test_projections_of_levels_of_other_strides_are_not_taken():
    student, teacher = tiny("rt_detr", strides=(16, 32)), tiny("rt_detr", 1)
    before = kept(student)
    inherit(student, teacher, ("head",))
    assert not any("decoder_input_proj" in name for name in changed(student, before))


def test_distributions_of_other_bins_are_not_taken():
    student, teacher = tiny("d_fine"), tiny("d_fine", 1)
    taken = inherited(student.state_dict(), teacher.state_dict(), "head", student.info, teacher.info)
    coded = {name for name in taken if {"up", "reg_scale", "bbox_embed", "lqe_layers"} & set(name.split("."))}
    other = replace(teacher.info, edges=EdgeInfo(33, (0.5, 8.0)))
    assert coded
    assert (
        inherited(student.state_dict(), teacher.state_dict(), "head", student.info, other).keys()
        == taken.keys() - coded
    )


def test_what_fits_nowhere_is_refused_with_the_reason():
    with pytest.raises(
        UserError,
        match="--inherit head: a fcos head shares nothing with the teacher's retinanet head; inherit the neck alone",
    ):
        inherit(tiny("fcos"), tiny("retinanet"), ("head",))
    with pytest.raises(
        UserError,
        match=r"--inherit neck: no layer .* is 32 wide on strides \(8, 16, 32\), the teacher 48 .*--model.channels",
    ):
        inherit(tiny("fcos"), tiny("fcos", channels=48), ("neck",))
