"""Attention transfer on a detector's neck: every level, no widths, its forms."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from detdistill.errors import UserError
from detdistill.losses import attention_norm, attention_transfer
from detdistill.methods.at import AttentionTransfer, AttentionTransferConfig
from detdistill.types import Need
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, looks, pair


def test_it_is_the_weighted_sum_over_levels_and_zero_for_itself():
    student, teacher = pair("fcos")
    method = built("at", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    levels = list(zip(mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels, strict=True))
    expected = sum(attention_transfer(s, t) for s, t in levels)
    torch.testing.assert_close(method(mine, theirs, targets)["attention"], 1000 * expected)
    assert method(theirs, theirs, targets)["attention"] == 0
    norm = built("at", student, teacher, form="paper", weight=2.0)
    torch.testing.assert_close(norm(mine, theirs, targets)["attention"], sum(attention_norm(s, t) for s, t in levels))


def test_widths_differ_nothing_is_learned_and_the_teacher_gets_no_gradient():
    student, teacher = pair("gfl", "retinanet", channels=64)
    method = built("at", student, teacher)
    assert list(method.parameters()) == []
    assert method.need == Need(pyramids=frozenset({"neck"}))
    mine, theirs, targets = looks(method, student, teacher)
    assert theirs.stages == ()
    levels = tuple(nn.Parameter(level) for level in theirs.pyramids["neck"].levels)
    theirs = replace(theirs, pyramids={"neck": replace(theirs.pyramids["neck"], levels=levels)})
    method(mine, theirs, targets)["attention"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(level.grad is None for level in levels)


def test_scaling_by_area_makes_levels_and_image_sizes_alike():
    # One attention map and the same with each cell cut in four: half the distance of unit vectors' elements, a quarter of the mean square.
    student, teacher = pair("fcos")
    plain, scaled = (built("at", student, teacher, scale_by_area=flag) for flag in (False, True))
    mine, theirs, targets = looks(plain, student, teacher)

    def finer(output):
        neck = output.pyramids["neck"]
        levels = tuple(level.repeat_interleave(2, -1).repeat_interleave(2, -2) for level in neck.levels)
        return replace(output, pyramids={"neck": replace(neck, levels=levels)})

    once, fine = (mine, theirs, targets), (finer(mine), finer(theirs), targets)
    torch.testing.assert_close(plain(*fine)["attention"], plain(*once)["attention"] / 4)
    torch.testing.assert_close(scaled(*fine)["attention"], scaled(*once)["attention"])
    single = built("at", student, teacher, levels=1), built("at", student, teacher, levels=1, scale_by_area=True)
    cells = mine.pyramids["neck"].levels[0][0, 0].numel()
    torch.testing.assert_close(single[1](*once)["attention"], single[0](*once)["attention"] * cells / 256)


def test_levels_of_two_sizes_are_pooled_to_the_smaller():
    student, teacher = pair("fcos", "faster_rcnn")
    by_stride, by_index = built("at", student, teacher), built("at", student, teacher, pairing="index")
    assert by_stride.strides == [(8, 8), (16, 16), (32, 32)]
    assert by_index.strides == [(8, 4), (16, 8), (32, 16)]
    mine = student.observe(scene()[0])
    theirs = teacher.observe(scene()[0])
    pairs = zip(mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels[:3], strict=True)
    expected = sum(attention_transfer(s, nn.functional.adaptive_avg_pool2d(t, s.shape[-2:])) for s, t in pairs)
    torch.testing.assert_close(by_index(mine, theirs, scene()[1])["attention"], 1000 * expected)


def test_a_batch_twice_and_one_without_objects_change_nothing():
    student, teacher = pair("fcos")
    method = built("at", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    once = method(mine, theirs, targets)["attention"]
    doubled = []
    for output in (mine, theirs):
        neck = output.pyramids["neck"]
        doubled.append(
            replace(
                output,
                pyramids={"neck": replace(neck, levels=tuple(level.repeat(2, 1, 1, 1) for level in neck.levels))},
            )
        )
    torch.testing.assert_close(method(doubled[0], doubled[1], targets)["attention"], once)
    torch.testing.assert_close(method(*looks(method, student, teacher, scene(objects=False)))["attention"], once)


def test_what_does_not_fit_is_refused_at_build():
    info = tiny("fcos").info
    with pytest.raises(UserError, match="no level in common"):
        AttentionTransfer.build(AttentionTransferConfig(), replace(info, strides=(4,)), info)
    with pytest.raises(UserError, match=r"no published weight of its own; give methods\.at\.weight"):
        AttentionTransfer.build(AttentionTransferConfig(form="paper"), info, info)
    with pytest.raises(UserError, match="mends the mean over cells"):
        AttentionTransfer.build(AttentionTransferConfig(form="paper", weight=2.0, scale_by_area=True), info, info)
