"""FGFI: its formula on one map, regions by level, by anchors and by option, and what padding must not move."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from detdistill.errors import UserError
from detdistill.geometry import box_levels, imitation_region, synthetic_anchors
from detdistill.methods.fgfi import FGFI, FGFIConfig
from detdistill.methods.presets import preset
from detdistill.types import Batch, DetectorInfo, DetectorOutput, GridInfo, Need, Pyramid, Targets
from tests.detectors.builders import scene, tiny
from tests.methods.pairs import built, looks, pair

INFO = DetectorInfo("atss", ("a",), (8,), {"neck": 2}, "sigmoid", grid=GridInfo(1, "atss", (((64.0, 64.0),),)))


def copying(method: nn.Module) -> nn.Module:
    """The method with connectors that change nothing."""
    with torch.no_grad():
        for connector in method.levels.connectors:
            nn.init.dirac_(connector.weight)
            nn.init.zeros_(connector.bias)
    return method


def one_map(value: float, anchors: torch.Tensor | None = None, images: int = 1) -> DetectorOutput:
    """A level of 2 channels and 4 x 6 cells of 8 pixels, `value` everywhere."""
    sizes = torch.tensor([[32, 48]] * images)
    return DetectorOutput(
        {"neck": Pyramid((torch.full((images, 2, 4, 6), value),), (8,), sizes, None if anchors is None else (anchors,))}
    )


def cells(*sides: float) -> torch.Tensor:
    """(4, 6, A, 4): squares of these sides around the middle of 8-pixel cells."""
    y, x = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    middle = torch.stack([x, y], dim=-1)[:, :, None] * 8 + 4.0
    half = torch.tensor(sides)[:, None] / 2
    return torch.cat([middle - half, middle + half], dim=-1)


# An anchor is its cell: a box of two cells has IoU 1/2 with each of them, one that reaches half into a third has 0.4, 0.4 and 0.2 (strictly half).
TWO, HALF = torch.tensor([[8.0, 8, 24, 16]]), torch.tensor([[8.0, 8, 28, 16]])


@pytest.mark.parametrize(
    ("boxes", "factor", "count"), [(TWO, 0.5, 2), (HALF, 0.5, 2), (HALF, 0.4, 3), (HALF, 0.0, 3), (HALF, 1.0, 0)]
)
@pytest.mark.parametrize("reduction", ["paper", "defeat"])
def test_the_formula_by_hand(boxes: torch.Tensor, factor: float, count: int, reduction: str):
    # Every cell differs by 3 in both channels: 18 a cell, over 2 N cells: 9 whatever N is, 0 for an empty region; per channel 4.5.
    method = copying(FGFI.build(FGFIConfig(weight=0.01, factor=factor, reduction=reduction), INFO, INFO))
    student, teacher = one_map(0.0, cells(8)), one_map(3.0)
    targets = Targets((boxes,), (torch.zeros(1, dtype=torch.long),))
    (region,) = method.regions(method.levels(student, teacher), student, teacher, targets)
    assert region.sum() == count
    expected = (0.09 if reduction == "paper" else 0.045) if count else 0.0
    assert method(student, teacher, targets)["features"].item() == pytest.approx(expected, rel=1e-6)
    assert method(teacher, teacher, targets)["features"].item() == 0


def test_cells_are_pooled_over_the_batch():
    # One cell in the first image (differing by 3), two in the second (by 1): (18 + 2 * 2) / (2 * 3), not the mean of the two images.
    method = copying(FGFI.build(FGFIConfig(weight=1.0), INFO, INFO))
    student, teacher = one_map(0.0, cells(8), images=2), one_map(1.0, images=2)
    teacher.pyramids["neck"].levels[0][0] = 3.0
    targets = Targets((torch.tensor([[8.0, 8, 16, 16]]), TWO), (torch.zeros(1, dtype=torch.long),) * 2)
    assert method(student, teacher, targets)["features"].item() == pytest.approx(22 / 6)


def test_the_connector_begins_near_zero_and_is_signed_unless_asked():
    student, teacher = pair("gfl", "retinanet", channels=48)
    method, positive = built("fgfi", student, teacher), built("fgfi", student, teacher, relu=True)
    weights = [p for p in method.parameters() if p.ndim == 4]
    assert [tuple(w.shape) for w in weights] == [(32, 48, 3, 3)] * 3
    assert all(1.9e-4 < w.abs().max() < 2e-4 for w in weights)
    assert all(p.abs().max() > 1e-3 for p in method.parameters() if p.ndim == 1)  # the bias is torch's
    mine, theirs, _ = looks(method, student, teacher)
    assert all(level.student.min() < 0 for level in method.levels(mine, theirs))
    assert all(level.student.min() >= 0 for level in positive.levels(mine, theirs))
    assert method.need == Need(pyramids=frozenset({"neck"}))


def test_gradient_reaches_connectors_and_body_and_not_the_teacher():
    student, teacher = pair("fcos")
    method = built("fgfi", student, teacher, levels_of_a_box="all")
    mine, theirs, targets = looks(method, student, teacher)
    method(mine, theirs, targets)["features"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.backbone_parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert theirs.stages == ()


def regions(method: FGFI, student: object, teacher: object, scenery: tuple[Batch, Targets]) -> list[torch.Tensor]:
    mine, theirs, targets = looks(method, student, teacher, scenery)
    return method.regions(method.levels(mine, theirs), mine, theirs, targets)


def test_a_box_counts_on_its_own_level_or_on_all():
    student, teacher = pair("atss")
    batch, targets = scene(128, 256)
    batch = replace(batch, sizes=torch.tensor([[128, 256], [50, 70]]))
    small, large = (
        torch.tensor([[10.0, 10, 40, 40]]),
        torch.tensor([[0.0, 0, 250, 250]]),
    )  # on stride 16 from 224 pixels a side
    assert box_levels(torch.cat([small, large]), (8, 16, 32)).tolist() == [0, 1]
    labels = torch.zeros(2, dtype=torch.long)
    targets = Targets((torch.cat([small, large]), torch.zeros(0, 4)), (labels, labels[:0]))
    own, every = (built("fgfi", student, teacher, levels_of_a_box=which) for which in ("own", "all"))
    first, second, third = regions(own, student, teacher, (batch, targets))
    assert first[0].any()
    assert second[0].any()
    assert not third.any()
    assert not first[1].any()
    anchors = student.observe(batch).pyramids["neck"].anchors
    assert torch.equal(first[0], imitation_region(anchors[0], small))
    assert torch.equal(second[0], imitation_region(anchors[1], large))
    whole = regions(every, student, teacher, (batch, targets))
    for region, of_level in zip(whole, anchors, strict=True):
        assert torch.equal(region[0], imitation_region(of_level, small) | imitation_region(of_level, large))


def test_anchors_are_the_students_the_teachers_or_made_from_the_stride():
    retinanet, fcos = tiny("retinanet").eval(), tiny("fcos", seed=2).eval()
    scenery = scene()
    boxes = scenery[1].boxes[0]
    made = [synthetic_anchors(8 // 2**index, 12 // 2**index, 8 * 2**index) for index in range(3)]
    own = retinanet.observe(scenery[0]).pyramids["neck"].anchors
    cases = [
        ("student", retinanet, fcos, own),
        ("student", fcos, retinanet, made),  # points are no anchors
        ("teacher", fcos, retinanet, own),
        ("synthetic", retinanet, fcos, made),
    ]
    for anchors, student, teacher, expected in cases:
        method = built("fgfi", student, teacher, anchors=anchors, levels_of_a_box="all", factor=0.8)
        found = regions(method, student, teacher, scenery)
        wanted = [imitation_region(of_level, boxes, 0.8) for of_level in expected]
        assert all(torch.equal(region[0], want) for region, want in zip(found, wanted, strict=True)), anchors
    assert any(
        (imitation_region(a, boxes, 0.8) != imitation_region(b, boxes, 0.8)).any()
        for a, b in zip(own, made, strict=True)
    )


@pytest.mark.parametrize("region", ["imitation", "full", "inside"])
@pytest.mark.parametrize("kind", ["fcos", "retinanet", "deformable_detr"])
def test_regions_stay_when_the_batch_is_padded_further(kind: str, region: str):
    student, teacher = pair(kind)
    (batch, targets), (wide, _) = scene(64, 96), scene(128, 160)
    edge = torch.tensor(
        [[60.0, 40, 69, 49]]
    )  # at the corner of the second image, so that cells of the padding are near it
    targets = Targets((targets.boxes[0], edge), (targets.labels[0], torch.zeros(1, dtype=torch.long)))
    method = built("fgfi", student, teacher, region=region, levels_of_a_box="all")
    pairs = zip(
        regions(method, student, teacher, (batch, targets)),
        regions(method, student, teacher, (wide, targets)),
        strict=True,
    )
    for near, far in pairs:
        assert near.any(2).any(1).all()
        rows, columns = near.shape[1:]
        assert torch.equal(far[:, :rows, :columns], near)
        assert far.sum() == near.sum()


def test_cells_of_the_padding_set_no_threshold():
    # Anchors a stride wide around cell corners; the image ends at 23, the cell that begins at 24 is padding. The box overlaps its anchor, 20 to
    # 28, by 3 pixels and that of the last cell, 12 to 20, by 1: less than half as much, but the best there is.
    student, teacher = one_map(0.0, cells(8) - 4), one_map(1.0)
    neck = student.pyramids["neck"]
    student = replace(student, pyramids={"neck": replace(neck, sizes=torch.tensor([[32, 23]]))})
    targets = Targets((torch.tensor([[19.0, 4, 23, 12]]),), (torch.zeros(1, dtype=torch.long),))
    method = FGFI.build(FGFIConfig(), INFO, INFO)
    (region,) = method.regions(method.levels(student, teacher), student, teacher, targets)
    assert region[0].nonzero().tolist() == [[1, 2]]


def test_full_takes_every_cell_of_the_image_and_inside_those_of_the_boxes():
    student, teacher = pair("fcos")
    full = regions(built("fgfi", student, teacher, region="full"), student, teacher, scene(objects=False))
    # The second image is 50 x 70 pixels: 7 x 9, 4 x 5 and 2 x 3 cells begin in it.
    assert [level.flatten(1).sum(1).tolist() for level in full] == [[96, 63], [24, 20], [6, 6]]
    inside = regions(built("fgfi", student, teacher, region="inside", levels_of_a_box="all"), student, teacher, scene())
    assert inside[2][0].all()  # the boxes touch every cell of 32 pixels
    assert (
        inside[0][0].sum() == 5 * 5 + 9 * 7 - 2 * 5
    )  # columns by rows of the first two boxes, and what they share; the third lies in the second
    assert not inside[0][1].any()


def test_without_objects_it_is_zero_and_has_gradients():
    student, teacher = pair("fcos")
    method = built("fgfi", student, teacher)
    term = method(*looks(method, student, teacher, scene(objects=False)))["features"]
    assert term.item() == 0
    term.backward()
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters())


def test_duplicating_the_batch_changes_nothing():
    student, teacher = pair("retinanet")
    method = built("fgfi", student, teacher)
    mine, theirs, targets = looks(method, student, teacher)
    doubled = []
    for output in (mine, theirs):
        neck = output.pyramids["neck"]
        levels = tuple(torch.cat([level, level]) for level in neck.levels)
        doubled.append(replace(output, pyramids={"neck": replace(neck, levels=levels, sizes=neck.sizes.repeat(2, 1))}))
    twice = method(*doubled, Targets(targets.boxes * 2, targets.labels * 2))["features"]
    torch.testing.assert_close(twice, method(mine, theirs, targets)["features"])


def test_legacy_widths_are_an_option():
    # A thin box in the gap between two columns of anchors, half a pixel below those of the row above: with a pixel more they all meet.
    student, teacher = one_map(0.0, cells(7)), one_map(1.0)
    targets = Targets((torch.tensor([[7.6, 8, 8.2, 15]]),), (torch.zeros(1, dtype=torch.long),))
    plain, legacy = (copying(FGFI.build(FGFIConfig(legacy=which, factor=0.0), INFO, INFO)) for which in (False, True))
    counts = [m.regions(m.levels(student, teacher), student, teacher, targets)[0].sum().item() for m in (plain, legacy)]
    assert counts == [0, 4]


def test_presets_are_as_published():
    info = tiny("fcos").info
    assert preset("fgfi", info, info) == {"warmup_steps": 400}
    assert preset("fgfi", info, info, given={"reduction": "defeat"})["weight"] == 3.0


def test_what_it_cannot_serve_is_refused_at_build():
    fcos, atss = tiny("fcos").info, tiny("atss").info
    with pytest.raises(UserError, match=r"the teacher \(fcos\) has no anchors; set methods.fgfi.anchors to synthetic"):
        FGFI.build(FGFIConfig(anchors="teacher"), atss, fcos)
    with pytest.raises(UserError, match="no level in common"):
        FGFI.build(FGFIConfig(), replace(atss, strides=(4,)), fcos)


def test_a_map_that_took_the_teachers_size_keeps_the_students_anchors():
    # The teacher has a row and a column more; the student's anchors go on into them. No synthetic one, 64 pixels a side, comes near half of this.
    method = FGFI.build(FGFIConfig(), INFO, INFO)
    student, teacher = one_map(0.0, cells(8)), one_map(3.0)
    neck = teacher.pyramids["neck"]
    larger = replace(neck, levels=(torch.full((1, 2, 5, 7), 3.0),), sizes=torch.tensor([[40, 56]]))
    student = replace(student, pyramids={"neck": replace(student.pyramids["neck"], sizes=larger.sizes)})
    corner = Targets((torch.tensor([[48.0, 32, 56, 40]]),), (torch.zeros(1, dtype=torch.long),))
    teacher = replace(teacher, pyramids={"neck": larger})
    (region,) = method.regions(method.levels(student, teacher), student, teacher, corner)
    assert region.nonzero().tolist() == [[0, 4, 6]]
