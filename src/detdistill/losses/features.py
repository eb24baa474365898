"""Distances between feature maps. Maps are (B, C, H, W); the student's comes first and carries the gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detdistill.losses.reduce import at_least_single

CELLS = (0, 2, 3)  # of a channel: images, rows, columns
EPSILON = 1e-6  # added to the standard deviation, outside the root, as published


def _centered(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances from each channel's mean (B, C, H, W), that mean, and the unbiased standard deviation, both (1, C, 1, 1), over the batch
    and all cells; needs two cells or more. In plain passes: `torch.std_mean` takes twice the time on a CPU, and its gradient more."""
    features = at_least_single(features)
    mean = features.mean(dim=CELLS, keepdim=True)
    centered = features - mean
    variance = centered.square().sum(dim=CELLS, keepdim=True) / (features[:, :1].numel() - 1)
    return centered, mean, variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()  # the root of a dead channel's 0 has no gradient


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
