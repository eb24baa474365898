"""DeFeat's foreground, by hand and by a slow derivation."""

import math

import torch

from detdistill.geometry import box_levels, decoupled_regions

STRIDES = (4, 8, 16, 32)


def shapes(height: int, width: int) -> list[tuple[int, int]]:
    return [(height // stride, width // stride) for stride in STRIDES]


def slow(boxes: list[list[float]], height: int, width: int, base: float) -> list[torch.Tensor]:
    """One box at a time, with the integers of the published rule."""
    masks = [torch.zeros(shape, dtype=torch.bool) for shape in shapes(height, width)]
    for x1, y1, x2, y2 in boxes:
        level = math.floor(math.log2(math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1)) / base + 1e-6))
        level = min(max(level, 0), len(STRIDES) - 1)
        stride, (rows, columns) = STRIDES[level], masks[level].shape
        left, top = min(int(x1 / stride), columns - 1), min(int(y1 / stride), rows - 1)
        right, bottom = max(int(x2 / stride), left + 1), max(int(y2 / stride), top + 1)
        masks[level][top:bottom, left:right] = True
    return masks


def test_by_hand():
    # 7..18 at stride 4: cells int(1.75) = 1 up to int(4.5) = 4, the last not. 20..22 covers no whole step: one cell, 5.
    region = decoupled_regions([torch.tensor([[7.0, 20, 18, 22]])], [(8, 8)], [4])[0]
    assert region.nonzero().tolist() == [[0, 5, 1], [0, 5, 2], [0, 5, 3]]


def test_it_equals_the_rule_box_by_box():
    generator = torch.Generator().manual_seed(0)
    for base in (56.0, 12.0):
        corner = torch.rand(2, 6, 2, generator=generator) * 150
        boxes = torch.cat([corner, (corner + torch.rand(2, 6, 2, generator=generator) * 120).clamp(max=160)], -1)
        images = [boxes[0], boxes[1, :2]]
        found = decoupled_regions(images, shapes(160, 160), STRIDES, base)
        for image, own in enumerate(images):
            for level, mask in enumerate(slow(own.tolist(), 160, 160, base)):
                assert torch.equal(found[level][image], mask)


def test_each_box_is_on_one_level_only_by_a_side_one_pixel_longer():
    # Side 111: (111 + 1) / 56 = 2, so the second level already, where plain widths would say the first.
    box = torch.tensor([[0.0, 0, 111, 111]])
    counts = [int(level.sum()) for level in decoupled_regions([box], shapes(128, 128), STRIDES)]
    assert counts == [0, 13 * 13, 0, 0]
    assert box_levels(box, STRIDES).tolist() == [0]
    tiny, huge = torch.tensor([[3.0, 3, 3, 3]]), torch.tensor([[0.0, 0, 128, 128]])
    assert [int(level.sum()) for level in decoupled_regions([tiny], shapes(128, 128), STRIDES)] == [1, 0, 0, 0]
    assert [int(level.sum()) for level in decoupled_regions([huge], shapes(128, 128), STRIDES, base=8.0)] == [
        0,
        0,
        0,
        16,
    ]


def test_the_base_follows_the_finest_stride_where_asked():
    box = [torch.tensor([[0.0, 0, 63, 63]])]
    assert [bool(level.any()) for level in decoupled_regions(box, [(16, 16), (8, 8)], [8, 16], base=32.0)] == [
        False,
        True,
    ]
    assert [bool(level.any()) for level in decoupled_regions(box, [(16, 16), (8, 8)], [8, 16], base=None)] == [
        True,
        False,
    ]


def test_it_stays_where_it_is_when_the_batch_is_padded_further_and_is_cut_at_the_map():
    boxes = [torch.tensor([[5.0, 6, 40, 50], [0, 0, 90, 60]]), torch.zeros(0, 4)]
    near, far = (decoupled_regions(boxes, shapes(*size), STRIDES) for size in ((64, 96), (128, 160)))
    for small, large in zip(near, far, strict=True):
        rows, columns = small.shape[1:]
        assert torch.equal(large[:, :rows, :columns], small) and large.sum() == small.sum()
    assert near[0][0].any() and not near[0][1].any()
    outside = decoupled_regions([torch.tensor([[60.0, 60, 500, 66]])], [(16, 16)], [4])[0]
    assert outside.nonzero().tolist() == [[0, 15, 15]]


def test_no_objects_at_all():
    assert all(not level.any() for level in decoupled_regions([torch.zeros(0, 4)] * 2, shapes(64, 64), STRIDES))
