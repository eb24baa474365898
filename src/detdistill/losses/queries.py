"""Distances between the predictions of two query sets. Logits of softmax heads end with the background column.

Boxes are cx cy w h in 0..1 of the image. Nothing is reduced unless a docstring says so.
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
    """Cross-entropy of every student query with every teacher query; to (..., Q, M), in nats, summed over classes.

    student: logits (..., Q, K). teacher: scores (..., M, K).
    sigmoid: the sum of K binary cross-entropies. softmax: one cross-entropy over K classes.
    The class cost of DETRDistill, arXiv:2211.10156.
    """
    target = teacher.transpose(-1, -2)  # (..., K, M)
    if activation == "softmax":
        return -(student.log_softmax(-1) @ target)
    return F.softplus(-student) @ target + F.softplus(student) @ (1 - target)


def soft_class_distance(student: Tensor, teacher: Tensor, activation: Activation = "sigmoid") -> Tensor:
    """The cross-entropy of `soft_class_costs` for matching rows: logits (..., K) and scores (..., K) to (...), in nats.

    Its minimum is the entropy of the teacher's scores.
    """
    if activation == "softmax":
        return -(student.log_softmax(-1) * teacher).sum(-1)
    return F.binary_cross_entropy_with_logits(student, teacher, reduction="none").sum(-1)


def soft_class_entropy(scores: Tensor, activation: Activation = "sigmoid") -> Tensor:
    """The minimum of `soft_class_distance`: scores (..., K) to (...), in nats.

    `soft_class_distance` minus this entropy is a Kullback-Leibler divergence.
    """
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
    """Cost of pairing every student query with every teacher query; (..., Q, M), no gradient.

    student_logits: (..., Q, K). teacher_scores: (..., M, K). student_boxes: (..., Q, 4). teacher_boxes: (..., M, 4).
    weights: of the class cost (`soft_class_costs`), of the L1 distance and of -GIoU.
    classified: (..., M) bool, the teacher queries whose class cost counts. None means all.
    The costs are computed in single precision or better, also under autocast.
    """
    student_logits = at_least_single(student_logits)
    teacher_scores = at_least_single(teacher_scores)
    student_boxes = at_least_single(student_boxes)
    teacher_boxes = at_least_single(teacher_boxes)
    with torch.autocast(student_logits.device.type, enabled=False):
        class_costs = soft_class_costs(student_logits, teacher_scores, activation)  # (..., Q, M)
        if classified is not None:
            class_costs = class_costs * classified[..., None, :]
        l1 = torch.cdist(student_boxes, teacher_boxes, p=1)
        student_corners = box_convert(student_boxes, "cxcywh", "xyxy")
        teacher_corners = box_convert(teacher_boxes, "cxcywh", "xyxy")
        costs = (weights[0] * class_costs).add_(l1, alpha=weights[1])
        return costs.sub_(pairwise_giou(student_corners, teacher_corners), alpha=weights[2])


def query_similarity(features: Tensor, queries: Tensor, cosine: bool = False) -> Tensor:
    """Dot product of every cell with every query: maps (B, D, H, W) and queries (B, M, D) to (B, M, H, W).

    cosine: divide both vectors by their length first.
    """
    if cosine:
        features = F.normalize(features, dim=1)
        queries = F.normalize(queries, dim=-1)
    return torch.einsum("bdhw,bmd->bmhw", features, queries)


def target_aware_distance(student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
    """Mean of mask * (teacher - student)^2 over valid cells and channels; ().

    student, teacher: maps (B, D, H, W). mask, valid: (B, H, W). The teacher is detached.
    """
    return masked_squares(student, teacher, mask * valid) / (student.shape[1] * valid.sum().clamp(min=1))


def relation_contrast(student: Tensor, teacher: Tensor, temperature: float = 0.07) -> Tensor:
    """Contrastive loss over N pairs: rows (N, D) and (N, D) to ().

    For each teacher row: -log softmax, over all student rows, of the student row paired with it. Mean over rows. Rows
    are divided by their length first. The gradient flows to both sides, because both are learned projections.
    No rows give 0.
    """
    if len(student) == 0:
        return student.sum() + teacher.sum()
    student_rows = F.normalize(at_least_single(student), dim=-1)
    teacher_rows = F.normalize(at_least_single(teacher), dim=-1)
    with torch.autocast(student.device.type, enabled=False):
        logits = teacher_rows @ student_rows.t() / temperature  # (N, N)
    return F.cross_entropy(logits, torch.arange(len(student), device=student.device))
