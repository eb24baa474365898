"""Distances between feature maps (B, C, H, W). The student comes first and gets the gradient."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.losses.reduce import at_least_single, check_same_shape, weighted_mean

BATCH_AND_CELLS = (0, 2, 3)  # the axes over which a channel's statistics are taken
EPSILON = 1e-6  # added to the standard deviation, outside the square root, as published


def _center(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centered map (B, C, H, W), mean (1, C, 1, 1) and unbiased standard deviation (1, C, 1, 1) of each channel.

    The statistics are taken over the batch and all cells, at least two of them. `torch.std_mean` is not used: on a CPU
    it takes twice the time, and its gradient takes even longer.
    """
    features = at_least_single(features)
    mean = features.mean(dim=BATCH_AND_CELLS, keepdim=True)
    centered = features - mean
    variance = centered.square().sum(dim=BATCH_AND_CELLS, keepdim=True) / (features[:, :1].numel() - 1)
    # Clamped, because the square root of 0 (the variance of a constant channel) has an infinite gradient.
    deviation = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
    return centered, mean, deviation


def standardize(features: Tensor) -> Tensor:
    """Scale each channel of (B, C, H, W) to mean 0 and deviation 1 over the batch and all cells (at least two)."""
    centered, _, deviation = _center(features)
    return centered / (deviation + EPSILON)


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of the standardized maps; (B, C, H, W) to (), in [0, 2).

    It equals the mean over channels of (m - 1) / m * (1 - r), where r is the Pearson correlation over the m = B H W
    positions. PKD, arXiv:2207.02039, equation 4.
    """
    return F.mse_loss(standardize(student), standardize(teacher.detach())) / 2


def match_statistics(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's map with the mean and deviation of each channel replaced by the teacher's; (B, C, H, W).

    The gradient also flows through the student's statistics. The text of CrossKD (arXiv:2306.11369) does not mention
    this step; its published code does it between the student's tower and the teacher's tower.
    Raises ValueError if the channels differ or a map is empty.
    """
    if min(student.numel(), teacher.numel()) == 0 or student.shape[1] != teacher.shape[1]:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"student and teacher must be maps with the same number of channels, got {shapes}")
    student_centered, _, student_deviation = _center(student)
    _, teacher_mean, teacher_deviation = _center(teacher.detach())
    return torch.addcmul(teacher_mean, student_centered, teacher_deviation / (student_deviation + EPSILON))


def hierarchical_context(
    student_levels: Sequence[Tensor], teacher_levels: Sequence[Tensor], sizes: Sequence[int] = (4, 2, 1)
) -> Tensor:
    """ReviewKD's context loss: mean squared difference of the maps and of their pooled versions; ().

    A level (B, C, H, W) gives [mse + sum_r 2^-r mse_r] / (1 + sum_r 2^-r). Here mse_r is the mean squared difference
    after adaptive average pooling to p_r x p_r, and p_1, p_2, ... are the entries of `sizes` below H. Means are over
    all elements; levels are added. sizes=() gives the plain mean square. arXiv:2104.09044; the weights are those of the
    published code.
    """
    pairs = zip(student_levels, teacher_levels, strict=True)
    return torch.stack([_context(student, teacher, sizes) for student, teacher in pairs]).sum()


def _context(student: Tensor, teacher: Tensor, sizes: Sequence[int]) -> Tensor:
    """The context loss of one level, ()."""
    difference = _difference(student, teacher)
    total = difference.square().mean()
    weights = 1.0
    used_sizes = [size for size in sizes if size < difference.shape[-2]]
    for order, size in enumerate(used_sizes, start=1):  # a size that is not used does not halve the weight
        pooled = F.adaptive_avg_pool2d(difference, size)  # pooling is linear, so pooling the difference is enough
        total = total + 0.5**order * pooled.square().mean()
        weights += 0.5**order
    return total / weights


def hint_distance(
    student: Tensor, teacher: Tensor, reduction: Literal["mean", "half_sum", "normalized"] = "mean"
) -> Tensor:
    """Squared difference of two maps (B, C, H, W); (). FitNets, arXiv:1412.6550.

    reduction:
    mean: the mean over all elements.
    half_sum: half the sum over the elements of an image, mean over images.
    normalized: the map of each image is divided by its L2 norm; then the sum over its elements, mean over images. It
    equals 2 - 2 cosine, in 0..4. This is mmrazor's form.
    """
    if reduction == "normalized":
        student = F.normalize(at_least_single(student).flatten(1))  # (B, CHW)
        teacher = F.normalize(at_least_single(teacher).flatten(1))  # (B, CHW)
    squares = _difference(student, teacher).square()
    if reduction == "mean":
        return squares.mean()
    return squares.sum() / len(squares) / (2 if reduction == "half_sum" else 1)


def masked_squares(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Sum over images, channels and cells of the squared difference, weighted by mask (B, H, W); (B, C, H, W) to ().

    It is not divided by anything.
    """
    return (_difference(student, teacher).square().sum(1) * mask).sum()


def region_squares(student: Tensor, teacher: Tensor, regions: Tensor) -> Tensor:
    """Squared difference of maps (B, C, H, W), weighted by each of R regions (R, B, H, W). Returns (R,).

    Each value is summed over cells and channels, and is the mean over images.
    """
    cells = _difference(student, teacher).square().sum(1)  # (B, H, W)
    return (cells * regions).sum((1, 2, 3)) / len(cells)


def token_cosine(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """1 - cosine between the channel vectors of a cell, averaged over cells with `weighted_mean`; (), in 0..2.

    student, teacher: (B, C, H, W) of the same shape. weights: (B, H, W). The length of a vector has no influence.
    RT-DETRv4, arXiv:2510.25257. Raises ValueError if the shapes differ; nothing is broadcast.
    """
    check_same_shape(student, teacher)
    cells = 1 - F.cosine_similarity(at_least_single(student), at_least_single(teacher.detach()), dim=1)  # (B, H, W)
    return weighted_mean(cells, weights.to(cells.dtype))


def region_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of each pooled region; (n, C, H, W) to (n,).

    Mimic, Li, Jin and Yan, CVPR 2017: with the paper's factor 1 / m, without its factor 1 / 2.
    """
    return _difference(student, teacher).square().mean((1, 2, 3))


def decoupled_mse(student: Tensor, teacher: Tensor, region: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """Half the mean squared difference inside `region` and outside it, two values (). DeFeat, arXiv:2103.14475.

    student, teacher: (B, C, H, W). region: (B, H, W) bool.
    The sum of each part is divided by 2 C n, where n is the number of its cells in the whole batch. If `per_channel`
    is False, it is divided by 2 n. The divisor is averaged over processes and is at least 1, so an empty part gives 0.
    """
    factor = 2 * (student.shape[1] if per_channel else 1)
    parts = []
    for mask in (region, ~region):
        divisor = mean_over_processes(factor * mask.sum().float())
        parts.append(masked_squares(student, teacher, mask) / divisor)
    inside, outside = parts
    return inside, outside


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    """student - teacher in single precision or better, teacher detached. Raises ValueError if the shapes differ."""
    check_same_shape(student, teacher)
    return at_least_single(student) - at_least_single(teacher.detach())
