"""ReviewKD: its blocks against the published ones, its paths, its ablations, and what it refuses."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detdistill.errors import UserError
from detdistill.losses import hierarchical_context
from detdistill.methods.presets import preset
from detdistill.methods.reviewkd import ReviewKD, ReviewKDConfig, taught_pairs
from detdistill.methods.shared.fusion import FusedLevels, SeparateLevels
from detdistill.types import Need
from tests.detectors.builders import scene, tiny
from tests.losses.test_features import wave
from tests.methods.pairs import built, looks, pair


def filled(module: nn.Module) -> nn.Module:
    """Every parameter 0.5 sin(0.7 k), k counting on from one to the next; batch norm as it begins."""
    count = 0
    with torch.no_grad():
        for parameter in module.double().eval().parameters():
            parameter.copy_((0.5 * torch.sin(0.7 * torch.arange(count, count + parameter.numel()))).view_as(parameter))
            count += parameter.numel()
    return module


def test_fused_levels_golden():
    # From running the published module, its parameters and inputs filled in the same way.
    levels = [wave((1, 2, 8, 8), 0.3, 0.0), wave((1, 2, 4, 4), 0.5, 0.0), wave((1, 2, 2, 2), 0.7, 0.0)]
    maps = filled(FusedLevels([2, 2, 2], 2, [3, 3, 3]))(levels, [(8, 8), (4, 4), (2, 2)])
    assert [tuple(level.shape) for level in maps] == [(1, 3, 8, 8), (1, 3, 4, 4), (1, 3, 2, 2)]
    assert [level.sum().item() for level in maps] == pytest.approx([-55.19084, -8.97802, 3.85144], abs=2e-5)
    assert [level.abs().mean().item() for level in maps] == pytest.approx([0.300394, 0.265202, 0.380484], abs=1e-6)


def test_names_sizes_and_initial_values_are_the_published():
    fused = FusedLevels([256] * 5, 256, [256] * 5)
    assert sum(p.numel() for p in fused.parameters()) == 3_286_024
    deepest = [name for name, _ in fused.named_parameters() if name.startswith("abfs.0.")]
    assert deepest == [f"abfs.0.conv{i}.{part}" for i in (1, 2) for part in ("0.weight", "1.weight", "1.bias")]
    assert [tuple(p.shape) for name, p in fused.named_parameters() if "abfs.1.att_conv" in name] == [
        (2, 512, 1, 1),
        (2,),
    ]
    bound = (3 / 256) ** 0.5  # Kaiming's for a linear unit, a = 1
    first = fused.abfs[0].conv1[0].weight.abs().max().item()
    assert 0.99 * bound < first <= bound


def test_any_sizes_fuse_without_factors_of_two():
    fused = FusedLevels([4, 4], 8, [6, 6])
    maps = fused([torch.randn(2, 4, 7, 13), torch.randn(2, 4, 3, 5)], [(7, 13), (4, 9)])
    assert [tuple(level.shape) for level in maps] == [(2, 6, 7, 13), (2, 6, 4, 9)]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("same", [(0, 0), (1, 1), (2, 2)]),
        ("review", [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]),
        ("deeper", [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]),
    ],
)
def test_paths(paths: str, expected: list[tuple[int, int]]):
    assert taught_pairs(paths, 3) == expected
    assert len(taught_pairs("all", 3)) == 9


def test_it_is_the_weighted_context_loss_of_the_fused_levels():
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher, weight=2.0)
    mine, theirs, targets = looks(method, student, teacher)
    levels, lessons = mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels
    fused = method.blocks(levels, [tuple(level.shape[-2:]) for level in lessons])
    torch.testing.assert_close(method(mine, theirs, targets)["features"], 2 * hierarchical_context(fused, lessons))
    assert method.need == Need(pyramids=frozenset({"neck"}))


def test_gradient_reaches_blocks_and_body_and_not_the_teacher():
    student, teacher = pair("gfl", "retinanet", channels=48)
    method = built("reviewkd", student, teacher)
    method(*looks(method, student, teacher))["features"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(p.grad is None for p in student.parameters() if p.shape[:1] == (3,))  # the classifier
    assert all(p.grad is None for p in teacher.parameters())
    assert method.blocks.abfs[0].conv1[0].weight.shape == (
        48,
        48,
        1,
        1,
    )  # fused at the student's width, given out at the teacher's
    assert method.blocks.abfs[0].conv2[0].weight.shape == (32, 48, 3, 3)


def test_deeper_levels_of_the_student_learn_from_a_finer_one_of_the_teacher():
    # The review: the gradient of the finest comparison alone reaches every student level; by paths `same` it reaches its own.
    levels = [torch.randn(1, 4, 8 // 2**index, 8 // 2**index, requires_grad=True) for index in range(3)]
    shapes = [(8, 8), (4, 4), (2, 2)]
    for blocks, reached in (
        (FusedLevels([4] * 3, 4, [4] * 3), 3),
        (SeparateLevels([4] * 3, 4, [4] * 3, taught_pairs("same", 3)), 1),
    ):
        gradients = torch.autograd.grad(blocks(levels, shapes)[0].square().sum(), levels, allow_unused=True)
        assert sum(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients) == reached


@pytest.mark.parametrize(("paths", "count"), [("same", 3), ("review", 6), ("deeper", 6), ("all", 9)])
def test_without_fusion_each_pair_has_a_block_of_its_own(paths: str, count: int):
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher, paths=paths, fusion=False)
    mine, theirs, targets = looks(method, student, teacher)
    assert len(method.blocks.blocks) == count
    assert not any("att_conv" in name for name, _ in method.named_parameters())
    shapes = [tuple(level.shape[-2:]) for level in theirs.pyramids["neck"].levels]
    maps = method.blocks(mine.pyramids["neck"].levels, shapes)
    assert [tuple(level.shape[-2:]) for level in maps] == [shapes[theirs] for _, theirs in taught_pairs(paths, 3)]
    lessons = [theirs.pyramids["neck"].levels[index] for _, index in taught_pairs(paths, 3)]
    torch.testing.assert_close(method(mine, theirs, targets)["features"], hierarchical_context(maps, lessons))


def test_without_context_it_is_mean_squares():
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher, context=False)
    mine, theirs, targets = looks(method, student, teacher)
    lessons = theirs.pyramids["neck"].levels
    maps = method.blocks(mine.pyramids["neck"].levels, [tuple(level.shape[-2:]) for level in lessons])
    expected = sum((s - t).square().mean() for s, t in zip(maps, lessons, strict=True))
    torch.testing.assert_close(method(mine, theirs, targets)["features"], expected)


def test_duplicating_the_batch_changes_nothing():
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    doubled = []
    for output in (mine, theirs):
        neck = output.pyramids["neck"]
        doubled.append(
            replace(
                output,
                pyramids={"neck": replace(neck, levels=tuple(torch.cat([level, level]) for level in neck.levels))},
            )
        )
    torch.testing.assert_close(method(*doubled, targets)["features"], method(mine, theirs, targets)["features"])


def test_it_needs_no_objects():
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher)
    assert method(*looks(method, student, teacher, scene(objects=False)))["features"].isfinite()


def test_levels_are_paired_by_stride_unless_asked_by_index():
    student, teacher = tiny("fcos").eval(), tiny("faster_rcnn").eval()  # strides 8 16 32 and 4 8 16 32
    assert built("reviewkd", student, teacher).levels.strides == ((8, 8), (16, 16), (32, 32))
    by_index = built("reviewkd", student, teacher, pairing="index")
    assert by_index(*looks(by_index, student, teacher))["features"].isfinite()


def test_presets_are_as_published():
    kinds = {"faster_rcnn": 1.0, "mask_rcnn": 0.8, "retinanet": 1.0}
    info = tiny("fcos").info
    for kind, weight in kinds.items():
        assert ReviewKDConfig(**preset("reviewkd", info, replace(info, kind=kind))).weight == weight


def test_what_it_cannot_serve_is_refused():
    student, teacher = pair("fcos")
    for paths in ("deeper", "all"):
        with pytest.raises(UserError, match=f"paths `{paths}` can't be fused.*set methods.reviewkd.fusion to false"):
            ReviewKD.build(ReviewKDConfig(paths=paths), student.info, teacher.info)
    with pytest.raises(UserError, match="no level in common"):
        ReviewKD.build(ReviewKDConfig(), replace(student.info, strides=(4,)), teacher.info)
    method = built("reviewkd", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    cell = [
        replace(o.pyramids["neck"], levels=tuple(level[:1, :, :1, :1] for level in o.pyramids["neck"].levels))
        for o in (mine, theirs)
    ]
    one = [replace(output, pyramids={"neck": neck}) for output, neck in zip((mine, theirs), cell, strict=True)]
    with pytest.raises(UserError, match="stride 8 has one cell in the whole batch"):
        method(*one, targets)
    assert method.eval()(*one, targets)["features"].isfinite()


@pytest.mark.parametrize("fusion", [True, False])
def test_sizes_that_differ_meet_within_the_blocks_or_at_the_teachers_side(fusion: bool):
    # By index the teacher's maps are twice as large; the student's go into the blocks as they are.
    student, teacher = pair("fcos", "faster_rcnn")
    for resize in ("student", "teacher"):
        method = built("reviewkd", student, teacher, pairing="index", resize=resize, fusion=fusion)
        mine, theirs, targets = looks(method, student, teacher)
        levels, lessons = mine.pyramids["neck"].levels, theirs.pyramids["neck"].levels[:3]
        if resize == "teacher":
            pairs = zip(lessons, levels, strict=True)
            lessons = [F.interpolate(lesson, level.shape[-2:], mode="bilinear") for lesson, level in pairs]
        maps = method.blocks(levels, [tuple(level.shape[-2:]) for level in lessons])
        taught = [lessons[index] for index in method.lessons]
        torch.testing.assert_close(method(mine, theirs, targets)["features"], hierarchical_context(maps, taught))
