"""A fresh student inherits neck and head of its teacher: by stride, by layer, by class, and never the backbone."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn, maskrcnn_resnet50_fpn, retinanet_resnet50_fpn_v2

from detdistill.detectors.inherit import inherit, inherited_tensors
from detdistill.detectors.torchvision.fcos import FCOS
from detdistill.detectors.torchvision.mask_rcnn import adapt
from detdistill.detectors.torchvision.retinanet import RetinaNet
from detdistill.errors import UserError
from detdistill.types import Detector, EdgeInfo, Need
from tests.detectors.builders import CLASSES, SETS, STRIDES, scene, tiny

HEADS = ("retinanet", "fcos", "atss", "gfl", "faster_rcnn", "mask_rcnn", *SETS)
FIXED_STRIDES = tuple(head for head in SETS if head not in ("deformable_detr", "adamixer"))
# Where the head allows it, one more level than the backbone has, so that extra levels are inherited too.
STRIDES_WITH_EXTRA = {head: (*STRIDES.get(head, (8, 16, 32)), 64) for head in HEADS if head not in FIXED_STRIDES}
STRIDES_WITH_EXTRA |= {head: STRIDES.get(head, (8, 16, 32)) for head in FIXED_STRIDES}


def copy_of_state(detector: Detector) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


def changed_tensors(detector: Detector, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the detector's tensors that differ from `before`."""
    return {name for name, value in detector.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("head", HEADS)
def test_a_student_of_the_same_kind_inherits_everything_but_the_backbone(head: str):
    student, teacher = (tiny(head, seed, strides=STRIDES_WITH_EXTRA[head]).eval() for seed in (0, 1))
    backbone_ids = {id(parameter) for parameter in student.backbone_parameters()}
    backbone_names = {name for name, parameter in student.named_parameters() if id(parameter) in backbone_ids}
    before = copy_of_state(student)
    messages = inherit(student, teacher, ("neck", "head"))
    assert not changed_tensors(student, before) & backbone_names
    assert all(
        torch.equal(value, teacher.state_dict()[name])
        for name, value in student.state_dict().items()
        if "body" not in name and name not in backbone_names and "backbone.model" not in name
    )
    for message, part in zip(messages, ("neck", "head"), strict=True):
        words = message.split()
        assert words[:1] == ["inherited"] and words[1] == words[3] and words[4] == part  # all tensors of the part
    # With equal backbones, the two detectors are equal.
    with torch.no_grad():
        pairs = zip(student.backbone_parameters(), teacher.backbone_parameters(), strict=True)
        for student_parameter, teacher_parameter in pairs:
            student_parameter.copy_(teacher_parameter)
        need = Need(predictions=True)
        student_logits, teacher_logits = (
            d.observe(scene()[0], need=need).stages[-1].logits for d in (student, teacher)
        )
    torch.testing.assert_close(student_logits, teacher_logits)


@pytest.mark.parametrize(("teacher_head", "head"), [("faster_rcnn", "gfl"), ("gfl", "fcos"), ("fcos", "mask_rcnn")])
def test_necks_of_different_heads_are_matched_by_stride(teacher_head: str, head: str):
    teacher, student = tiny(teacher_head, 1), tiny(head)
    inherit(student, teacher, ("neck",))
    necks = [getattr(detector, "neck", None) or detector.model.backbone for detector in (student, teacher)]
    student_levels, teacher_levels = (
        {stride: neck.fpn.layer_blocks[index] for index, stride in enumerate(neck.reductions)} for neck in necks
    )
    strides = student_levels.keys() & teacher_levels.keys()
    assert strides >= {8, 16, 32}
    assert all(torch.equal(student_levels[s][0].weight, teacher_levels[s][0].weight) for s in strides)
    assert all("fpn" in name for name in changed_tensors(student, copy_of_state(tiny(head))))


def test_lateral_convolutions_are_not_inherited_from_another_backbone_width():
    teacher, student = tiny("gfl", 1, backbone="resnet18"), tiny("gfl")
    before = copy_of_state(student)
    assert inherit(student, teacher, ("neck",)) == ("inherited 6 of 12 neck tensors from the teacher",)
    names = changed_tensors(student, before)
    assert names and all("layer_blocks" in name for name in names)  # no bias is copied without its weight


@pytest.mark.parametrize("head", ["retinanet", "fcos", "atss", "gfl"])
def test_separable_convolutions_and_the_second_path_are_inherited_whole(head: str):
    options = {"depthwise": True, "neck": "pafpn", "strides": (8, 16, 32, 64)}
    student, teacher = tiny(head, **options), tiny(head, 1, **options)
    for message in inherit(student, teacher, ("neck", "head")):
        words = message.split()
        assert words[1] == words[3] and message.endswith("from the teacher")
    names = [name for name in student.state_dict() if ".body." not in name]
    assert sum(".pointwise." in name for name in names) > 10
    assert all(torch.equal(student.state_dict()[name], teacher.state_dict()[name]) for name in names)


def test_the_second_path_is_matched_by_the_stride_that_it_leads_to():
    student, teacher = tiny("gfl", neck="pafpn", strides=(16, 32)), tiny("gfl", 1, neck="pafpn")
    inherit(student, teacher, ("neck",))
    path, teacher_path = student.neck.fpn.extra_blocks, teacher.neck.fpn.extra_blocks
    assert torch.equal(path.down_blocks[0].weight, teacher_path.down_blocks[1].weight)
    assert torch.equal(path.out_blocks[0].weight, teacher_path.out_blocks[1].weight)


def test_a_pafpn_inherits_the_layers_of_an_fpn_and_keeps_its_second_path():
    options = {"strides": (8, 16, 32, 64)}
    student, teacher = tiny("gfl", neck="pafpn", **options), tiny("gfl", 1, **options)
    before = copy_of_state(student)
    assert inherit(student, teacher, ("neck",)) == ("inherited 14 of 22 neck tensors from the teacher",)
    fpn, teacher_fpn = student.neck.fpn, teacher.neck.fpn
    assert torch.equal(fpn.layer_blocks[2][0].weight, teacher_fpn.layer_blocks[2][0].weight)
    extra = fpn.extra_blocks.coarser.convolutions[0]
    assert torch.equal(extra.weight, teacher_fpn.extra_blocks.convolutions[0].weight)
    assert not any("down_blocks" in name or "out_blocks" in name for name in changed_tensors(student, before))


@pytest.mark.parametrize("head", ["fcos", "gfl"])
def test_a_separable_student_of_a_plain_teacher_inherits_only_lateral_convolutions(head: str):
    student, teacher = tiny(head, depthwise=True), tiny(head, 1)
    before = copy_of_state(student)
    (message,) = inherit(student, teacher, ("neck",))
    reason = "3x3 convolutions start fresh, because only one of the two detectors has --model.depthwise"
    assert message == f"inherited 6 of 15 neck tensors from the teacher; {reason}"
    assert all("inner_blocks" in name for name in changed_tensors(student, before))
    problem = "only one of the two has them separable; give student and teacher the same --model.depthwise"
    for pair in ((student, teacher), (teacher, student)):
        with pytest.raises(UserError, match=f"--inherit head: separable and plain.*{problem}"):
            inherit(*pair, ("head",))
    with pytest.raises(UserError, match=f"--inherit neck: separable and plain.*{problem}"):
        inherit(student, tiny(head, backbone="resnet18"), ("neck",))


def test_names_of_torchvision_are_understood():
    fcos_host = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    teacher = FCOS(fcos_host, CLASSES, (8, 16, 32, 64, 128))
    student = tiny("fcos", channels=256, tower_depth=4, strides=(8, 16, 32, 64, 128))
    messages = inherit(student, teacher, ("neck", "head"))
    # Three output convolutions and P6, P7. The lateral convolutions read another backbone.
    assert messages[0] == "inherited 10 of 16 neck tensors from the teacher"
    student_fpn, host_fpn = student.model.backbone.fpn, fcos_host.backbone.fpn
    assert torch.equal(student_fpn.extra_blocks.convolutions[1].weight, host_fpn.extra_blocks.p7.weight)
    student_head, host_head = student.model.head.classification_head, fcos_host.head.classification_head
    assert torch.equal(student_head.cls_logits.weight, host_head.cls_logits.weight)
    assert messages[1].split()[1] == messages[1].split()[3]
    mask_host = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    mask_teacher = adapt(mask_host, CLASSES, (4, 8, 16, 32, 64))
    two_stage = tiny("faster_rcnn", channels=256, strides=(4, 8, 16, 32, 64))
    assert inherit(two_stage, mask_teacher, ("head",)) == ("inherited 14 of 14 head tensors from the teacher",)
    # P6 of this host reads a map of the backbone, and has another width.
    retinanet_host = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=3)
    retinanet = RetinaNet(retinanet_host, CLASSES, (8, 16, 32, 64, 128))
    tensors = inherited_tensors(student.state_dict(), retinanet.state_dict(), "neck", student.info, retinanet.info)
    assert not any(".p6." in name for name in tensors)


@pytest.mark.parametrize(
    ("head", "count"), [("gfl", 2), ("retinanet", 2), ("faster_rcnn", 4), ("mask_rcnn", 6), ("deformable_detr", 4)]
)
def test_class_predictors_are_not_inherited_from_another_order_of_classes(head: str, count: int):
    student, teacher = tiny(head), tiny(head, 1)
    teacher.info = replace(teacher.info, classes=CLASSES[::-1])
    before = copy_of_state(student)
    (message,) = inherit(student, teacher, ("head",))
    assert message.endswith("; class predictors start fresh, because the classes differ")
    assert int(message.split()[3]) - int(message.split()[1]) == count
    predictors = (
        "classifier",
        "head.cls_logits",
        "cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "mask_fcn_logits",
        "class_embed",
    )
    per_class = [name for name in before if any(part in name for part in predictors) and ".rpn." not in name]
    assert len(per_class) == count
    assert not set(per_class) & changed_tensors(student, before)


def test_atss_inherits_the_regressor_of_gfl_only_if_both_have_edge_distributions():
    for edges in (False, True):
        student, teacher = tiny("atss", edges=edges), tiny("gfl", 1)
        inherit(student, teacher, ("head",))
        assert torch.equal(student.head.classification_tower[0].weight, teacher.head.classification_tower[0].weight)
        assert torch.equal(student.head.classifier.weight, teacher.head.classifier.weight)
        has_same_shape = student.head.regressor.weight.shape == teacher.head.regressor.weight.shape
        assert has_same_shape is edges
        assert not has_same_shape or torch.equal(student.head.regressor.weight, teacher.head.regressor.weight)


def test_scales_of_levels_are_not_inherited_from_other_strides():
    student, teacher = tiny("gfl", strides=(16, 32, 64)), tiny("gfl", 1)
    with torch.no_grad():
        teacher.head.scales.fill_(2.0)
    inherit(student, teacher, ("head",))
    assert torch.equal(student.head.scales, torch.ones(3))


def test_projections_of_levels_are_not_inherited_from_other_strides():
    student, teacher = tiny("rt_detr", strides=(16, 32)), tiny("rt_detr", 1)
    before = copy_of_state(student)
    inherit(student, teacher, ("head",))
    assert not any("decoder_input_proj" in name for name in changed_tensors(student, before))


def test_edge_predictors_are_not_inherited_from_other_bins():
    student, teacher = tiny("d_fine"), tiny("d_fine", 1)
    tensors = inherited_tensors(student.state_dict(), teacher.state_dict(), "head", student.info, teacher.info)
    edge_modules = {"up", "reg_scale", "bbox_embed", "lqe_layers"}
    edge_names = {name for name in tensors if edge_modules & set(name.split("."))}
    assert edge_names
    other_info = replace(teacher.info, edges=EdgeInfo(33, (0.5, 8.0)))
    other_tensors = inherited_tensors(student.state_dict(), teacher.state_dict(), "head", student.info, other_info)
    assert other_tensors.keys() == tensors.keys() - edge_names


def test_a_part_of_which_nothing_fits_is_refused_with_the_reason():
    message = "--inherit head: a fcos head shares no layers with the teacher's retinanet head; use --inherit neck"
    with pytest.raises(UserError, match=message):
        inherit(tiny("fcos"), tiny("retinanet"), ("head",))
    sizes = r"the student has 32 channels on strides \(8, 16, 32\), the teacher 48 channels on strides \(8, 16, 32\)"
    with pytest.raises(UserError, match=rf"--inherit neck: no layer .*{sizes}.*--model.channels"):
        inherit(tiny("fcos"), tiny("fcos", channels=48), ("neck",))
