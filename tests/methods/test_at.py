"""Attention transfer on the neck of a detector: all levels, any channel counts, both forms."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from detdistill.errors import UserError
from detdistill.losses import attention_norm, attention_transfer
from detdistill.methods.at import AttentionTransfer, AttentionTransferConfig
from detdistill.types import DetectorOutput, Need
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, method_inputs, pair


def test_the_term_is_the_weighted_sum_over_levels_and_zero_for_equal_maps():
    student, teacher = pair("fcos")
    method = built("at", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    levels = list(zip(student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels, strict=True))
    expected = sum(attention_transfer(s, t) for s, t in levels)
    torch.testing.assert_close(method(student_output, teacher_output, targets)["attention"], 1000 * expected)
    assert method(teacher_output, teacher_output, targets)["attention"] == 0
    norm = built("at", student, teacher, form="paper", weight=2.0)
    torch.testing.assert_close(
        norm(student_output, teacher_output, targets)["attention"], sum(attention_norm(s, t) for s, t in levels)
    )


def test_nothing_is_learned_for_different_channels_and_the_teacher_gets_no_gradient():
    student, teacher = pair("gfl", "retinanet", channels=64)
    method = built("at", student, teacher)
    assert list(method.parameters()) == []
    assert method.need == Need(pyramids=frozenset({"neck"}))
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    assert teacher_output.stages == ()
    levels = tuple(nn.Parameter(level) for level in teacher_output.pyramids["neck"].levels)
    teacher_output = replace(teacher_output, pyramids={"neck": replace(teacher_output.pyramids["neck"], levels=levels)})
    method(student_output, teacher_output, targets)["attention"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(level.grad is None for level in levels)


def test_scaling_by_area_makes_the_term_independent_of_the_map_size():
    # If each cell is split into four, the elements of the unit vectors are halved and their mean square is a quarter.
    student, teacher = pair("fcos")
    plain = built("at", student, teacher)
    scaled = built("at", student, teacher, scale_by_area=True)
    student_output, teacher_output, targets = method_inputs(plain, student, teacher)

    def finer(output: DetectorOutput) -> DetectorOutput:
        """Returns the output with each cell of its neck split into four."""
        neck = output.pyramids["neck"]
        levels = tuple(level.repeat_interleave(2, -1).repeat_interleave(2, -2) for level in neck.levels)
        return replace(output, pyramids={"neck": replace(neck, levels=levels)})

    coarse = student_output, teacher_output, targets
    fine = finer(student_output), finer(teacher_output), targets
    torch.testing.assert_close(plain(*fine)["attention"], plain(*coarse)["attention"] / 4)
    torch.testing.assert_close(scaled(*fine)["attention"], scaled(*coarse)["attention"])
    plain_level = built("at", student, teacher, levels=1)
    scaled_level = built("at", student, teacher, levels=1, scale_by_area=True)
    cells = student_output.pyramids["neck"].levels[0][0, 0].numel()
    torch.testing.assert_close(scaled_level(*coarse)["attention"], plain_level(*coarse)["attention"] * cells / 256)


def test_levels_of_two_sizes_are_pooled_to_the_smaller():
    student, teacher = pair("fcos", "faster_rcnn")
    by_stride, by_index = built("at", student, teacher), built("at", student, teacher, pairing="index")
    assert by_stride.strides == [(8, 8), (16, 16), (32, 32)]
    assert by_index.strides == [(8, 4), (16, 8), (32, 16)]
    student_output = student.observe(scene()[0])
    teacher_output = teacher.observe(scene()[0])
    pairs = zip(student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels[:3], strict=True)
    expected = sum(attention_transfer(s, nn.functional.adaptive_avg_pool2d(t, s.shape[-2:])) for s, t in pairs)
    torch.testing.assert_close(by_index(student_output, teacher_output, scene()[1])["attention"], 1000 * expected)


def test_duplicating_the_batch_or_removing_the_objects_changes_nothing():
    student, teacher = pair("fcos")
    method = built("at", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    once = method(student_output, teacher_output, targets)["attention"]
    doubled = []
    for output in (student_output, teacher_output):
        neck = output.pyramids["neck"]
        levels = tuple(level.repeat(2, 1, 1, 1) for level in neck.levels)
        doubled.append(replace(output, pyramids={"neck": replace(neck, levels=levels)}))
    torch.testing.assert_close(method(doubled[0], doubled[1], targets)["attention"], once)
    torch.testing.assert_close(
        method(*method_inputs(method, student, teacher, scene(objects=False)))["attention"], once
    )


def test_build_refuses_unsuitable_detectors_and_options():
    info = tiny("fcos").info
    with pytest.raises(UserError, match="no level in common"):
        AttentionTransfer.build(AttentionTransferConfig(), replace(info, strides=(4,)), info)
    with pytest.raises(UserError, match=r"no published weight for methods\.at\.form=paper; set methods\.at\.weight"):
        AttentionTransfer.build(AttentionTransferConfig(form="paper"), info, info)
    with pytest.raises(UserError, match="corrects the mean over cells"):
        AttentionTransfer.build(AttentionTransferConfig(form="paper", weight=2.0, scale_by_area=True), info, info)
