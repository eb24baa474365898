"""GID's general instances: boxes where two detectors disagree, chosen without labels. arXiv:2103.02340."""

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import nms

Side = Literal["best", "difference"]


def disagreement(
    scores: tuple[Tensor, Tensor], boxes: tuple[Tensor, Tensor], side: Side = "best"
) -> tuple[Tensor, Tensor, Tensor]:
    """For each prediction: the size of the disagreement, the box of one detector, and the class that differs most.

    scores: class scores (..., K) of student and teacher. boxes: boxes (..., 4) of student and teacher.
    side: when the box is the teacher's. `best`: if the teacher's best score is larger than the student's best score.
    `difference`: if the teacher's score of the class that differs most is not smaller than the student's.
    Returns max over classes of |teacher - student| (...) in 0..1, boxes (..., 4), and labels (...).
    """
    student, teacher = scores
    difference = teacher - student  # (..., K)
    size, labels = difference.abs().max(-1)
    if side == "best":
        use_teacher = teacher.amax(-1) > student.amax(-1)
    else:
        use_teacher = difference.gather(-1, labels[..., None])[..., 0] >= 0
    student_boxes, teacher_boxes = boxes
    return size, torch.where(use_teacher[..., None], teacher_boxes, student_boxes), labels


def strongest(scores: Tensor, boxes: Tensor, limit: int, iou_threshold: float, pool: int = 1000) -> Tensor:
    """Indices (k,), k <= limit, of the best boxes after non-maximum suppression, best first.

    scores: (n,). boxes: (n, 4). iou_threshold: suppress a box that overlaps a better box by more than this IoU.
    pool: number of best boxes that take part at first, because n may be 200,000 anchors. If fewer than `limit` of them
        survive, the pool grows. The result is the same as for all n boxes, because only better boxes suppress a box.
    """
    while True:
        best = scores.topk(min(pool, len(scores))).indices
        kept = best[nms(boxes[best], scores[best], iou_threshold)]
        if len(kept) >= limit or pool >= len(scores):
            return kept[:limit]
        pool *= 4


def general_instances(
    scores: Tensor, boxes: Tensor, valid: Tensor, sizes: Tensor, limit: int, iou_threshold: float
) -> tuple[Tensor, list[Tensor]]:
    """The boxes clipped to their images (B, N, 4), and the indices (k,) of each image's instances, best first.

    scores: (B, N). boxes: (B, N, 4). valid: (B, N) bool. sizes: (B, 2), the valid (height, width) of each image.
    limit: k is at most this. iou_threshold: see `strongest`.
    A box whose clipped width or height is below one pixel is not an instance.
    """
    limits = sizes.flip(-1).repeat(1, 2)[:, None]  # (B, 1, 4): width, height, width, height
    boxes = boxes.clamp(min=0).minimum(limits.to(boxes))
    is_candidate = valid & (boxes[..., 2:] - boxes[..., :2] >= 1).all(-1)  # (B, N)
    instances = []
    for image_scores, image_boxes, image_candidates in zip(scores, boxes, is_candidate, strict=True):
        rows = image_candidates.nonzero()[:, 0]
        instances.append(rows[strongest(image_scores[rows], image_boxes[rows], limit, iou_threshold)])
    return boxes, instances
