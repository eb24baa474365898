"""Plain implementations for the tests of AdaMixer."""

import math

import torch
from torch import Tensor


def plain_sample(levels: list[Tensor], strides: tuple[int, ...], point: Tensor, image: int, channels: slice) -> Tensor:
    """The sample of one point (3,) in one image: bilinear interpolation by hand on every level."""
    x, y, z = point.tolist()
    logits = [-((z - math.log2(stride)) ** 2) / 2 for stride in strides]
    total = torch.zeros(channels.stop - channels.start)
    for level, stride, logit in zip(levels, strides, logits, strict=True):
        column, row = x / stride - 0.5, y / stride - 0.5
        left, top = math.floor(column), math.floor(row)
        for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= i < level.shape[2] and 0 <= j < level.shape[3]:
                share = (1 - abs(row - i)) * (1 - abs(column - j)) * math.exp(logit) / sum(map(math.exp, logits))
                total = total + share * level[image, channels, i, j]
    return total
