"""FGFI: the formula on one map, regions by level, anchors and options, padding."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from detdistill.errors import UserError
from detdistill.geometry import box_levels, imitation_region, synthetic_anchors
from detdistill.methods.fgfi import FGFI, FGFIConfig
from detdistill.methods.presets import preset
from detdistill.types import Batch, Detector, DetectorInfo, DetectorOutput, GridInfo, Need, Pyramid, Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, method_inputs, pair

INFO = DetectorInfo("atss", ("a",), (8,), {"neck": 2}, "sigmoid", grid=GridInfo(1, "atss", (((64.0, 64.0),),)))


def with_identity_connectors(method: nn.Module) -> nn.Module:
    """Returns the method with connectors that are the identity."""
    with torch.no_grad():
        for connector in method.levels.connectors:
            nn.init.dirac_(connector.weight)
            nn.init.zeros_(connector.bias)
    return method


def one_map(value: float, anchors: torch.Tensor | None = None, images: int = 1) -> DetectorOutput:
    """Returns an output with one level of 2 channels and 4 x 6 cells of 8 pixels, filled with `value`."""
    level = torch.full((images, 2, 4, 6), value)
    sizes = torch.tensor([[32, 48]] * images)
    return DetectorOutput({"neck": Pyramid((level,), (8,), sizes, None if anchors is None else (anchors,))})


def centered_anchors(*sides: float) -> torch.Tensor:
    """Returns anchors (4, 6, A, 4): squares with these sides, centered on cells of 8 pixels."""
    y, x = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    centers = torch.stack([x, y], dim=-1)[:, :, None] * 8 + 4.0
    half = torch.tensor(sides)[:, None] / 2
    return torch.cat([centers - half, centers + half], dim=-1)


# Each anchor covers its cell. A box of two cells has IoU 1/2 with both anchors. A box that also covers half of a third
# cell has IoU 0.4, 0.4 and 0.2, and 0.2 is not above half the best.
TWO, HALF = torch.tensor([[8.0, 8, 24, 16]]), torch.tensor([[8.0, 8, 28, 16]])


@pytest.mark.parametrize(
    ("boxes", "factor", "count"), [(TWO, 0.5, 2), (HALF, 0.5, 2), (HALF, 0.4, 3), (HALF, 0.0, 3), (HALF, 1.0, 0)]
)
@pytest.mark.parametrize("reduction", ["paper", "defeat"])
def test_the_formula_by_hand(boxes: torch.Tensor, factor: float, count: int, reduction: str):
    # Every cell differs by 3 in both channels: 18 per cell. Divided by 2 N this is 9 for any N, and 4.5 per channel. An
    # empty region gives 0.
    method = with_identity_connectors(
        FGFI.build(FGFIConfig(weight=0.01, factor=factor, reduction=reduction), INFO, INFO)
    )
    student_output, teacher_output = one_map(0.0, centered_anchors(8)), one_map(3.0)
    targets = Targets((boxes,), (torch.zeros(1, dtype=torch.long),))
    (region,) = method.regions(method.levels(student_output, teacher_output), student_output, teacher_output, targets)
    assert region.sum() == count
    expected = (0.09 if reduction == "paper" else 0.045) if count else 0.0
    assert method(student_output, teacher_output, targets)["features"].item() == pytest.approx(expected, rel=1e-6)
    assert method(teacher_output, teacher_output, targets)["features"].item() == 0


def test_the_mean_is_over_the_cells_of_the_batch():
    # One cell of the first image differs by 3, two cells of the second differ by 1: (18 + 2 * 2) / (2 * 3). This is not
    # the mean of the two images.
    method = with_identity_connectors(FGFI.build(FGFIConfig(weight=1.0), INFO, INFO))
    student_output, teacher_output = one_map(0.0, centered_anchors(8), images=2), one_map(1.0, images=2)
    teacher_output.pyramids["neck"].levels[0][0] = 3.0
    targets = Targets((torch.tensor([[8.0, 8, 16, 16]]), TWO), (torch.zeros(1, dtype=torch.long),) * 2)
    assert method(student_output, teacher_output, targets)["features"].item() == pytest.approx(22 / 6)


def test_the_connector_starts_near_zero_and_its_output_is_signed_without_relu():
    student, teacher = pair("gfl", "retinanet", channels=48)
    method = built("fgfi", student, teacher)
    method_with_relu = built("fgfi", student, teacher, relu=True)
    weights = [p for p in method.parameters() if p.ndim == 4]
    assert [tuple(w.shape) for w in weights] == [(32, 48, 3, 3)] * 3
    assert all(1.9e-4 < w.abs().max() < 2e-4 for w in weights)
    biases = [p for p in method.parameters() if p.ndim == 1]
    assert all(b.abs().max() > 1e-3 for b in biases)  # PyTorch's initialization
    student_output, teacher_output, _ = method_inputs(method, student, teacher)
    assert all(level.student.min() < 0 for level in method.levels(student_output, teacher_output))
    assert all(level.student.min() >= 0 for level in method_with_relu.levels(student_output, teacher_output))
    assert method.need == Need(pyramids=frozenset({"neck"}))


def test_gradient_reaches_connectors_and_backbone_but_not_the_teacher():
    student, teacher = pair("fcos")
    method = built("fgfi", student, teacher, levels_of_a_box="all")
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    method(student_output, teacher_output, targets)["features"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher_output.stages == ()


def regions(method: FGFI, student: Detector, teacher: Detector, scenery: tuple[Batch, Targets]) -> list[torch.Tensor]:
    """Returns the regions of the method on a scene."""
    student_output, teacher_output, targets = method_inputs(method, student, teacher, scenery)
    return method.regions(method.levels(student_output, teacher_output), student_output, teacher_output, targets)


def test_a_box_counts_on_its_own_level_or_on_all():
    student, teacher = pair("atss")
    batch, targets = scene(128, 256)
    batch = replace(batch, sizes=torch.tensor([[128, 256], [50, 70]]))
    small = torch.tensor([[10.0, 10, 40, 40]])
    large = torch.tensor([[0.0, 0, 250, 250]])  # more than 224 pixels per side: it belongs to stride 16
    assert box_levels(torch.cat([small, large]), (8, 16, 32)).tolist() == [0, 1]
    labels = torch.zeros(2, dtype=torch.long)
    targets = Targets((torch.cat([small, large]), torch.zeros(0, 4)), (labels, labels[:0]))
    method = built("fgfi", student, teacher, levels_of_a_box="own")
    first, second, third = regions(method, student, teacher, (batch, targets))
    assert first[0].any()
    assert second[0].any()
    assert not third.any()
    assert not first[1].any()
    anchors = student.observe(batch).pyramids["neck"].anchors
    assert torch.equal(first[0], imitation_region(anchors[0], small))
    assert torch.equal(second[0], imitation_region(anchors[1], large))
    method = built("fgfi", student, teacher, levels_of_a_box="all")
    pairs = zip(regions(method, student, teacher, (batch, targets)), anchors, strict=True)
    for region, level_anchors in pairs:
        assert torch.equal(region[0], imitation_region(level_anchors, small) | imitation_region(level_anchors, large))


def test_anchors_are_the_students_the_teachers_or_synthetic():
    retinanet, fcos = tiny("retinanet").eval(), tiny("fcos", seed=2).eval()
    scenery = scene()
    boxes = scenery[1].boxes[0]
    synthetic = [synthetic_anchors(8 // 2**index, 12 // 2**index, 8 * 2**index) for index in range(3)]
    real = retinanet.observe(scenery[0]).pyramids["neck"].anchors
    cases = [
        ("student", retinanet, fcos, real),
        ("student", fcos, retinanet, synthetic),  # the points of FCOS are not anchors
        ("teacher", fcos, retinanet, real),
        ("synthetic", retinanet, fcos, synthetic),
    ]
    for option, student, teacher, anchors in cases:
        method = built("fgfi", student, teacher, anchors=option, levels_of_a_box="all", factor=0.8)
        pairs = zip(regions(method, student, teacher, scenery), anchors, strict=True)
        for region, level_anchors in pairs:
            assert torch.equal(region[0], imitation_region(level_anchors, boxes, 0.8)), option
    assert any(
        (imitation_region(a, boxes, 0.8) != imitation_region(b, boxes, 0.8)).any()
        for a, b in zip(real, synthetic, strict=True)
    )


@pytest.mark.parametrize("region", ["imitation", "full", "inside"])
@pytest.mark.parametrize("kind", ["fcos", "retinanet", "deformable_detr"])
def test_padding_does_not_change_regions(kind: str, region: str):
    student, teacher = pair(kind)
    (batch, targets), (wide, _) = scene(64, 96), scene(128, 160)
    corner = torch.tensor([[60.0, 40, 69, 49]])  # at the corner of the second image, near cells of the padding
    targets = Targets((targets.boxes[0], corner), (targets.labels[0], torch.zeros(1, dtype=torch.long)))
    method = built("fgfi", student, teacher, region=region, levels_of_a_box="all")
    pairs = zip(
        regions(method, student, teacher, (batch, targets)),
        regions(method, student, teacher, (wide, targets)),
        strict=True,
    )
    for narrow_region, wide_region in pairs:
        assert narrow_region.any(2).any(1).all()
        rows, columns = narrow_region.shape[1:]
        assert torch.equal(wide_region[:, :rows, :columns], narrow_region)
        assert wide_region.sum() == narrow_region.sum()


def test_cells_of_the_padding_do_not_set_the_threshold():
    # Anchors are one stride wide, around cell corners. The image ends at column 23, so the cell that begins at 24 is
    # padding. The box overlaps the anchor of this cell (20 to 28) by 3 pixels, and the anchor of the last valid cell
    # (12 to 20) by 1 pixel. This is less than half of 3, but it is the best valid overlap.
    student_output, teacher_output = one_map(0.0, centered_anchors(8) - 4), one_map(1.0)
    neck = student_output.pyramids["neck"]
    student_output = replace(student_output, pyramids={"neck": replace(neck, sizes=torch.tensor([[32, 23]]))})
    targets = Targets((torch.tensor([[19.0, 4, 23, 12]]),), (torch.zeros(1, dtype=torch.long),))
    method = FGFI.build(FGFIConfig(), INFO, INFO)
    (region,) = method.regions(method.levels(student_output, teacher_output), student_output, teacher_output, targets)
    assert region[0].nonzero().tolist() == [[1, 2]]


def test_full_selects_all_cells_of_the_image_and_inside_those_of_the_boxes():
    student, teacher = pair("fcos")
    full = regions(built("fgfi", student, teacher, region="full"), student, teacher, scene(objects=False))
    # The second image has 50 x 70 pixels: 7 x 9, 4 x 5 and 2 x 3 cells begin in it.
    assert [level.flatten(1).sum(1).tolist() for level in full] == [[96, 63], [24, 20], [6, 6]]
    inside = regions(built("fgfi", student, teacher, region="inside", levels_of_a_box="all"), student, teacher, scene())
    assert inside[2][0].all()  # the boxes touch every cell of 32 pixels
    # Columns x rows of the first two boxes, minus the cells that they share. The third box lies in the second.
    assert inside[0][0].sum() == 5 * 5 + 9 * 7 - 2 * 5
    assert not inside[0][1].any()


def test_without_objects_the_term_and_its_gradients_are_zero():
    student, teacher = pair("fcos")
    method = built("fgfi", student, teacher)
    term = method(*method_inputs(method, student, teacher, scene(objects=False)))["features"]
    assert term.item() == 0
    term.backward()
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters())


def test_duplicating_the_batch_changes_nothing():
    student, teacher = pair("retinanet")
    method = built("fgfi", student, teacher)
    student_output, teacher_output, targets = method_inputs(method, student, teacher)
    doubled = []
    for output in (student_output, teacher_output):
        neck = output.pyramids["neck"]
        levels = tuple(torch.cat([level, level]) for level in neck.levels)
        doubled.append(replace(output, pyramids={"neck": replace(neck, levels=levels, sizes=neck.sizes.repeat(2, 1))}))
    twice = method(*doubled, Targets(targets.boxes * 2, targets.labels * 2))["features"]
    torch.testing.assert_close(twice, method(student_output, teacher_output, targets)["features"])


def test_legacy_makes_boxes_and_anchors_one_pixel_wider():
    # A thin box in the gap between two columns of anchors, half a pixel below the row above. If boxes and anchors are
    # one pixel wider and higher, it overlaps all four anchors.
    student_output, teacher_output = one_map(0.0, centered_anchors(7)), one_map(1.0)
    targets = Targets((torch.tensor([[7.6, 8, 8.2, 15]]),), (torch.zeros(1, dtype=torch.long),))
    for legacy, count in ((False, 0), (True, 4)):
        method = FGFI.build(FGFIConfig(legacy=legacy, factor=0.0), INFO, INFO)
        (region,) = method.regions(
            method.levels(student_output, teacher_output), student_output, teacher_output, targets
        )
        assert region.sum() == count


def test_presets_are_as_published():
    info = tiny("fcos").info
    assert preset("fgfi", info, info) == {"warmup_steps": 400}
    assert preset("fgfi", info, info, given={"reduction": "defeat"})["weight"] == 3.0


def test_build_refuses_unsuitable_detectors():
    fcos, atss = tiny("fcos").info, tiny("atss").info
    with pytest.raises(UserError, match=r"the teacher \(fcos\) has no anchors; set methods.fgfi.anchors to synthetic"):
        FGFI.build(FGFIConfig(anchors="teacher"), atss, fcos)
    with pytest.raises(UserError, match="no level in common"):
        FGFI.build(FGFIConfig(), replace(atss, strides=(4,)), fcos)


def test_a_map_resized_to_the_teachers_size_keeps_the_students_anchors():
    # The teacher's map has one more row and column. The student's anchors continue into them. The region would be
    # different with synthetic anchors, which have 64 pixels per side.
    method = FGFI.build(FGFIConfig(), INFO, INFO)
    student_output, teacher_output = one_map(0.0, centered_anchors(8)), one_map(3.0)
    neck = teacher_output.pyramids["neck"]
    larger_neck = replace(neck, levels=(torch.full((1, 2, 5, 7), 3.0),), sizes=torch.tensor([[40, 56]]))
    student_output = replace(
        student_output, pyramids={"neck": replace(student_output.pyramids["neck"], sizes=larger_neck.sizes)}
    )
    teacher_output = replace(teacher_output, pyramids={"neck": larger_neck})
    targets = Targets((torch.tensor([[48.0, 32, 56, 40]]),), (torch.zeros(1, dtype=torch.long),))
    (region,) = method.regions(method.levels(student_output, teacher_output), student_output, teacher_output, targets)
    assert region.nonzero().tolist() == [[0, 4, 6]]
