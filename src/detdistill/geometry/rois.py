"""Features of boxes, cut from a pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

CANONICAL = 14.0  # side of a box in strides of its level: 224 pixels at stride 16, FPN (arXiv:1612.03144), equation 1
TOLERANCE = 1e-6  # relative, of a side: a box that is a level's smallest but for rounding belongs to it


def box_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """(G,) index of the level each box (G, 4) belongs to: the coarsest with sqrt(area) >= 14 strides, else the finest.

    On strides an octave apart this is FPN's rule, floor(log2(sqrt(area) / (14 stride of the finest))) within the levels there are; with
    strides from 4 it is DeFeat's too, up to its one pixel of width (its base of 56 pixels is 14 strides).
    """
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    least = CANONICAL * torch.tensor(strides[1:], device=boxes.device)
    return (sides[:, None] * (1 + TOLERANCE) >= least).sum(1)


def pool_rois(
    levels: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int = 7, sampling: int = 2
) -> Tensor:
    """RoIAlign of boxes (G_i, 4) of each image on the level that `box_levels` gives: (n, C, size, size), n = sum G_i, image by image.

    levels: (B, C, H, W), fine to coarse; single precision at least comes out, as half would round the boxes. A cell's value stands at its
    centre (`aligned`). Gradient goes into the levels; boxes are constants.
    """
    images = torch.cat([own.new_full((len(own), 1), index) for index, own in enumerate(boxes)])
    rows = torch.cat([images, torch.cat(list(boxes)).detach()], dim=1)
    place = box_levels(rows[:, 1:], strides)
    cuts, chosen = [], []
    for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        here = (place == index).nonzero()[:, 0]
        level = level.to(torch.promote_types(level.dtype, torch.float32))
        cuts.append(roi_align(level, rows[here].to(level.dtype), size, 1 / stride, sampling, aligned=True))
        chosen.append(here)
    return torch.cat(cuts)[torch.cat(chosen).argsort()]
