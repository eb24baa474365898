"""Assignments by hand and by a slow independent derivation."""

import torch
from torchvision.ops import box_iou

from detdistill.geometry import (
    atss_assign,
    cell_points,
    centerness,
    fcos_assign,
    side_distances,
    square_anchors,
    to_boxes,
)


def levels() -> list[torch.Tensor]:
    return [square_anchors(12 // step, 16 // step, 8 * step).reshape(-1, 4) for step in (1, 2, 4)]


def slow_atss(anchors: list[torch.Tensor], boxes: torch.Tensor) -> list[int]:
    """The definition, one ground truth and one anchor at a time."""
    every = torch.cat(anchors)
    best = [(-1.0, -1)] * len(every)
    for g, box in enumerate(boxes):
        chosen, first = [], 0
        for level in anchors:
            middle = (level[:, :2] + level[:, 2:]) / 2
            apart = ((middle - (box[:2] + box[2:]) / 2) ** 2).sum(1).sqrt()
            chosen += (apart.argsort()[:9] + first).tolist()
            first += len(level)
        overlaps = box_iou(every, box[None])[:, 0]
        threshold = overlaps[chosen].mean() + overlaps[chosen].std()
        for n in chosen:
            x, y = (every[n, :2] + every[n, 2:]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlaps[n] >= threshold and inside and overlaps[n] > best[n][0]:
                best[n] = (overlaps[n].item(), g)
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
    # Points at 4, 12, 20, 28 of stride 8. A 16-pixel box around (16, 16): points 12 and 20 lie inside and within 1.5 strides of its centre;
    # its farthest side is at most 12, below 4 strides, so only the finest level takes it.
    fine, coarse = (
        torch.cat([p - s / 2, p + s / 2], -1).reshape(-1, 4)
        for p, s in ((cell_points(4, 4, 8, 0.5), 8), (cell_points(2, 2, 16, 0.5), 16))
    )
    matched = fcos_assign([fine, coarse], torch.tensor([[8.0, 8, 24, 24]]))
    assert matched[:16].view(4, 4).eq(0).nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert (matched[16:] == -1).all()


def test_fcos_gives_the_smaller_box_precedence():
    fine = torch.cat([cell_points(4, 4, 8, 0.5) - 4, cell_points(4, 4, 8, 0.5) + 4], -1).reshape(-1, 4)
    matched = fcos_assign([fine], torch.tensor([[0.0, 0, 32, 32], [8.0, 8, 16, 16]]), radius=10).view(4, 4)
    assert matched[1, 1] == 1
    assert matched[0, 0] == 0


def test_centerness_by_hand():
    # (2, 5) in a 10 x 10 box: left 2, right 8, top 5, bottom 5: sqrt(2/8 * 1) = 0.5. Outside: 0.
    box = torch.tensor([0.0, 0, 10, 10])
    assert centerness(torch.tensor([2.0, 5]), box).item() == 0.5
    assert centerness(torch.tensor([-1.0, 5]), box).item() == 0
    points = torch.tensor([[2.0, 5], [7, 1]])
    torch.testing.assert_close(to_boxes(points, side_distances(points, box)), box.expand(2, 4))


def test_square_anchors_sit_on_cell_corners():
    anchors = square_anchors(2, 3, 8)
    assert anchors.shape == (2, 3, 1, 4)
    assert anchors[1, 2, 0].tolist() == [16 - 32, 8 - 32, 16 + 32, 8 + 32]
