"""Distances between the predictions of two sets of queries. Class columns of softmax heads include the background, last.

Boxes here are cx cy w h in 0..1 of the image. Nothing is reduced but where a docstring says so.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

from detdistill.losses.boxes import pairwise_giou
from detdistill.losses.features import masked_squares
from detdistill.losses.reduce import at_least_single
from detdistill.types import Activation


def soft_class_costs(student: Tensor, teacher: Tensor, activation: Activation = "sigmoid") -> Tensor:
    """Cross-entropy of every student query to every teacher query: logits (..., Q, K) and scores (..., M, K) to (..., Q, M), nats, summed over
    classes: of K yes-or-no answers with sigmoids, of one choice with softmax. DETRDistill's class cost, arXiv:2211.10156."""
    target = teacher.transpose(-1, -2)
    if activation == "softmax":
        return -(student.log_softmax(-1) @ target)
    return F.softplus(-student) @ target + F.softplus(student) @ (1 - target)


def soft_class_distance(student: Tensor, teacher: Tensor, activation: Activation = "sigmoid") -> Tensor:
    """The same for matching rows, (..., K) and (..., K) to (...). Its minimum is the entropy of the teacher's scores."""
    if activation == "softmax":
        return -(student.log_softmax(-1) * teacher).sum(-1)
    return F.binary_cross_entropy_with_logits(student, teacher, reduction="none").sum(-1)


def soft_class_entropy(scores: Tensor, activation: Activation = "sigmoid") -> Tensor:
    """The minimum of `soft_class_distance`: (..., K) scores to (...), nats. The difference of the two is a Kullback-Leibler divergence."""
    entropy = torch.special.entr(scores)
    return (entropy if activation == "softmax" else entropy + torch.special.entr(1 - scores)).sum(-1)


@torch.no_grad()
def query_costs(
    student_logits: Tensor,
    teacher_scores: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    activation: Activation = "sigmoid",
    weights: tuple[float, float, float] = (1.0, 5.0, 2.0),
    classified: Tensor | None = None,
) -> Tensor:
    """What it costs to pair student and teacher queries: (..., Q, K), (..., M, K), (..., Q, 4), (..., M, 4) to (..., Q, M).

    No gradient, in single precision under autocast too. weights: of `soft_class_costs`, of the L1 distance and of -GIoU. classified (..., M): the
    teacher queries whose class counts; none: all.
    """
    student_logits, teacher_scores, student_boxes, teacher_boxes = map(
        at_least_single, (student_logits, teacher_scores, student_boxes, teacher_boxes)
    )
    with torch.autocast(student_logits.device.type, enabled=False):
        classes = soft_class_costs(student_logits, teacher_scores, activation)
        if classified is not None:
            classes = classes * classified[..., None, :]
        apart = torch.cdist(student_boxes, teacher_boxes, p=1)
        mine, theirs = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (student_boxes, teacher_boxes))
        return (weights[0] * classes).add_(apart, alpha=weights[1]).sub_(pairwise_giou(mine, theirs), alpha=weights[2])


def query_similarity(features: Tensor, queries: Tensor, cosine: bool = False) -> Tensor:
    """<F(y, x), Q_m>: maps (B, D, H, W) and queries (B, M, D) to (B, M, H, W); both brought to length one before where `cosine`."""
    if cosine:
        features, queries = F.normalize(features, dim=1), F.normalize(queries, dim=-1)
    return torch.einsum("bdhw,bmd->bmhw", features, queries)


def target_aware_distance(student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid cells and channels of mask (F_T - F_S)^2: maps (B, D, H, W), mask and valid (B, H, W), to (). No gradient to the teacher."""
    return masked_squares(student, teacher, mask * valid) / (student.shape[1] * valid.sum().clamp(min=1))


def relation_contrast(student: Tensor, teacher: Tensor, temperature: float = 0.07) -> Tensor:
    """-log softmax of each teacher row's own student among all students, mean over rows: paired rows (N, D) and (N, D) to ().

    Rows are brought to length one first. Gradient flows to both, as both are projections that learn. No rows give 0.
    """
    if len(student) == 0:
        return student.sum() + teacher.sum()
    mine, theirs = (F.normalize(at_least_single(rows), dim=-1) for rows in (student, teacher))
    with torch.autocast(student.device.type, enabled=False):
        products = theirs @ mine.t() / temperature
    return F.cross_entropy(products, torch.arange(len(student), device=student.device))
