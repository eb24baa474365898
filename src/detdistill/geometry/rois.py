"""Features of boxes, pooled from a pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

CANONICAL = 14.0  # smallest box side of a level, in strides: 224 pixels at stride 16, FPN (arXiv:1612.03144), eq. 1
TOLERANCE = 1e-6  # relative; a box with exactly this side belongs to the level despite rounding


def box_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """The index of the level of each box: (G, 4) to (G,). strides: of the levels, fine to coarse.

    It is the coarsest level with sqrt(area) >= 14 strides, or the finest level if there is none. If each stride is
    twice the one before, this is FPN's rule: floor(log2(sqrt(area) / (14 * finest stride))), limited to the existing
    levels.
    If the strides begin at 4, it is also DeFeat's rule (its base of 56 pixels is 14 strides), except that DeFeat adds
    one pixel to widths and heights.
    """
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()  # (G,)
    smallest = CANONICAL * torch.tensor(strides[1:], device=boxes.device)
    return (sides[:, None] * (1 + TOLERANCE) >= smallest).sum(1)


def pool_rois(
    levels: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int = 7, sampling: int = 2
) -> Tensor:
    """RoIAlign of boxes, each on the level that `box_levels` gives: (n, C, size, size), n = sum of G_i, image by image.

    levels: (B, C, H, W), fine to coarse. boxes: (G_i, 4) per image. sampling: samples per bin and axis.
    The value of a cell is located at the center of the cell (`aligned`). The gradient flows into the levels only. The
    result is in single precision or better, because half precision would round the boxes.
    """
    image_index = [image_boxes.new_full((len(image_boxes), 1), index) for index, image_boxes in enumerate(boxes)]
    rows = torch.cat([torch.cat(image_index), torch.cat(list(boxes)).detach()], dim=1)  # (n, 5)
    level_index = box_levels(rows[:, 1:], strides)
    pooled, order = [], []
    for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        level_rows = (level_index == index).nonzero()[:, 0]
        level = level.to(torch.promote_types(level.dtype, torch.float32))
        pooled.append(roi_align(level, rows[level_rows].to(level.dtype), size, 1 / stride, sampling, aligned=True))
        order.append(level_rows)
    return torch.cat(pooled)[torch.cat(order).argsort()]
