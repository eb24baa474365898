"""Distances between feature maps in which cells do not count alike: attention (FGD, CWD), masks (MGD), confidence (FRS).

Maps are (B, C, H, W); the student's comes first and carries the gradient. Sums over cells and channels are taken in single precision at least.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from detdistill.losses.logits import soft_cross_entropy, softmax_kl
from detdistill.losses.reduce import at_least_single, weighted_mean


def channel_wise(student: Tensor, teacher: Tensor, temperature: float = 1.0, cross_entropy: bool = False) -> Tensor:
    """KL(teacher || student) of each channel's softmax over its cells, mean over images and channels, times temperature squared; to (), nats.

    As each channel sums to 1 it does not grow with the map. cross_entropy: without subtracting the teacher's entropy, which has the same
    gradient and for its minimum that entropy instead of 0. CWD, arXiv:2011.13256, equation 3. Shapes must be equal, nothing is broadcast.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"maps of one shape are needed, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    distance = soft_cross_entropy if cross_entropy else softmax_kl
    guess, target = (at_least_single(side).flatten(2) / temperature for side in (student, teacher))
    return distance(guess, target).mean() * temperature**2


def attentions(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Where a map is strong: spatial (B, H, W), the softmax over cells of the mean |F| over channels, and channel (B, C), the softmax over
    channels of the mean |F| over cells; each is scaled to average 1. FGD, arXiv:2111.11837, equations 2 to 5."""
    strength = at_least_single(features).abs()
    cells, channels = strength.mean(1).flatten(1), strength.mean((2, 3))
    spatial = cells.shape[1] * (cells / temperature).softmax(-1)
    return spatial.view_as(strength[:, 0]), channels.shape[1] * (channels / temperature).softmax(-1)


def focal_distance(student: Tensor, teacher: Tensor, regions: Tensor, temperature: float) -> Tensor:
    """Squared difference weighted by the teacher's two attentions and by each of R regions (R, B, H, W): summed over cells and channels, mean
    over images; to (R,). FGD, arXiv:2111.11837, equation 8 with its two sums apart."""
    taught = at_least_single(teacher.detach())
    spatial, channel = attentions(taught, temperature)
    cells = ((at_least_single(student) - taught).square() * channel[:, :, None, None]).sum(1) * spatial  # (B, H, W)
    return (cells * regions).sum((1, 2, 3)) / len(cells)


def attention_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Absolute difference of the spatial and of the channel attentions, both summed, mean over images; to (). FGD, arXiv:2111.11837,
    equation 9."""
    pairs = zip(attentions(student, temperature), attentions(teacher.detach(), temperature), strict=True)
    spatial, channel = ((mine - theirs).abs().sum() for mine, theirs in pairs)
    return (spatial + channel) / len(student)


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference, summed over cells and channels, mean over images; to (). The second side is not detached: what FGD compares with is
    itself learned."""
    return (at_least_single(student) - at_least_single(teacher)).square().sum() / len(student)


def masked_generation(
    student: Tensor, teacher: Tensor, generate: Callable[[Tensor], Tensor], mask: Tensor | None = None
) -> Tensor:
    """`squared_distance` of the teacher's map and what `generate` makes of the student's masked one; to (). MGD, arXiv:2205.01529, equation 5.

    mask (B, 1, H, W): 1 where a cell is kept, 0 where it is dropped; none: all are kept. What is kept is not scaled up.
    """
    return squared_distance(generate(student if mask is None else student * mask), teacher.detach())


def weighted_square(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Squared difference summed over channels, averaged over cells by `weights` (B, H, W), see `weighted_mean`; to (). FRS, NeurIPS 2021;
    divided by C, the confidence-weighted distance of Ultralytics."""
    cells = (at_least_single(student) - at_least_single(teacher.detach())).square().sum(1)
    return weighted_mean(cells, weights.detach())


def weighted_entropy(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of logits (B, H, W, ...) to the teacher's sigmoids, summed over all but cells, averaged over cells by `weights`
    (B, H, W); to (). Its minimum is the entropy of the teacher's scores. FRS, NeurIPS 2021."""
    rows = F.binary_cross_entropy_with_logits(
        at_least_single(student), at_least_single(teacher.detach()).sigmoid(), reduction="none"
    )
    return weighted_mean(rows.flatten(3).sum(-1), weights.detach())
