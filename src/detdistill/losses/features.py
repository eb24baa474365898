"""Distances between feature maps. Maps are (B, C, H, W); the student's comes first and carries the gradient."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from detdistill.distributed import mean_over_processes
from detdistill.losses.reduce import at_least_single, weighted_mean

CELLS = (0, 2, 3)  # of a channel: images, rows, columns
EPSILON = 1e-6  # added to the standard deviation, outside the root, as published


def _centered(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances from each channel's mean (B, C, H, W), that mean, and the unbiased standard deviation, both (1, C, 1, 1), over the batch
    and all cells; needs two cells or more. In plain passes: `torch.std_mean` takes twice the time on a CPU, and its gradient more."""
    features = at_least_single(features)
    mean = features.mean(dim=CELLS, keepdim=True)
    centered = features - mean
    variance = centered.square().sum(dim=CELLS, keepdim=True) / (features[:, :1].numel() - 1)
    return (
        centered,
        mean,
        variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt(),
    )  # the root of a dead channel's 0 has no gradient


def standardize(features: Tensor) -> Tensor:
    """(B, C, H, W) to zero mean and unit deviation in each channel, over the batch and all cells; needs two cells or more."""
    centered, _, deviation = _centered(features)
    return centered / (deviation + EPSILON)


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of standardised maps: the mean over channels of (m - 1)/m (1 - r), r the Pearson correlation over the
    m = B H W positions. (B, C, H, W) to (), in [0, 2). PKD, arXiv:2207.02039, equation 4."""
    return F.mse_loss(standardize(student), standardize(teacher.detach())) / 2


def match_statistics(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's map with each channel's mean and deviation made the teacher's; both (B, C, H, W), gradient through the student's statistics too.

    Not in the text of CrossKD (arXiv:2306.11369); its published code does it between the student's tower and the teacher's.
    """
    if min(student.numel(), teacher.numel()) == 0 or student.shape[1] != teacher.shape[1]:
        raise ValueError(f"maps of one width are needed, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    centered, _, deviation = _centered(student)
    _, mean, wanted = _centered(teacher.detach())
    return torch.addcmul(mean, centered, wanted / (deviation + EPSILON))


def hierarchical_context(
    student_levels: Sequence[Tensor], teacher_levels: Sequence[Tensor], sizes: Sequence[int] = (4, 2, 1)
) -> Tensor:
    """ReviewKD's context loss: mean squares of the maps and of what adaptive average pooling makes of them, summed over levels, ().

    A level (B, C, H, W) counts [mse + sum_r 2^-r mse of the maps pooled to p_r x p_r] / (1 + sum_r 2^-r), where p_1, p_2, ... are those of
    `sizes` below H; means are over all elements. sizes=(): plain mean squares. arXiv:2104.09044; the weights are its published code's.
    """
    return torch.stack([_context(s, t, sizes) for s, t in zip(student_levels, teacher_levels, strict=True)]).sum()


def _context(student: Tensor, teacher: Tensor, sizes: Sequence[int]) -> Tensor:
    difference = _difference(student, teacher)
    total, weights = difference.square().mean(), 1.0
    kept = [size for size in sizes if size < difference.shape[-2]]
    for order, size in enumerate(kept, start=1):  # a size left out takes no halving with it
        total = (
            total + 0.5**order * F.adaptive_avg_pool2d(difference, size).square().mean()
        )  # pooling is linear: once for both maps
        weights += 0.5**order
    return total / weights


def hint_distance(
    student: Tensor, teacher: Tensor, reduction: Literal["mean", "half_sum", "normalized"] = "mean"
) -> Tensor:
    """Squared differences of two maps (B, C, H, W), (). FitNets, arXiv:1412.6550.

    mean: over all elements. half_sum: half the sum over an image's elements, mean over images. normalized: each image's map is
    divided by its L2 norm, then summed, mean over images (2 - 2 cosine, in 0..4): mmrazor's form.
    """
    if reduction == "normalized":
        student, teacher = (F.normalize(at_least_single(side).flatten(1)) for side in (student, teacher))
    squares = _difference(student, teacher).square()
    if reduction == "mean":
        return squares.mean()
    return squares.sum() / len(squares) / (2 if reduction == "half_sum" else 1)


def masked_squares(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Sum over images, channels and cells of squared differences, weighted by mask (B, H, W); maps (B, C, H, W) to (). Not normalised."""
    return (_difference(student, teacher).square().sum(1) * mask).sum()


def region_squares(student: Tensor, teacher: Tensor, regions: Tensor) -> Tensor:
    """Squared differences weighted by each of R regions (R, B, H, W): summed over cells and channels, mean over images; maps (B, C, H, W) to (R,)."""
    cells = _difference(student, teacher).square().sum(1)  # (B, H, W)
    return (cells * regions).sum((1, 2, 3)) / len(cells)


def token_cosine(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """1 - cosine of the two sides' channel vectors in a cell, averaged over cells by weights (B, H, W), see `weighted_mean`; maps (B, C, H, W) to
    (), in 0..2. The length of a vector counts on neither side. RT-DETRv4, arXiv:2510.25257. Shapes must be equal, nothing is broadcast."""
    if student.shape != teacher.shape:
        raise ValueError(f"maps of one shape are needed, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    cells = 1 - F.cosine_similarity(at_least_single(student), at_least_single(teacher.detach()), dim=1)
    return weighted_mean(cells, weights.to(cells.dtype))


def region_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of each region, (n, C, H, W) to (n,). Mimic, Li, Jin and Yan, CVPR 2017, with its 1 / m and without its half."""
    return _difference(student, teacher).square().mean((1, 2, 3))


def decoupled_mse(student: Tensor, teacher: Tensor, region: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """Half the mean squared difference inside `region` (B, H, W) bool and outside it: (B, C, H, W) to two ().

    Divided by 2 C n, n the cells of that part in the whole batch, or by 2 n where not `per_channel`; averaged over processes, at least 1, so
    that an empty part is 0. DeFeat, arXiv:2103.14475.
    """
    values = 2 * (student.shape[1] if per_channel else 1)
    inside, outside = (
        masked_squares(student, teacher, part) / mean_over_processes(values * part.sum().float())
        for part in (region, ~region)
    )
    return inside, outside


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    """student - teacher in single precision or better, no gradient to the teacher; shapes must be equal, nothing is broadcast."""
    if student.shape != teacher.shape:
        raise ValueError(f"maps of one shape are needed, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    return at_least_single(student) - at_least_single(teacher.detach())
