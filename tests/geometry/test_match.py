"""Assignments by hand and compared with a slow independent derivation."""

import torch
from torchvision.ops import box_iou

from detdistill.geometry import atss_assign, cell_points, fcos_assign, square_anchors


def levels() -> list[torch.Tensor]:
    """Anchors (n, 4) of three levels with strides 8, 16 and 32."""
    return [square_anchors(12 // step, 16 // step, 8 * step).reshape(-1, 4) for step in (1, 2, 4)]


def cell_squares(rows: int, columns: int, stride: int) -> torch.Tensor:
    """(rows * columns, 4): the square of each cell, as FCOS anchors."""
    points = cell_points(rows, columns, stride, 0.5)
    return torch.cat([points - stride / 2, points + stride / 2], -1).reshape(-1, 4)


def slow_atss(anchors: list[torch.Tensor], boxes: torch.Tensor) -> list[int]:
    """The definition of ATSS, one ground truth and one anchor at a time."""
    all_anchors = torch.cat(anchors)
    best = [(-1.0, -1)] * len(all_anchors)
    for g, box in enumerate(boxes):
        candidates, first = [], 0
        for level in anchors:
            middle = (level[:, :2] + level[:, 2:]) / 2
            distances = ((middle - (box[:2] + box[2:]) / 2) ** 2).sum(1).sqrt()
            candidates += (distances.argsort()[:9] + first).tolist()
            first += len(level)
        ious = box_iou(all_anchors, box[None])[:, 0]
        threshold = ious[candidates].mean() + ious[candidates].std()
        for n in candidates:
            x, y = (all_anchors[n, :2] + all_anchors[n, 2:]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if ious[n] >= threshold and inside and ious[n] > best[n][0]:
                best[n] = (ious[n].item(), g)
    return [g for _, g in best]


def test_atss_equals_its_definition():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        corner = torch.rand(5, 2, generator=generator) * 80
        boxes = torch.cat([corner, corner + 3 + torch.rand(5, 2, generator=generator) * 60], 1)
        assert atss_assign(levels(), boxes).tolist() == slow_atss(levels(), boxes)


def test_atss_without_objects_and_with_few_anchors():
    assert (atss_assign(levels(), torch.zeros(0, 4)) == -1).all()
    single = [torch.tensor([[0.0, 0, 10, 10]])]
    assert atss_assign(single, torch.tensor([[1.0, 1, 11, 11]])).tolist() == [0]


def test_fcos_by_hand():
    # Points at 4, 12, 20, 28 of stride 8. A 16-pixel box around (16, 16): the points 12 and 20 are inside and within
    # 1.5 strides of its center. The farthest side is at most 12 pixels away, below 4 strides, so only the finest level
    # takes it.
    fine, coarse = cell_squares(4, 4, 8), cell_squares(2, 2, 16)
    matched = fcos_assign([fine, coarse], torch.tensor([[8.0, 8, 24, 24]]))
    assert matched[:16].view(4, 4).eq(0).nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert (matched[16:] == -1).all()


def test_fcos_prefers_the_smaller_box():
    boxes = torch.tensor([[0.0, 0, 32, 32], [8.0, 8, 16, 16]])
    matched = fcos_assign([cell_squares(4, 4, 8)], boxes, radius=10).view(4, 4)
    assert matched[1, 1] == 1
    assert matched[0, 0] == 0
