"""ReviewKD: blocks equal to the published ones, paths, ablations, refusals."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detdistill.errors import UserError
from detdistill.losses import hierarchical_context
from detdistill.methods.presets import preset
from detdistill.methods.reviewkd import ReviewKD, ReviewKDConfig, level_pairs
from detdistill.methods.reviewkd_fusion import FusedLevels, SeparateLevels
from detdistill.types import Need
from tests.detectors.builders import scene, tiny
from tests.losses.inputs import wave
from tests.methods.pairs import built, method_inputs, pair


def filled(module: nn.Module) -> nn.Module:
    """Returns the module with 0.5 sin(0.7 k) as its k-th parameter value, k counting over all parameters.

    The running statistics of batch norm keep their initial values.
    """
    count = 0
    with torch.no_grad():
        for parameter in module.double().eval().parameters():
            parameter.copy_((0.5 * torch.sin(0.7 * torch.arange(count, count + parameter.numel()))).view_as(parameter))
            count += parameter.numel()
    return module


def test_fused_levels_golden():
    # Computed with the published module, with parameters and inputs filled in the same way.
    levels = [wave((1, 2, 8, 8), 0.3, 0.0), wave((1, 2, 4, 4), 0.5, 0.0), wave((1, 2, 2, 2), 0.7, 0.0)]
    maps = filled(FusedLevels([2, 2, 2], 2, [3, 3, 3]))(levels, [(8, 8), (4, 4), (2, 2)])
    assert [tuple(level.shape) for level in maps] == [(1, 3, 8, 8), (1, 3, 4, 4), (1, 3, 2, 2)]
    assert [level.sum().item() for level in maps] == pytest.approx([-55.19084, -8.97802, 3.85144], abs=2e-5)
    assert [level.abs().mean().item() for level in maps] == pytest.approx([0.300394, 0.265202, 0.380484], abs=1e-6)


def test_names_sizes_and_initial_values_are_as_published():
    fused = FusedLevels([256] * 5, 256, [256] * 5)
    assert sum(p.numel() for p in fused.parameters()) == 3_286_024
    deepest = [name for name, _ in fused.named_parameters() if name.startswith("abfs.0.")]
    assert deepest == [f"abfs.0.conv{i}.{part}" for i in (1, 2) for part in ("0.weight", "1.weight", "1.bias")]
    attention = [tuple(p.shape) for name, p in fused.named_parameters() if "abfs.1.att_conv" in name]
    assert attention == [(2, 512, 1, 1), (2,)]
    bound = (3 / 256) ** 0.5  # Kaiming's uniform bound for a = 1
    largest = fused.abfs[0].conv1[0].weight.abs().max().item()
    assert 0.99 * bound < largest <= bound


def test_level_sizes_need_not_differ_by_factors_of_two():
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
    assert level_pairs(paths, 3) == expected
    assert len(level_pairs("all", 3)) == 9


def test_the_term_is_the_weighted_context_loss_of_the_fused_levels():
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher, weight=2.0)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    student_levels, teacher_levels = student_output.pyramids["neck"].levels, teacher_output.pyramids["neck"].levels
    fused = method.blocks(student_levels, [tuple(level.shape[-2:]) for level in teacher_levels])
    expected = 2 * hierarchical_context(fused, teacher_levels)
    torch.testing.assert_close(method(student_output, teacher_output, targets)["features"], expected)
    assert method.need == Need(pyramids=frozenset({"neck"}))


def test_gradient_reaches_blocks_and_backbone_but_not_the_teacher():
    student, teacher = pair("gfl", "retinanet", channels=48)
    method = built("reviewkd", student, teacher)
    method(*method_inputs(method, student, teacher))["features"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(p.grad is None for p in student.parameters() if p.shape[:1] == (3,))  # the classifier
    assert all(p.grad is None for p in teacher.parameters())
    # Levels are fused at the student's channels and then mapped to the teacher's.
    assert method.blocks.abfs[0].conv1[0].weight.shape == (48, 48, 1, 1)
    assert method.blocks.abfs[0].conv2[0].weight.shape == (32, 48, 3, 3)


def test_a_fine_teacher_level_teaches_the_deeper_student_levels():
    # With `review`, the gradient of the finest comparison reaches every student level; with `same`, only one.
    levels = [torch.randn(1, 4, 8 // 2**index, 8 // 2**index, requires_grad=True) for index in range(3)]
    shapes = [(8, 8), (4, 4), (2, 2)]
    review = FusedLevels([4] * 3, 4, [4] * 3)
    same = SeparateLevels([4] * 3, 4, [4] * 3, level_pairs("same", 3))
    for blocks, expected in ((review, 3), (same, 1)):
        gradients = torch.autograd.grad(blocks(levels, shapes)[0].square().sum(), levels, allow_unused=True)
        assert sum(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients) == expected


@pytest.mark.parametrize(("paths", "count"), [("same", 3), ("review", 6), ("deeper", 6), ("all", 9)])
def test_without_fusion_each_pair_has_its_own_block(paths: str, count: int):
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher, paths=paths, fusion=False)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    assert len(method.blocks.blocks) == count
    assert not any("att_conv" in name for name, _ in method.named_parameters())
    shapes = [tuple(level.shape[-2:]) for level in teacher_output.pyramids["neck"].levels]
    maps = method.blocks(student_output.pyramids["neck"].levels, shapes)
    teacher_indices = [index for _, index in level_pairs(paths, 3)]
    assert [tuple(level.shape[-2:]) for level in maps] == [shapes[index] for index in teacher_indices]
    teacher_levels = [teacher_output.pyramids["neck"].levels[index] for index in teacher_indices]
    torch.testing.assert_close(
        method(student_output, teacher_output, targets)["features"], hierarchical_context(maps, teacher_levels)
    )


def test_without_context_the_term_is_the_mean_squares():
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher, context=False)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    teacher_levels = teacher_output.pyramids["neck"].levels
    shapes = [tuple(level.shape[-2:]) for level in teacher_levels]
    maps = method.blocks(student_output.pyramids["neck"].levels, shapes)
    expected = sum((s - t).square().mean() for s, t in zip(maps, teacher_levels, strict=True))
    torch.testing.assert_close(method(student_output, teacher_output, targets)["features"], expected)


def test_duplicating_the_batch_changes_nothing():
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    doubled = []
    for output in (student_output, teacher_output):
        neck = output.pyramids["neck"]
        levels = tuple(torch.cat([level, level]) for level in neck.levels)
        doubled.append(replace(output, pyramids={"neck": replace(neck, levels=levels)}))
    torch.testing.assert_close(
        method(*doubled, targets)["features"], method(student_output, teacher_output, targets)["features"]
    )


def test_no_objects_are_needed():
    student, teacher = pair("fcos")
    method = built("reviewkd", student, teacher)
    assert method(*method_inputs(method, student, teacher, scene(objects=False)))["features"].isfinite()


def test_levels_are_paired_by_stride_or_by_index():
    student, teacher = tiny("fcos").eval(), tiny("faster_rcnn").eval()  # strides 8 16 32 and 4 8 16 32
    assert built("reviewkd", student, teacher).levels.strides == ((8, 8), (16, 16), (32, 32))
    by_index = built("reviewkd", student, teacher, pairing="index")
    assert by_index(*method_inputs(by_index, student, teacher))["features"].isfinite()


def test_presets_are_as_published():
    kinds = {"faster_rcnn": 1.0, "mask_rcnn": 0.8, "retinanet": 1.0}
    info = tiny("fcos").info
    for kind, weight in kinds.items():
        assert ReviewKDConfig(**preset("reviewkd", info, replace(info, kind=kind))).weight == weight


def test_unsuitable_detectors_options_and_maps_are_refused():
    student, teacher = pair("fcos")
    for paths in ("deeper", "all"):
        with pytest.raises(UserError, match=f"paths `{paths}` can't be fused.*set methods.reviewkd.fusion to false"):
            ReviewKD.build(ReviewKDConfig(paths=paths), student.info, teacher.info)
    with pytest.raises(UserError, match="no level in common"):
        ReviewKD.build(ReviewKDConfig(), replace(student.info, strides=(4,)), teacher.info)
    method = built("reviewkd", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    one_cell = []
    for output in (student_output, teacher_output):
        neck = output.pyramids["neck"]
        levels = tuple(level[:1, :, :1, :1] for level in neck.levels)
        one_cell.append(replace(output, pyramids={"neck": replace(neck, levels=levels)}))
    with pytest.raises(UserError, match="stride 8 has one cell in the whole batch"):
        method(*one_cell, targets)
    assert method.eval()(*one_cell, targets)["features"].isfinite()


@pytest.mark.parametrize("fusion", [True, False])
def test_maps_of_different_sizes_are_resized_in_the_blocks_or_on_the_teachers_side(fusion: bool):
    # Paired by index, the teacher's maps are twice as large. The student's maps enter the blocks unchanged.
    student, teacher = pair("fcos", "faster_rcnn")
    for resize in ("student", "teacher"):
        method = built("reviewkd", student, teacher, pairing="index", resize=resize, fusion=fusion)
        student_output, teacher_output, targets = method_inputs(method, student, teacher)
        student_levels = student_output.pyramids["neck"].levels
        teacher_levels = teacher_output.pyramids["neck"].levels[:3]
        if resize == "teacher":
            pairs = zip(student_levels, teacher_levels, strict=True)
            teacher_levels = [F.interpolate(t, s.shape[-2:], mode="bilinear") for s, t in pairs]
        maps = method.blocks(student_levels, [tuple(level.shape[-2:]) for level in teacher_levels])
        expected = hierarchical_context(maps, [teacher_levels[index] for index in method.teacher_indices])
        torch.testing.assert_close(method(student_output, teacher_output, targets)["features"], expected)
