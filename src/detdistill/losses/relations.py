"""Distances between relations inside the features: the attention map of a level, the distances between instances.

The student comes first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detdistill.losses.reduce import at_least_single

EPSILON = 1e-12  # lower limit of norms and of mean distances
PKT_EPSILON = 1e-7  # added to norms and probabilities, as published


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention maps over images and cells: (B, C, H, W) and (B, D, H', W') to ().

    The attention map is the mean over channels of the squared features, divided by its L2 norm over cells. The channels
    may differ. The larger map is average-pooled to the size of the smaller one. The value falls as 1 / (H W) with the
    size of the map. arXiv:1612.03928, as in its code.
    """
    return F.mse_loss(*_attention_maps(student, teacher))


def attention_norm(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images of the Euclidean distance of the attention maps, in [0, sqrt 2]. See `attention_transfer`.

    This is the form in the paper, arXiv:1612.03928.
    """
    student_attention, teacher_attention = _attention_maps(student, teacher)
    return torch.linalg.vector_norm(student_attention - teacher_attention, dim=1).mean()


def _attention_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Attention maps of student and teacher, both (B, H W) at the smaller height and the smaller width."""
    height = min(student.shape[-2], teacher.shape[-2])
    width = min(student.shape[-1], teacher.shape[-1])
    return _attention_map(student, (height, width)), _attention_map(teacher.detach(), (height, width))


def _attention_map(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H W): the attention map of (B, C, H', W') after average pooling to `size`."""
    pooled = F.adaptive_avg_pool2d(at_least_single(features), size)  # (B, C, H, W)
    return F.normalize(pooled.square().mean(1).flatten(1), eps=EPSILON)  # (B, HW)


def relation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the pairwise distances of n instances, summed over ordered pairs: (n, D) and (n, E) to ().

    The distances of each side are divided by their mean, so the scale, shift and rotation of a side have no influence.
    Fewer than two instances give 0. GID, arXiv:2103.02340.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()), reduction="sum")


def _relative_distances(embeddings: Tensor) -> Tensor:
    """(n, n): Euclidean distances, divided by their mean over pairs of different instances."""
    embeddings = at_least_single(embeddings)
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / max(len(distances) * (len(distances) - 1), 1)
    return distances / mean.clamp(min=EPSILON)


def pkt(student: Tensor, teacher: Tensor, diagonal: bool = True) -> Tensor:
    """Mean over the n x n pairs of instances of P_t log(P_t / P_s): (n, D) and (n, E) to (). PKT, arXiv:1803.10837.

    P: (1 + cosine) / 2 of two instances; each row is divided by its sum. The widths D and E may differ.
    diagonal: include the similarity of an instance with itself, as in the published code. The paper leaves it out.
    Rows sum to 1, so the value is the mean KL of a row divided by n: it falls as 1 / n. Fewer than two instances
    give 0.
    """
    if len(student) < 2:
        return student.sum() * 0
    student_probabilities = _conditional_probabilities(student, diagonal)
    teacher_probabilities = _conditional_probabilities(teacher.detach(), diagonal)
    log_ratio = ((teacher_probabilities + PKT_EPSILON) / (student_probabilities + PKT_EPSILON)).log()
    return (teacher_probabilities * log_ratio).mean()


def _conditional_probabilities(embeddings: Tensor, diagonal: bool) -> Tensor:
    """(n, n): the probability of the instance of the column, given the instance of the row."""
    embeddings = at_least_single(embeddings)
    directions = embeddings / (torch.linalg.vector_norm(embeddings, dim=1, keepdim=True) + PKT_EPSILON)
    with torch.autocast(embeddings.device.type, enabled=False):  # half precision can't resolve similarities close to 1
        similarity = (directions @ directions.t() + 1) / 2
        similarity = similarity.clamp(min=0)  # rounding gives values below 0 for opposite vectors
    if not diagonal:
        similarity = similarity * (1 - torch.eye(len(similarity), dtype=similarity.dtype, device=similarity.device))
    return similarity / similarity.sum(1, keepdim=True).clamp(min=PKT_EPSILON)
