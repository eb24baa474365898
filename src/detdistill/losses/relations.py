"""Distances between what features say of each other: where a map is strong, how far instances are apart. The student's come first."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detdistill.losses.reduce import at_least_single

EPSILON = 1e-12  # floor of norms and of mean distances
PKT_EPSILON = 1e-7  # added to norms and probabilities, as published


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images and cells of the squared difference of attention maps: (B, C, H, W) and (B, D, H', W') to ().

    A map is the mean over channels of the squared features, of unit length over its cells. Widths may differ; the larger map is
    average-pooled to the smaller. Falls as 1 / (H W) with the size of the map. arXiv:1612.03928, as in its code.
    """
    return F.mse_loss(*_attentions(student, teacher))


def attention_norm(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images of the Euclidean distance of attention maps, in [0, sqrt 2]: the form of the paper. See `attention_transfer`."""
    guess, taught = _attentions(student, teacher)
    return torch.linalg.vector_norm(guess - taught, dim=1).mean()


def _attentions(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps, (B, H W), of the smaller size."""
    size = min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1])
    maps = [F.adaptive_avg_pool2d(at_least_single(features), size) for features in (student, teacher.detach())]
    guess, taught = (F.normalize(features.square().mean(1).flatten(1), eps=EPSILON) for features in maps)
    return guess, taught


def relation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over ordered pairs of n instances of the smooth L1 between their distances, each side's in units of its mean distance.

    (n, D) and (n, E) to (); 0 for fewer than two. Not changed by scale, shift or rotation of either side. GID, arXiv:2103.02340.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()), reduction="sum")


def _relative_distances(embeddings: Tensor) -> Tensor:
    """(n, n): Euclidean distances by their mean over pairs of two."""
    embeddings = at_least_single(embeddings)
    apart = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    mean = apart.sum() / max(len(apart) * (len(apart) - 1), 1)
    return apart / mean.clamp(min=EPSILON)


def pkt(student: Tensor, teacher: Tensor, diagonal: bool = True) -> Tensor:
    """Mean over the n x n pairs of P_t log(P_t / P_s): (n, D) and (n, E) to (); widths may differ, 0 for fewer than two instances.

    P of a side: (1 + cosine) / 2 of two instances, each row divided by its sum. Rows sum to 1, so that this is the mean KL of a row
    divided by n: it falls as 1 / n. diagonal: an instance's likeness to itself counts, as in the published code; the paper leaves it out.
    PKT, arXiv:1803.10837.
    """
    if len(student) < 2:
        return student.sum() * 0
    guess, taught = (_conditional(side, diagonal) for side in (student, teacher.detach()))
    return (taught * ((taught + PKT_EPSILON) / (guess + PKT_EPSILON)).log()).mean()


def _conditional(embeddings: Tensor, diagonal: bool) -> Tensor:
    """(n, n): probability of the column's instance given the row's."""
    embeddings = at_least_single(embeddings)
    directions = embeddings / (torch.linalg.vector_norm(embeddings, dim=1, keepdim=True) + PKT_EPSILON)
    with torch.autocast(
        embeddings.device.type, enabled=False
    ):  # half precision can't tell one likeness near 1 from another
        likeness = ((directions @ directions.t() + 1) / 2).clamp(min=0)  # rounding goes below 0 for opposite vectors
    if not diagonal:
        likeness = likeness * (1 - torch.eye(len(likeness), dtype=likeness.dtype, device=likeness.device))
    return likeness / likeness.sum(1, keepdim=True).clamp(min=PKT_EPSILON)
