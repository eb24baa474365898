"""Regions of boxes: golden counts, cases by hand, slow derivations, and padding that must not move a region."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from detdistill.geometry import (
    ThinBoxes,
    box_levels,
    covered_cells,
    decoupled_regions,
    focal_masks,
    imitation_cells,
    imitation_region,
    square_anchors,
    synthetic_anchors,
    valuable_region,
)
from detdistill.geometry import regions as module

# FGFI's cells near objects

BOXES = torch.tensor([[100.0, 100, 299, 249], [400, 300, 431, 331], [16, 32, 750, 580]])


def legacy_anchors(scales: tuple[int, ...], rows: int = 38, columns: int = 50, stride: int = 16) -> torch.Tensor:
    """(rows, columns, 3 * scales, 4): the anchors of the first Faster R-CNN.

    Their widths are whole pixels, and those of the first cell are centered at (7.5, 7.5).
    """
    shapes = []
    for ratio in (0.5, 1.0, 2.0):
        width = round((stride * stride / ratio) ** 0.5)
        shapes += [(width * scale, round(width * ratio) * scale) for scale in scales]
    half = (torch.tensor(shapes, dtype=torch.float64) - 1) / 2
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    middle = torch.stack([x, y], dim=-1)[:, :, None] * stride + 7.5
    return torch.cat([middle - half, middle + half], dim=-1)


@pytest.mark.parametrize(
    ("scales", "counts", "union"), [((8, 16, 32), (156, 98, 738), 804), ((4, 8, 16, 32), (156, 20, 738), 804)]
)
def test_imitation_golden_counts(scales: tuple[int, ...], counts: tuple[int, ...], union: int):
    # From running the published code. A small box without a small anchor has a large region, because the threshold is
    # relative.
    anchors = legacy_anchors(scales)
    assert anchors[0, 0, 0].tolist() == ([-84, -40, 99, 55] if scales[0] == 8 else [-38, -16, 53, 31])
    assert imitation_cells(anchors, BOXES.double(), legacy=True).flatten(1).sum(1).tolist() == list(counts)
    assert imitation_region(anchors, BOXES.double(), legacy=True).sum() == union
    first = imitation_region(anchors, BOXES[:1].double(), legacy=True).nonzero()
    assert (first.amin(0).tolist(), first.amax(0).tolist()) == ([3, 4], [18, 20])


def test_imitation_by_hand_and_strictly_above():
    # One anchor of 2 x 2 per cell, one pixel apart in a row; the box is the first anchor. IoU: 1, 2/6, 0. So the second
    # anchor is not above a factor of 1/3.
    anchors = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2]], dtype=torch.float64).view(1, 3, 1, 4)
    box = anchors[0, 0]
    assert imitation_region(anchors, box, 1 / 3).tolist() == [[True, False, False]]
    assert imitation_region(anchors, box, 0.33).tolist() == [[True, True, False]]
    assert imitation_region(anchors, box, 0.0).tolist() == [[True, True, False]]
    assert imitation_region(anchors, box, 1.0).tolist() == [[False, False, False]]
    # Legacy adds one pixel to every side: areas 9, IoU 1, 6/12, 3/15.
    assert imitation_region(anchors, box, 0.45, legacy=True).tolist() == [[True, True, False]]
    assert imitation_region(anchors, box, 0.19, legacy=True).tolist() == [[True, True, True]]


def test_imitation_equals_a_slow_derivation():
    anchors = synthetic_anchors(6, 8, 8, octave=3)
    boxes = torch.tensor([[3.0, 5, 40, 30], [20, 20, 25, 28], [30, 10, 60, 48]])
    ious = box_iou(anchors.view(-1, 4), boxes).view(6, 8, 3, 3)
    expected = torch.zeros(6, 8, dtype=torch.bool)
    for box in range(3):
        expected |= (ious[..., box] > 0.7 * ious[..., box].max()).any(-1)
    assert torch.equal(imitation_region(anchors, boxes, 0.7), expected)
    assert 0 < expected.sum() < 48


def test_imitation_of_boxes_without_overlap_and_of_no_boxes_is_empty():
    anchors = synthetic_anchors(4, 4, 8)
    far = torch.tensor([[500.0, 500, 510, 510], [9, 9, 9, 9]])
    for boxes in (far, torch.zeros(0, 4)):
        for legacy in (False, True):
            region = imitation_region(anchors, boxes[:1], legacy=legacy)
            assert region.shape == (4, 4)
            assert not region.any()
    assert not imitation_region(anchors, far).any()  # a box without area overlaps no anchor
    assert imitation_cells(anchors, torch.zeros(0, 4)).shape == (0, 4, 4)


def test_imitation_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch):
    anchors, valid = synthetic_anchors(38, 50, 16), torch.rand(3, 38, 50) < 0.7
    in_one_chunk = imitation_cells(anchors, BOXES, valid=valid)
    monkeypatch.setattr(module, "PAIRS", 1)
    assert torch.equal(imitation_cells(anchors, BOXES, valid=valid), in_one_chunk)
    assert not (in_one_chunk & ~valid).any()


def test_invalid_cells_do_not_set_the_imitation_threshold():
    # The last cell fits the box best. Without it the second cell is the best.
    anchors = torch.tensor([[0.0, 0, 4, 2], [2, 0, 6, 2], [3, 0, 7, 2]], dtype=torch.float64).view(1, 3, 1, 4)
    box = torch.tensor([[3.0, 0, 7, 2]], dtype=torch.float64)  # IoU 1/7, 3/5, 1
    assert imitation_cells(anchors, box, 0.7).tolist() == [[[False, False, True]]]
    valid = torch.tensor([[[True, True, False]]])
    assert imitation_cells(anchors, box, 0.7, valid=valid).tolist() == [[[False, True, False]]]


def test_covered_cells_by_hand():
    boxes = torch.tensor([[8.0, 0, 17, 8], [1, 9, 2, 10], [5, 5, 5, 9], [-9, -9, 900, 900]])
    first, small, empty, whole = covered_cells(boxes, 3, 4, 8)
    assert first.nonzero().tolist() == [[0, 1], [0, 2]]
    assert small.nonzero().tolist() == [[1, 0]]
    assert not empty.any()
    assert whole.all()


# LD's valuable region


def squares(*lefts: float, side: float = 4.0) -> torch.Tensor:
    """Boxes (n, 4) of this side whose upper left corners are (left, 0)."""
    left = torch.tensor(lefts)
    return torch.stack([left, torch.zeros_like(left), left + side, torch.full_like(left, side)], dim=-1)


def test_valuable_region_by_hand():
    # The anchors are a box of 4 x 4 and the same box moved right by 0, 1, 2, 3: IoU 1, 3/5, 1/3, 1/7. All four are
    # candidates (fewer than nine on the level): mean 0.5190, unbiased deviation 0.3719, threshold 0.8909, a quarter of
    # it 0.2227. DIoU subtracts shift^2 / ((4 + shift)^2 + 16), which is 0, 1/41, 4/52, 9/65: DIoU 1, 0.5756, 0.2564,
    # 0.0044. So the second and third anchors are the ring. The intersection over the anchor's area, 1, 3/4, 1/2, 1/4,
    # minus the same: 1, 0.7256, 0.4231, 0.1115. This gives the same ring.
    anchors, box = squares(0, 1, 2, 3), squares(0)
    expected = torch.tensor([0, 3 / 5, 1 / 3, 0])
    for region in ("diou", "iof_compat"):
        torch.testing.assert_close(valuable_region([anchors], box, region=region), expected)
    narrow = valuable_region([anchors], box, gamma=0.5)  # 0.4231 < 0.4454 = half of the threshold
    torch.testing.assert_close(narrow, torch.tensor([0, 3 / 5, 0, 0]))
    # The centers are at 2, 3, 4, 5, and the box ends at 4: strictly inside are the first two.
    assert valuable_region([anchors], box, region="inside").tolist() == [1, 1, 0, 0]


def test_the_published_valuable_region_leaves_out_small_anchors_inside_a_large_box():
    box = torch.tensor([[0.0, 0, 64, 64]])
    anchors = [square_anchors(8, 8, 8, octave=4.0)[:, :, 0].reshape(-1, 4)]
    published = valuable_region(anchors, box, region="iof_compat")
    paper = valuable_region(anchors, box, region="diou")
    is_inside = ((anchors[0][:, :2] >= 0) & (anchors[0][:, 2:] <= 64)).all(1)
    assert published[is_inside].sum() == 0  # fully covered: the value is 1 minus a little, above the threshold
    assert paper[is_inside].sum() > 0
    assert not torch.equal(published > 0, paper > 0)


@pytest.mark.parametrize("region", ["iof_compat", "diou"])
def test_valuable_region_equals_a_slow_loop(region: str):
    generator = torch.Generator().manual_seed(3)
    anchors = [square_anchors(96 // s, 96 // s, s)[:, :, 0].reshape(-1, 4) for s in (8, 16, 32)]
    corners = torch.rand(5, 2, 2, generator=generator) * 96
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 4], dim=1)
    all_anchors = torch.cat(anchors).tolist()
    weights = [0.0] * len(all_anchors)
    for box in boxes.tolist():
        closeness, ious = [], []
        for anchor in all_anchors:
            width = max(0.0, min(anchor[2], box[2]) - max(anchor[0], box[0]))
            height = max(0.0, min(anchor[3], box[3]) - max(anchor[1], box[1]))
            intersection = width * height
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (anchor, box)]
            hull_width = max(anchor[2], box[2]) - min(anchor[0], box[0])
            hull_height = max(anchor[3], box[3]) - min(anchor[1], box[1])
            center_distance = sum((anchor[i] + anchor[i + 2] - box[i] - box[i + 2]) ** 2 / 4 for i in (0, 1))
            ious.append(intersection / (sum(areas) - intersection))
            overlap = ious[-1] if region == "diou" else intersection / areas[0]
            closeness.append(overlap - center_distance / (hull_width**2 + hull_height**2))
        first, candidates = 0, []
        for level in anchors:
            rows = range(first, first + len(level))
            distances = [
                sum((all_anchors[row][i] + all_anchors[row][i + 2] - box[i] - box[i + 2]) ** 2 for i in (0, 1))
                for row in rows
            ]
            candidates += [row for _, row in sorted(zip(distances, rows, strict=True))[:9]]
            first += len(level)
        candidate_ious = torch.tensor([ious[row] for row in candidates], dtype=torch.float64)
        threshold = sum(torch.std_mean(candidate_ious)).item()
        for row, value in enumerate(closeness):
            if 0.25 * threshold <= value < threshold:
                weights[row] = max(weights[row], ious[row])
    result = valuable_region(anchors, boxes, region=region)
    assert 0 < (result > 0).sum() < len(result)
    torch.testing.assert_close(result, torch.tensor(weights), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("region", ["iof_compat", "diou", "inside"])
def test_valuable_region_without_boxes_or_anchors_is_empty(region: str):
    anchors, boxes = squares(0, 1), squares(0)
    assert valuable_region([anchors, anchors[:0]], boxes[:0], region=region).tolist() == [0, 0]
    assert valuable_region([anchors[:0]], boxes, region=region).shape == (0,)


# FGD's masks


def test_focal_masks_by_hand():
    # Stride 10 on 4 x 5 cells. (12, 5, 25, 18): columns 1..3 and rows 0..2, nine cells. (30, 20, 39, 29): columns 3..4
    # and rows 2..3, four cells.
    boxes = [torch.tensor([[12.0, 5, 25, 18], [30, 20, 39, 29]]), torch.zeros(0, 4)]
    foreground, background = focal_masks(boxes, (4, 5), 10, torch.tensor([[40, 50], [40, 50]]))
    ninth, quarter = 1 / 9, 1 / 4
    expected = [
        [0, ninth, ninth, ninth, 0],
        [0, ninth, ninth, ninth, 0],
        [0, ninth, ninth, quarter, quarter],
        [0, 0, 0, quarter, quarter],
    ]
    torch.testing.assert_close(foreground[0], torch.tensor(expected))
    torch.testing.assert_close(background[0], (torch.tensor(expected) == 0) / 8)
    assert not foreground[1].any()
    torch.testing.assert_close(background[1], torch.full((4, 5), 1 / 20))


def test_focal_masks_equal_a_loop_over_boxes():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(30, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + torch.rand(30, 2, generator=generator) * 40], dim=1)
    expected = torch.zeros(12, 13)
    for left, top, right, bottom in (boxes / 8).tolist():
        rows, columns = slice(int(top), math.ceil(bottom) + 1), slice(int(left), math.ceil(right) + 1)
        area = (math.ceil(bottom) + 1 - int(top)) * (math.ceil(right) + 1 - int(left))
        expected[rows, columns] = expected[rows, columns].clamp(min=1 / area)
    foreground, _ = focal_masks([boxes], (12, 13), 8, torch.tensor([[96, 104]]))
    torch.testing.assert_close(foreground[0], expected)


def test_padding_moves_only_stretched_focal_masks():
    boxes, sizes = [torch.tensor([[5.0, 7, 30, 40], [40, 30, 70, 50]])], torch.tensor([[50, 70]])
    tight_masks, padded_masks = focal_masks(boxes, (7, 9), 8, sizes), focal_masks(boxes, (16, 20), 8, sizes)
    for tight, padded in zip(tight_masks, padded_masks, strict=True):
        torch.testing.assert_close(padded[:, :7, :9], tight)
        assert not padded[:, 7:].any()
        assert not padded[:, :, 9:].any()
    stretched, _ = focal_masks(boxes, (14, 18), 8, sizes, stretched=True)
    # The box (5, 7, 30, 40) in an image of 50 x 70 pixels: columns floor(5/70 18) .. ceil(30/70 18) = 1 .. 8,
    # rows floor(7/50 14) .. ceil(40/50 14) = 1 .. 12.
    assert stretched[0, 1, 1] == 1 / (8 * 12)
    assert stretched[0, 0].sum() == 0


def test_focal_masks_without_boxes_and_without_background():
    sizes = torch.tensor([[16, 16]])
    foreground, background = focal_masks([torch.tensor([[0.0, 0, 16, 16]])], (2, 2), 8, sizes)
    torch.testing.assert_close(foreground, torch.full((1, 2, 2), 1 / 9))  # 3 x 3 cells, counted before the cut
    assert not background.any()
    assert not focal_masks([torch.zeros(0, 4)], (2, 2), 8, sizes)[0].any()


# DeFeat's foreground

STRIDES = (4, 8, 16, 32)


def level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """(rows, columns) of each level for an image of this size."""
    return [(height // stride, width // stride) for stride in STRIDES]


def slow_decoupled_regions(
    boxes: list[list[float]], height: int, width: int, base: float, thin: str
) -> list[torch.Tensor]:
    """The published rule for one image, one box at a time and with integers. Returns one mask per level."""
    masks = [torch.zeros(shape, dtype=torch.bool) for shape in level_shapes(height, width)]
    for x1, y1, x2, y2 in boxes:
        level = math.floor(math.log2(math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1)) / base + 1e-6))
        level = min(max(level, 0), len(STRIDES) - 1)
        stride, (rows, columns) = STRIDES[level], masks[level].shape
        left, top = min(int(x1 / stride), columns - 1), min(int(y1 / stride), rows - 1)
        right, bottom = min(int(x2 / stride), columns), min(int(y2 / stride), rows)
        if thin == "cell" and (right <= left or bottom <= top):
            masks[level][top, left] = True
        else:
            masks[level][top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return masks


def test_decoupled_regions_by_hand():
    # 7..18 at stride 4: cells int(1.75) = 1 up to int(4.5) = 4, without the last. 20..25: int(5) up to int(6.25) = 6.
    region = decoupled_regions([torch.tensor([[7.0, 20, 18, 25]])], [(8, 8)], [4])[0]
    assert region.nonzero().tolist() == [[0, 5, 1], [0, 5, 2], [0, 5, 3]]


@pytest.mark.parametrize(
    ("box", "cell", "strip"),
    [
        (
            [20.0, 7, 22, 18],
            [[1, 5]],
            [[1, 5], [2, 5], [3, 5]],
        ),  # tall and thin: x 20..22 covers no cell but begins in 5
        ([7.0, 20, 18, 22], [[5, 1]], [[5, 1], [5, 2], [5, 3]]),  # wide and flat
        ([13.0, 14, 15, 15], [[3, 3]], [[3, 3]]),  # thin on both axes
        ([19.0, 7, 22, 18], [[1, 4], [2, 4], [3, 4]], [[1, 4], [2, 4], [3, 4]]),  # thin, but from cell 4 to cell 5
    ],
)
def test_a_box_without_cells_on_one_axis_is_a_single_cell_as_published(
    box: list[float], cell: list[list[int]], strip: list[list[int]]
):
    boxes = [torch.tensor([box])]
    assert decoupled_regions(boxes, [(8, 8)], [4])[0][0].nonzero().tolist() == cell
    assert decoupled_regions(boxes, [(8, 8)], [4], thin="strip")[0][0].nonzero().tolist() == strip


@pytest.mark.parametrize("thin", ["cell", "strip"])
def test_decoupled_regions_equal_the_rule_box_by_box(thin: ThinBoxes):
    generator = torch.Generator().manual_seed(0)
    for base in (56.0, 12.0):
        corner = torch.rand(2, 6, 2, generator=generator) * 150
        boxes = torch.cat([corner, (corner + torch.rand(2, 6, 2, generator=generator) * 120).clamp(max=160)], -1)
        boxes[:, 0, 2] = boxes[:, 0, 0] + 1  # tall and thin
        images = [boxes[0], boxes[1, :2]]
        regions = decoupled_regions(images, level_shapes(160, 160), STRIDES, base, thin)
        for image, image_boxes in enumerate(images):
            for level, mask in enumerate(slow_decoupled_regions(image_boxes.tolist(), 160, 160, base, thin)):
                assert torch.equal(regions[level][image], mask)


def test_each_box_is_on_one_level_chosen_with_sides_one_pixel_longer():
    # Side 111: (111 + 1) / 56 = 2, so it is on the second level. With plain widths it would be on the first.
    box = torch.tensor([[0.0, 0, 111, 111]])
    counts = [int(level.sum()) for level in decoupled_regions([box], level_shapes(128, 128), STRIDES)]
    assert counts == [0, 13 * 13, 0, 0]
    assert box_levels(box, STRIDES).tolist() == [0]
    tiny, huge = torch.tensor([[3.0, 3, 3, 3]]), torch.tensor([[0.0, 0, 128, 128]])
    tiny_regions = decoupled_regions([tiny], level_shapes(128, 128), STRIDES)
    assert [int(level.sum()) for level in tiny_regions] == [1, 0, 0, 0]
    huge_regions = decoupled_regions([huge], level_shapes(128, 128), STRIDES, base=8.0)
    assert [int(level.sum()) for level in huge_regions] == [0, 0, 0, 16]


def test_the_base_follows_the_finest_stride_if_it_is_none():
    box, shapes, strides = [torch.tensor([[0.0, 0, 63, 63]])], [(16, 16), (8, 8)], [8, 16]
    fixed_base = decoupled_regions(box, shapes, strides, base=32.0)
    assert [bool(level.any()) for level in fixed_base] == [False, True]
    stride_base = decoupled_regions(box, shapes, strides, base=None)
    assert [bool(level.any()) for level in stride_base] == [True, False]


def test_padding_does_not_move_decoupled_regions_and_the_map_cuts_them():
    boxes = [torch.tensor([[5.0, 6, 40, 50], [0, 0, 90, 60]]), torch.zeros(0, 4)]
    tight_regions = decoupled_regions(boxes, level_shapes(64, 96), STRIDES)
    padded_regions = decoupled_regions(boxes, level_shapes(128, 160), STRIDES)
    for tight, padded in zip(tight_regions, padded_regions, strict=True):
        rows, columns = tight.shape[1:]
        assert torch.equal(padded[:, :rows, :columns], tight) and padded.sum() == tight.sum()
    assert tight_regions[0][0].any() and not tight_regions[0][1].any()
    outside = decoupled_regions([torch.tensor([[60.0, 60, 500, 66]])], [(16, 16)], [4])[0]
    assert outside.nonzero().tolist() == [[0, 15, 15]]


def test_decoupled_regions_without_objects_are_empty():
    regions = decoupled_regions([torch.zeros(0, 4)] * 2, level_shapes(64, 64), STRIDES)
    assert all(not level.any() for level in regions)
