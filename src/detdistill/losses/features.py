"""Distances between feature maps. Maps are (B, C, H, W); the student's comes first and carries the gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detdistill.losses.reduce import at_least_single

EPSILON = 1e-6  # added to the standard deviation, outside the root, as published


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation plus epsilon of each channel, (1, C, 1, 1), over the batch and all cells."""
    deviation, mean = torch.std_mean(features, dim=(0, 2, 3), keepdim=True)  # one pass for both
    return mean, deviation + EPSILON


def standardize(features: Tensor) -> Tensor:
    """(B, C, H, W) to zero mean and unit deviation in each channel, over the batch and all cells; needs two cells or more."""
    features = at_least_single(features)
    mean, deviation = _statistics(features)
    return (features - mean) / deviation


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
    mean, deviation = torch.mean(teacher, dim=(0, 2, 3), keepdim=True), torch.std(teacher, dim=(0, 2, 3), keepdim=True)
    return standardize(student) * deviation.detach() + mean.detach()
