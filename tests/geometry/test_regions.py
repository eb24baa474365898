"""Regions of boxes: FGFI's golden counts, a case worked by hand, and what must leave a region where it is."""

import pytest
import torch
from torchvision.ops import box_iou

from detdistill.geometry import covered_cells, imitation_cells, imitation_region, synthetic_anchors
from detdistill.geometry import regions as module

BOXES = torch.tensor([[100.0, 100, 299, 249], [400, 300, 431, 331], [16, 32, 750, 580]])


def legacy_anchors(scales: tuple[int, ...], rows: int = 38, columns: int = 50, stride: int = 16) -> torch.Tensor:
    """(rows, columns, 3 * scales, 4): the first Faster R-CNN's anchors, widths of whole pixels, around (7.5, 7.5) of the first cell."""
    shapes = []
    for ratio in (0.5, 1.0, 2.0):
        width = round((stride * stride / ratio) ** 0.5)
        shapes += [(width * scale, round(width * ratio) * scale) for scale in scales]
    half = (torch.tensor(shapes, dtype=torch.float64) - 1) / 2
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    middle = torch.stack([x, y], dim=-1)[:, :, None] * stride + 7.5
    return torch.cat([middle - half, middle + half], dim=-1)


@pytest.mark.parametrize(
    ("scales", "each", "union"), [((8, 16, 32), (156, 98, 738), 804), ((4, 8, 16, 32), (156, 20, 738), 804)]
)
def test_golden_counts(scales: tuple[int, ...], each: tuple[int, ...], union: int):
    # From running the published code. A small box without a small anchor has a large region: the threshold is relative.
    anchors = legacy_anchors(scales)
    assert anchors[0, 0, 0].tolist() == ([-84, -40, 99, 55] if scales[0] == 8 else [-38, -16, 53, 31])
    assert imitation_cells(anchors, BOXES.double(), legacy=True).flatten(1).sum(1).tolist() == list(each)
    assert imitation_region(anchors, BOXES.double(), legacy=True).sum() == union
    first = imitation_region(anchors, BOXES[:1].double(), legacy=True).nonzero()
    assert (first.amin(0).tolist(), first.amax(0).tolist()) == ([3, 4], [18, 20])


def test_by_hand_and_strictly_above():
    # One anchor of 2 x 2 a cell, one pixel apart in a row; the box is the first. IoU: 1, 2/6, 0, so a factor of 1/3 is not exceeded by the second.
    anchors = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2]], dtype=torch.float64).view(1, 3, 1, 4)
    box = anchors[0, 0]
    assert imitation_region(anchors, box, 1 / 3).tolist() == [[True, False, False]]
    assert imitation_region(anchors, box, 0.33).tolist() == [[True, True, False]]
    assert imitation_region(anchors, box, 0.0).tolist() == [[True, True, False]]
    assert imitation_region(anchors, box, 1.0).tolist() == [[False, False, False]]
    # With a pixel more on every side: areas 9, IoU 1, 6/12, 3/15.
    assert imitation_region(anchors, box, 0.45, legacy=True).tolist() == [[True, True, False]]
    assert imitation_region(anchors, box, 0.19, legacy=True).tolist() == [[True, True, True]]


def test_it_is_the_slow_rule():
    anchors = synthetic_anchors(6, 8, 8, octave=3)
    boxes = torch.tensor([[3.0, 5, 40, 30], [20, 20, 25, 28], [30, 10, 60, 48]])
    overlap = box_iou(anchors.view(-1, 4), boxes).view(6, 8, 3, 3)
    expected = torch.zeros(6, 8, dtype=torch.bool)
    for box in range(3):
        expected |= (overlap[..., box] > 0.7 * overlap[..., box].max()).any(-1)
    assert torch.equal(imitation_region(anchors, boxes, 0.7), expected)
    assert 0 < expected.sum() < 48


def test_boxes_that_touch_nothing_and_no_boxes_give_nothing():
    anchors = synthetic_anchors(4, 4, 8)
    far = torch.tensor([[500.0, 500, 510, 510], [9, 9, 9, 9]])
    for boxes in (far, torch.zeros(0, 4)):
        for legacy in (False, True):
            region = imitation_region(anchors, boxes[:1], legacy=legacy)
            assert region.shape == (4, 4)
            assert not region.any()
    assert not imitation_region(anchors, far).any()  # a box without area overlaps no anchor
    assert imitation_cells(anchors, torch.zeros(0, 4)).shape == (0, 4, 4)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    anchors, valid = synthetic_anchors(38, 50, 16), torch.rand(3, 38, 50) < 0.7
    whole = imitation_cells(anchors, BOXES, valid=valid)
    monkeypatch.setattr(module, "PAIRS", 1)
    assert torch.equal(imitation_cells(anchors, BOXES, valid=valid), whole)
    assert not (whole & ~valid).any()


def test_cells_that_take_no_part_set_no_threshold():
    # The last cell fits the box best; without it the second is the best and its neighbour reaches half of that.
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


def test_synthetic_anchors_by_hand():
    anchors = synthetic_anchors(2, 3, 4)
    assert anchors.shape == (2, 3, 3, 4)
    torch.testing.assert_close(anchors[1, 2, 1], torch.tensor([10.0 - 16, 6 - 16, 10 + 16, 6 + 16]))
    width, height = (anchors[..., 2:] - anchors[..., :2]).unbind(-1)
    torch.testing.assert_close(width * height, torch.full_like(width, 32.0**2))
    torch.testing.assert_close((height / width)[0, 0], torch.tensor([0.5, 1, 2]))
