"""Adaptive 3-D sampling, arXiv:2203.16507, section 3.2: each query looks at points of its own, between the levels as well as on them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detdistill.detectors.adamixer.boxes import sides

TAU = 2.0  # softness of the choice of levels, as published


class Sampling(nn.Module):
    """Where a query of `width` channels looks: `points` points for each of `groups` groups of channels, told from its content."""

    def __init__(self, width: int, groups: int, points: int):
        super().__init__()
        self.groups, self.points = groups, points
        self.offsets = nn.Linear(width, groups * points * 3)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """All queries look at the same points: anywhere within the box, at features of half its size. (The published code lays the points
        on a grid where their number is a square, which it is in none of the published models.)"""
        nn.init.zeros_(self.offsets.weight)
        nn.init.uniform_(self.offsets.bias, -0.5, 0.5)
        self.offsets.bias[2::3] = -1.0

    def forward(self, content: Tensor, xyzr: Tensor, levels: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
        """content (B, Q, D), xyzr (B, Q, 4), levels (B, D, H, W) to samples (B, Q, G, P, D/G)."""
        offsets = self.offsets(content).unflatten(-1, (self.groups, self.points, 3))
        return sample_levels(levels, strides, place(offsets, xyzr))


def place(offsets: Tensor, xyzr: Tensor) -> Tensor:
    """Offsets (B, Q, G, P, 3), in widths, heights and octaves of the box (B, Q, 4), to points: x, y in pixels and z."""
    boxes = xyzr[:, :, None, None]
    return torch.cat([boxes[..., :2] + offsets[..., :2] * sides(boxes), boxes[..., 2:3] + offsets[..., 2:]], -1)


def level_weights(z: Tensor, strides: Sequence[int]) -> Tensor:
    """z (...) to the weights (..., levels) of the levels, which add up to 1: softmax of -(z - log2 stride)^2 / TAU."""
    return (-(z[..., None] - z.new_tensor(strides).log2()).square() / TAU).softmax(-1)


def sample_levels(levels: Sequence[Tensor], strides: Sequence[int], points: Tensor) -> Tensor:
    """Points (B, Q, G, P, 3) on maps (B, G C, H, W) to (B, Q, G, P, C): bilinear on every level, weighted by z; 0 off the map.

    The cell of row 0, column 0 has its middle at stride/2, stride/2. Group g reads channels g C to (g + 1) C - 1. In the points' precision.
    """
    batch, _, groups = points.shape[:3]
    places = points[..., :2].transpose(1, 2).flatten(0, 1)  # (B G, Q, P, 2)
    weights = level_weights(points[..., 2], strides).transpose(1, 2).flatten(0, 1)  # (B G, Q, P, levels)
    total = torch.zeros((), device=points.device, dtype=points.dtype)
    for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        maps = level.to(points.dtype).unflatten(1, (groups, -1)).flatten(0, 1)
        extent = points.new_tensor([level.shape[-1] * stride, level.shape[-2] * stride])
        read = F.grid_sample(maps, places / extent * 2 - 1, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + read * weights[..., index][:, None]  # (B G, C, Q, P)
    return total.unflatten(0, (batch, groups)).permute(0, 3, 1, 4, 2)
