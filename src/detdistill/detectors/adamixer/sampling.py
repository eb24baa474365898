"""Adaptive 3-D sampling, arXiv:2203.16507, section 3.2. Each query samples points on the levels and between them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.detectors.adamixer.boxes import sides
from detdistill.detectors.images import size_tensor

TAU = 2.0  # temperature of the softmax over levels, as published


class Sampling(nn.Module):
    """Samples `points` points per query and group of channels. Their places are computed from the query's content."""

    def __init__(self, width: int, groups: int, points: int):
        super().__init__()
        self.groups = groups
        self.points = points
        self.offsets = nn.Linear(width, groups * points * 3)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial points, the same for all queries: at random places in the box, at features of half its size.

        The published code puts the points on a grid if their number is a square. No published model has such a number.
        """
        nn.init.zeros_(self.offsets.weight)
        nn.init.uniform_(self.offsets.bias, -0.5, 0.5)
        self.offsets.bias[2::3] = -1.0

    def forward(self, content: Tensor, xyzr: Tensor, levels: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
        """content (B, Q, D), xyzr (B, Q, 4) and levels (B, D, H, W) to samples (B, Q, G, P, D/G)."""
        offsets = self.offsets(content).unflatten(-1, (self.groups, self.points, 3))  # (B, Q, G, P, 3)
        return sample_levels(levels, strides, place(offsets, xyzr))


def place(offsets: Tensor, xyzr: Tensor) -> Tensor:
    """Points (B, Q, G, P, 3), x and y in pixels and z, from offsets of the same shape.

    offsets: in widths, heights and octaves of the box xyzr (B, Q, 4).
    """
    boxes = xyzr[:, :, None, None]  # (B, Q, 1, 1, 4)
    return torch.cat([boxes[..., :2] + offsets[..., :2] * sides(boxes), boxes[..., 2:3] + offsets[..., 2:]], -1)


def level_weights(z: Tensor, strides: Sequence[int]) -> Tensor:
    """Weights of the levels (..., levels) for points with this z (...): softmax of -(z - log2 stride)^2 / TAU."""
    return (-(z[..., None] - z.new_tensor(strides).log2()).square() / TAU).softmax(-1)


def sample_levels(levels: Sequence[Tensor], strides: Sequence[int], points: Tensor) -> Tensor:
    """Samples (B, Q, G, P, C) of maps (B, G C, H, W) at points (B, Q, G, P, 3).

    Bilinear on every level, then summed with the weights of the levels. Zero outside the map. The center of the cell
    in row 0, column 0 is at (stride/2, stride/2). Group g reads channels g C to (g + 1) C - 1. Computed in the
    points' precision.
    """
    batch, _, groups = points.shape[:3]
    centers = points[..., :2].transpose(1, 2).flatten(0, 1)  # (B G, Q, P, 2)
    weights = level_weights(points[..., 2], strides).transpose(1, 2).flatten(0, 1)  # (B G, Q, P, levels)
    total = torch.zeros((), device=points.device, dtype=points.dtype)
    for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        maps = level.to(points.dtype).unflatten(1, (groups, -1)).flatten(0, 1)  # (B G, C, H, W)
        extent = size_tensor([level.shape[-1] * stride, level.shape[-2] * stride], points)
        grid = centers / extent * 2 - 1  # -1..1 of the map
        samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + samples * weights[..., index][:, None]  # (B G, C, Q, P)
    return total.unflatten(0, (batch, groups)).permute(0, 3, 1, 4, 2)  # (B, Q, G, P, C)
