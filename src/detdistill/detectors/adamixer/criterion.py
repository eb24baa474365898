"""The task losses of AdaMixer for every stage: focal loss, L1 of box corners, and GIoU."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from detdistill.detectors.queries.stages import merge_terms
from detdistill.distributed import mean_over_processes
from detdistill.geometry import extents
from detdistill.losses import giou_distance
from detdistill.types import Predictions, Targets, required

WEIGHTS: Mapping[str, float] = {"classification": 2.0, "box": 5.0, "giou": 2.0}
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss, arXiv:1708.02002


def set_terms(stages: Sequence[Predictions], frame: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Weighted terms of every stage under the assignment it carries.

    Terms of the last stage have plain names; those of an earlier stage i end in `_i`. The L1 distance is of x y x y
    in 0..1 of the frame (B, 2). Terms are divided by the number of ground truths, averaged over processes, at least
    1. They are NaN if predictions are not finite.
    """
    total = sum(len(labels) for labels in targets.labels)
    count = mean_over_processes(torch.tensor(float(total), device=frame.device))
    terms = []
    for stage in stages:
        sums = _sums(stage, frame, targets)
        terms.append({name: WEIGHTS[name] * value / count for name, value in sums.items()})
    return merge_terms(terms)


def _sums(stage: Predictions, frame: Tensor, targets: Targets) -> dict[str, Tensor]:
    """The terms of one stage, summed over queries, without weights."""
    assignment = required(stage.assignment)
    positive = assignment.positive & assignment.valid  # (B, Q)
    matched = [row[mask] for row, mask in zip(assignment.matched, positive, strict=True)]
    labels = torch.cat([image[index] for image, index in zip(targets.labels, matched, strict=True)])
    target_boxes = torch.cat([image[index] for image, index in zip(targets.boxes, matched, strict=True)])
    target_boxes = target_boxes.to(stage.boxes.dtype)
    one_hot = torch.zeros_like(stage.logits)  # (B, Q, K)
    one_hot[(*positive.nonzero(as_tuple=True), labels)] = 1.0
    focal = sigmoid_focal_loss(stage.logits, one_hot, alpha=ALPHA, gamma=GAMMA, reduction="none").sum(-1)
    boxes = stage.boxes[positive]
    scale = extents(frame[positive.nonzero()[:, 0]])[:, 0]
    distance = ((boxes - target_boxes) / scale).abs().sum()
    zero = stage.boxes.sum() * 0  # keeps the graph if nothing is matched; NaN if a box is not finite
    return {
        "classification": (focal * assignment.valid).sum(),
        "box": distance + zero,
        "giou": giou_distance(boxes, target_boxes).sum() + zero,
    }
