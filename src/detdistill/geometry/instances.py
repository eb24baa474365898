"""Where two detectors disagree: instances that no label names. GID, arXiv:2103.02340."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import nms

Side = Literal["best", "difference"]


def disagreement(
    scores: tuple[Tensor, Tensor], boxes: tuple[Tensor, Tensor], side: Side = "best"
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each prediction: by how much the two differ, a box, and the class that differs most.

    scores: class scores (..., K) of student and teacher. boxes: theirs, (..., 4). The box is the teacher's where its best score is larger
    (`best`), or where its score of the class that differs most is not the smaller one (`difference`). Returns max over classes of
    |teacher - student| (...) in 0..1, boxes (..., 4), and labels (...).
    """
    student, teacher = scores
    gap = teacher - student
    size, labels = gap.abs().max(-1)
    of_label = gap.gather(-1, labels[..., None])[..., 0]
    taught = teacher.amax(-1) > student.amax(-1) if side == "best" else of_label >= 0
    return size, torch.where(taught[..., None], boxes[1], boxes[0]), labels


def strongest(scores: Tensor, boxes: Tensor, most: int, overlap: float, pool: int = 1000) -> Tensor:
    """(k,) indices, k <= most: the best of what non-maximum suppression at IoU `overlap` leaves of (n,) scores and (n, 4) boxes, best first.

    Exactly that of all n, but of 200 000 anchors only the best `pool` are suppressed at first: what the best n leave begins with what the
    best few leave. The pool grows where it leaves too few.
    """
    while True:
        best = scores.topk(min(pool, len(scores))).indices
        kept = best[nms(boxes[best], scores[best], overlap)]
        if len(kept) >= most or pool >= len(scores):
            return kept[:most]
        pool *= 4


def general_instances(
    scores: Tensor, boxes: Tensor, valid: Tensor, sizes: Tensor, most: int, overlap: float
) -> tuple[Tensor, Sequence[Tensor]]:
    """The boxes cut at their images, (B, N, 4), and the indices of each image's instances among them, (k,), k <= most, best first.

    scores (B, N), boxes (B, N, 4), valid (B, N), images' valid sizes (B, 2). What is thinner than a pixel, once cut, is no instance.
    """
    boxes = boxes.clamp(min=0).minimum(sizes.flip(-1).repeat(1, 2)[:, None].to(boxes))  # sizes are height, width
    seen = valid & (boxes[..., 2:] - boxes[..., :2] >= 1).all(-1)
    rows = [own.nonzero()[:, 0] for own in seen]
    return boxes, [
        row[strongest(scores[image, row], boxes[image, row], most, overlap)] for image, row in enumerate(rows)
    ]
