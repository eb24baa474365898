"""Assignments: for each anchor or point, the index of its ground truth, or -1 for none."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detdistill.geometry.boxes import centers, side_distances


def atss_assign(anchors: Sequence[Tensor], boxes: Tensor, candidates: int = 9) -> Tensor:
    """Adaptive training sample selection, arXiv:1912.02424. Returns (N,) indices into the boxes, -1 for none.

    anchors: (n, 4) per level; N is their total number. boxes: ground truths (G, 4).
    The candidates of a ground truth are the `candidates` anchors per level with the nearest centers. A candidate is
    positive if its IoU is at least the mean plus the unbiased standard deviation of the IoUs of all candidates, and if
    its center is more than 0.01 pixels inside the ground truth. An anchor that is positive for several ground truths
    takes the one with the largest IoU.
    """
    all_anchors = torch.cat(list(anchors))  # (N, 4)
    matched = all_anchors.new_full((len(all_anchors),), -1, dtype=torch.long)
    if len(boxes) == 0 or len(all_anchors) == 0:
        return matched
    ious, candidate_rows, thresholds = adaptive_thresholds(anchors, boxes, candidates)
    is_inside = side_distances(centers(all_anchors)[:, None], boxes).amin(-1) > 0.01  # (N, G)
    is_close = ious.gather(0, candidate_rows) >= thresholds  # (n, G)
    positive = torch.zeros_like(is_inside).scatter(0, candidate_rows, is_close) & is_inside  # (N, G)
    best_iou, index = torch.where(positive, ious, -1.0).max(1)
    return torch.where(best_iou > -1, index, matched)


def adaptive_thresholds(anchors: Sequence[Tensor], boxes: Tensor, candidates: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """ATSS's IoU threshold of each ground truth, arXiv:1912.02424.

    anchors: (n, 4) per level; their total number N is at least 1. boxes: ground truths (G, 4), G at least 1.
    Returns the IoU (N, G), the rows of the candidates (n, G), and the threshold (G,): the mean plus the unbiased
    standard deviation of the candidates' IoUs.
    """
    all_anchors = torch.cat(list(anchors))  # (N, 4)
    distances = torch.cdist(centers(all_anchors), centers(boxes), compute_mode="donot_use_mm_for_euclid_dist")  # (N, G)
    nearest, first = [], 0
    for level in anchors:
        if count := min(candidates, len(level)):
            level_distances = distances[first : first + len(level)]
            nearest.append(level_distances.topk(count, dim=0, largest=False).indices + first)
        first += len(level)
    candidate_rows = torch.cat(nearest)  # (n, G)
    ious = box_iou(all_anchors, boxes)  # (N, G)
    candidate_ious = ious.gather(0, candidate_rows)
    deviation = candidate_ious.std(0) if len(candidate_ious) > 1 else torch.zeros_like(candidate_ious[0])
    return ious, candidate_rows, candidate_ious.mean(0) + deviation


def fcos_assign(anchors: Sequence[Tensor], boxes: Tensor, radius: float = 1.5) -> Tensor:
    """FCOS with center sampling, arXiv:2006.09214, as in torchvision. Returns (N,) indices into the boxes, -1 for none.

    anchors: (n, 4) per level, squares with a side of one stride; their centers are the points. boxes: (G, 4).
    A point is positive for a box if it is inside the box, if it is within `radius` strides of the box center, and if
    its distance to the farthest side is between 4 and 8 strides. The finest level has no lower limit and the coarsest
    level has no upper limit. A point that is positive for several boxes takes the smallest box.
    """
    all_anchors = torch.cat(list(anchors))  # (N, 4)
    if len(boxes) == 0:
        return all_anchors.new_full((len(all_anchors),), -1, dtype=torch.long)
    points = centers(all_anchors)
    strides = all_anchors[:, 2] - all_anchors[:, 0]
    is_central = (points[:, None] - centers(boxes)).abs().amax(-1) < radius * strides[:, None]  # (N, G)
    sides = side_distances(points[:, None], boxes)  # (N, G, 4)
    nearest, farthest = sides.amin(-1), sides.amax(-1)
    lower, upper = strides * 4, strides * 8
    lower[: len(anchors[0])] = 0
    upper[len(all_anchors) - len(anchors[-1]) :] = float("inf")
    positive = is_central & (nearest > 0) & (farthest > lower[:, None]) & (farthest < upper[:, None])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    smallest, index = torch.where(positive, areas, float("inf")).min(1)
    return torch.where(smallest.isfinite(), index, -1)
