"""Levels of boxes and their features, by hand and compared with torchvision's pooler."""

from collections import OrderedDict

import pytest
import torch
from torch.autograd import gradcheck
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from detdistill.geometry import box_levels, pool_rois

STRIDES = (4, 8, 16, 32)


def squares(*sides: float) -> torch.Tensor:
    """(n, 4) square boxes at (3, 5) with these sides."""
    return torch.tensor([[3.0, 5.0, 3.0 + side, 5.0 + side] for side in sides])


def pyramid(strides: tuple[int, ...], images: int = 2, side: int = 256, channels: int = 3) -> list[torch.Tensor]:
    """Random maps of square images of this side, one per stride."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, channels, side // stride, side // stride, generator=generator) for stride in strides]


def test_a_level_begins_at_14_strides():
    boxes = squares(1, 111.9, 112, 223.9, 224, 447.9, 448, 5000)
    assert box_levels(boxes, STRIDES).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # The square roots of these areas are 112 and 114; then 110.
    assert box_levels(torch.tensor([[0.0, 0, 448, 28], [0, 0, 448, 29]]), STRIDES).tolist() == [1, 1]
    assert box_levels(torch.tensor([[0.0, 0, 448, 27]]), STRIDES).tolist() == [0]


def test_levels_are_torchvisions_if_each_stride_doubles():
    sides = torch.rand(2000, 2, generator=torch.Generator().manual_seed(1)) * 700 + 0.5
    boxes = torch.cat([torch.zeros(2000, 2), sides], dim=1)
    for depths in ((2, 5), (3, 7)):
        strides = [2**depth for depth in range(depths[0], depths[1] + 1)]
        assert torch.equal(box_levels(boxes, strides), LevelMapper(*depths, 224, 4)([boxes]))


def test_strides_that_more_than_double_keep_the_rule():
    # 8 and 24: the level of stride 24 begins at 14 * 24 = 336 pixels, not at 224 (twice the 112 of stride 8).
    assert box_levels(squares(100, 300, 335, 336, 900), (8, 24)).tolist() == [0, 0, 0, 1, 1]
    assert box_levels(squares(100, 300, 500), (4, 32)).tolist() == [0, 0, 1]
    assert box_levels(squares(1, 900), (16,)).tolist() == [0, 0]


def test_boxes_without_area_belong_to_the_finest_level():
    boxes = torch.tensor([[5.0, 5, 5, 5], [9, 9, 4, 500]])
    assert box_levels(boxes, STRIDES).tolist() == [0, 0]
    assert pool_rois(pyramid(STRIDES), STRIDES, [boxes, boxes[:0]]).isfinite().all()


def test_pooling_equals_torchvisions_pooler_with_values_at_cell_centers():
    levels = pyramid(STRIDES)
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(40, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + 8 + torch.rand(40, 2, generator=generator).cumsum(0) * 40], dim=1)
    assert box_levels(boxes, STRIDES).unique().tolist() == [0, 1, 2, 3]
    # torchvision's pooler locates the value of a cell at its corner. A shift of half a cell compensates; it keeps the
    # area and therefore the level.
    shift = torch.tensor(STRIDES)[box_levels(boxes, STRIDES)][:, None] / 2
    host = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=5, sampling_ratio=2)
    host.scales, host.map_levels = [1 / stride for stride in STRIDES], LevelMapper(2, 5, 224, 4)
    named = OrderedDict((str(index), level) for index, level in enumerate(levels))
    per_image = [boxes[:15], boxes[15:]]
    shifted = [(boxes - shift)[:15], (boxes - shift)[15:]]
    torch.testing.assert_close(
        pool_rois(levels, STRIDES, per_image, size=5), host(named, shifted, []), rtol=1e-4, atol=1e-5
    )


def test_rows_are_ordered_by_image_and_images_without_boxes_have_none():
    levels = [
        torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 64, 64),
        torch.arange(10.0, 13).view(3, 1, 1, 1).expand(3, 1, 16, 16),
    ]
    large, small = squares(200), squares(20)
    boxes = [torch.cat([large, small, large]), small[:0], torch.cat([small, large])]
    pooled = pool_rois(levels, (4, 14), boxes, size=2)
    assert pooled.shape == (5, 1, 2, 2)
    assert pooled[:, 0, 0, 0].tolist() == [10, 0, 10, 2, 12]
    empty = pool_rois([level.clone().requires_grad_() for level in levels], (4, 14), [small[:0]] * 3, size=2)
    assert empty.shape == (0, 1, 2, 2)
    empty.sum().backward()  # possible, because the result is part of the graph


def test_pooling_a_ramp_gives_the_bin_centers():
    # The value of each cell is the x of its center. A box of 8..40 pixels in four bins has its bin centers at 12, 20,
    # 28, 36.
    ramp = (torch.arange(16) + 0.5) * 4
    level = ramp.expand(1, 1, 16, 16)
    pooled = pool_rois([level], (4,), [torch.tensor([[8.0, 8, 40, 40]])], size=4)
    torch.testing.assert_close(pooled[0, 0, 1], torch.tensor([12.0, 20, 28, 36]))


def test_the_gradient_flows_into_the_levels_only():
    levels = [level.double().requires_grad_() for level in pyramid((4, 8), images=1, side=32, channels=1)]
    boxes = torch.tensor([[2.0, 3, 19, 23], [1, 1, 115, 116]], dtype=torch.float64)
    assert box_levels(boxes, (4, 8)).tolist() == [0, 1]
    assert gradcheck(lambda *maps: pool_rois(maps, (4, 8), [boxes], size=2), levels)
    leaf_boxes = boxes.clone().requires_grad_()
    pool_rois(levels, (4, 8), [leaf_boxes], size=2).sum().backward()
    assert leaf_boxes.grad is None


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_maps_do_not_round_the_boxes(kind: torch.dtype):
    levels = [level.to(kind) for level in pyramid((4,), images=1, side=1200, channels=1)]
    boxes = [torch.tensor([[1013.3, 1001.7, 1042.1, 1044.9]])]
    exact = pool_rois([level.float() for level in levels], (4,), boxes)
    assert torch.equal(pool_rois(levels, (4,), boxes), exact)
