"""Which ground truth each anchor or point answers for: index into the ground truths, or -1."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detdistill.geometry.boxes import centers, side_distances


def atss_assign(anchors: Sequence[Tensor], boxes: Tensor, candidates: int = 9) -> Tensor:
    """Adaptive training sample selection, arXiv:1912.02424. anchors: (n, 4) of each level; boxes (G, 4). Returns (N,), N over all levels.

    Of each ground truth the `candidates` anchors of each level with the nearest centres; positive are those whose IoU reaches the mean
    plus the unbiased deviation of all candidates' and whose centre lies more than 0.01 pixels inside. The largest IoU wins an anchor.
    """
    every = torch.cat(list(anchors))
    matched = every.new_full((len(every),), -1, dtype=torch.long)
    if len(boxes) == 0 or len(every) == 0:
        return matched
    overlaps, chosen, threshold = adaptive_thresholds(anchors, boxes, candidates)
    inside = side_distances(centers(every)[:, None], boxes).amin(-1) > 0.01  # (N, G)
    positive = torch.zeros_like(inside).scatter(0, chosen, overlaps.gather(0, chosen) >= threshold) & inside
    best, index = torch.where(positive, overlaps, -1.0).max(1)
    return torch.where(best > -1, index, matched)


def adaptive_thresholds(anchors: Sequence[Tensor], boxes: Tensor, candidates: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """ATSS's overlap from which an anchor is positive. anchors: (n, 4) of each level, N > 0 over all; boxes (G, 4), G > 0.

    Returns IoU (N, G), the places in N of each box's candidates (n, G), and the threshold (G,): mean plus unbiased deviation of theirs.
    """
    every = torch.cat(list(anchors))
    apart = torch.cdist(centers(every), centers(boxes), compute_mode="donot_use_mm_for_euclid_dist")  # (N, G)
    nearest, first = [], 0
    for level in anchors:
        if count := min(candidates, len(level)):
            nearest.append(apart[first : first + len(level)].topk(count, dim=0, largest=False).indices + first)
        first += len(level)
    chosen = torch.cat(nearest)  # (n, G)
    overlaps = box_iou(every, boxes)  # (N, G)
    close = overlaps.gather(0, chosen)
    deviation = close.std(0) if len(close) > 1 else torch.zeros_like(close[0])
    return overlaps, chosen, close.mean(0) + deviation


def fcos_assign(anchors: Sequence[Tensor], boxes: Tensor, radius: float = 1.5) -> Tensor:
    """FCOS with centre sampling, arXiv:2006.09214, as torchvision does it. anchors: (n, 4) of each level, squares of one stride.

    A point is positive for a box it lies in, within `radius` strides of the centre, whose farthest side is between 4 and 8 strides away
    (from 0 on the finest level, without end on the coarsest). The smallest box wins. Returns (N,).
    """
    every = torch.cat(list(anchors))
    if len(boxes) == 0:
        return every.new_full((len(every),), -1, dtype=torch.long)
    points, stride = centers(every), every[:, 2] - every[:, 0]
    sampled = (points[:, None] - centers(boxes)).abs().amax(-1) < radius * stride[:, None]  # (N, G)
    sides = side_distances(points[:, None], boxes)  # (N, G, 4)
    nearest, farthest = sides.amin(-1), sides.amax(-1)
    lower, upper = stride * 4, stride * 8
    lower[: len(anchors[0])] = 0
    upper[len(every) - len(anchors[-1]) :] = float("inf")
    positive = sampled & (nearest > 0) & (farthest > lower[:, None]) & (farthest < upper[:, None])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    smallest, index = torch.where(positive, area, float("inf")).min(1)
    return torch.where(smallest.isfinite(), index, -1)
