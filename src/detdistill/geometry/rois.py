"""Features of boxes, cut from a pyramid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

CANONICAL = 14.0  # side of a box in strides of its level: 224 pixels at stride 16, FPN (arXiv:1612.03144), equation 1


def box_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """(G,) index of the level each box (G, 4) belongs to: floor(log2(sqrt(area) / (14 strides[0]))), within the levels there are.

    With strides from 4 this is FPN's rule, and DeFeat's up to its one pixel of width (its base of 56 pixels is 14 strides).
    """
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    octaves = torch.log2(sides / (CANONICAL * strides[0]) + 1e-6).floor().nan_to_num(neginf=0)
    steps = [int(math.log2(stride / strides[0])) for stride in strides]  # levels may be more than an octave apart
    return (octaves[:, None] >= torch.tensor(steps[1:], device=boxes.device)).sum(1)


def pool_rois(levels: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int = 7, sampling: int = 2) -> Tensor:
    """RoIAlign of boxes (G_i, 4) of each image on the level that `box_levels` gives: (n, C, size, size), n = sum G_i, image by image.

    levels: (B, C, H, W), fine to coarse. Gradient goes into the levels; boxes are constants.
    """
    images = torch.cat([own.new_full((len(own), 1), index) for index, own in enumerate(boxes)])
    rows = torch.cat([images, torch.cat(list(boxes)).detach()], dim=1)
    place = box_levels(rows[:, 1:], strides)
    pooled = levels[0].new_zeros((len(rows), levels[0].shape[1], size, size))
    for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        here = (place == index).nonzero()[:, 0]
        if len(here):
            cut = roi_align(level, rows[here].to(level.dtype), size, 1 / stride, sampling, aligned=True)
            pooled = pooled.index_put((here,), cut.to(pooled.dtype))
    return pooled
