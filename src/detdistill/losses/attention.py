"""Feature distances that weight cells or channels: attention (FGD), softmax (CWD), masks (MGD), confidence (FRS).

Maps are (B, C, H, W). The student comes first and gets the gradient. Sums over cells and channels are taken in
single precision or better.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from detdistill.losses.logits import soft_cross_entropy, softmax_kl
from detdistill.losses.reduce import at_least_single, check_same_shape, weighted_mean


def channel_wise(student: Tensor, teacher: Tensor, temperature: float = 1.0, cross_entropy: bool = False) -> Tensor:
    """KL(teacher || student) of each channel's softmax over its cells. CWD, arXiv:2011.13256, equation 3.

    student, teacher: (B, C, H, W). Returns (), in nats: the mean over images and channels, times temperature squared.
    The value does not grow with the map size, because each channel sums to 1.
    cross_entropy: use the cross-entropy instead, which does not subtract the teacher's entropy. The gradient is the
    same, but the minimum is the teacher's entropy instead of 0.
    Raises ValueError if the shapes differ; nothing is broadcast.
    """
    check_same_shape(student, teacher)
    distance = soft_cross_entropy if cross_entropy else softmax_kl
    student_logits = at_least_single(student).flatten(2) / temperature  # (B, C, HW)
    teacher_logits = at_least_single(teacher).flatten(2) / temperature  # (B, C, HW)
    return distance(student_logits, teacher_logits).mean() * temperature**2


def attentions(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Spatial attention (B, H, W) and channel attention (B, C) of a map. FGD, arXiv:2111.11837, equations 2 to 5.

    spatial: softmax over cells of the mean |F| over channels, times the number of cells.
    channel: softmax over channels of the mean |F| over cells, times the number of channels.
    The mean of each attention is 1.
    """
    strength = at_least_single(features).abs()  # (B, C, H, W)
    cells = strength.mean(1).flatten(1)  # (B, HW)
    channels = strength.mean((2, 3))  # (B, C)
    spatial = cells.shape[1] * (cells / temperature).softmax(-1)
    channel = channels.shape[1] * (channels / temperature).softmax(-1)
    return spatial.view_as(strength[:, 0]), channel


def focal_distance(student: Tensor, teacher: Tensor, regions: Tensor, temperature: float) -> Tensor:
    """Squared difference weighted by the teacher's attentions and by each of R regions. Returns (R,).

    student, teacher: (B, C, H, W). regions: weights (R, B, H, W). Each value is summed over cells and channels, and is
    the mean over images. FGD, arXiv:2111.11837, equation 8, with its two sums returned separately.
    """
    teacher = at_least_single(teacher.detach())
    spatial, channel = attentions(teacher, temperature)
    squares = (at_least_single(student) - teacher).square() * channel[:, :, None, None]  # (B, C, H, W)
    cells = squares.sum(1) * spatial  # (B, H, W)
    return (cells * regions).sum((1, 2, 3)) / len(cells)


def attention_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Absolute differences of the spatial attentions and of the channel attentions, added; maps (B, C, H, W) to ().

    The differences are summed over cells and over channels, mean over images. FGD, arXiv:2111.11837, equation 9.
    """
    student_spatial, student_channel = attentions(student, temperature)
    teacher_spatial, teacher_channel = attentions(teacher.detach(), temperature)
    spatial = (student_spatial - teacher_spatial).abs().sum()
    channel = (student_channel - teacher_channel).abs().sum()
    return (spatial + channel) / len(student)


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference, summed over cells and channels, mean over images; maps (B, C, H, W) to ().

    The teacher is not detached: FGD's relation term passes the teacher's map through a learned block first.
    """
    return (at_least_single(student) - at_least_single(teacher)).square().sum() / len(student)


def masked_generation(
    student: Tensor, teacher: Tensor, generate: Callable[[Tensor], Tensor], mask: Tensor | None = None
) -> Tensor:
    """`squared_distance` between `generate(masked student map)` and the teacher's map; ().

    mask: (B, 1, H, W), 1 for a cell to keep and 0 for a cell to drop. None keeps all cells. The kept cells are not
    scaled up. The teacher is detached. MGD, arXiv:2205.01529, equation 5.
    """
    masked = student if mask is None else student * mask
    return squared_distance(generate(masked), teacher.detach())


def weighted_square(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Squared difference, summed over channels and averaged over cells with `weighted_mean`; to (). FRS, NeurIPS 2021.

    student, teacher: (B, C, H, W). weights: (B, H, W), detached. Divided by C, this is the confidence-weighted
    distance of Ultralytics.
    """
    cells = (at_least_single(student) - at_least_single(teacher.detach())).square().sum(1)  # (B, H, W)
    return weighted_mean(cells, weights.detach())


def weighted_entropy(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of student logits against the teacher's sigmoid scores; to (). FRS, NeurIPS 2021.

    student, teacher: logits (B, H, W, ...). weights: (B, H, W), detached. The entropy is summed over all axes behind
    the cells and averaged over cells with `weighted_mean`. Its minimum is the entropy of the teacher's scores.
    """
    target_scores = at_least_single(teacher.detach()).sigmoid()
    entropy = F.binary_cross_entropy_with_logits(at_least_single(student), target_scores, reduction="none")
    return weighted_mean(entropy.flatten(3).sum(-1), weights.detach())
