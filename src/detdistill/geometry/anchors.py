"""Where dense heads look from."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_points(
    rows: int, columns: int, stride: int, offset: float, device: torch.device | str | None = None
) -> Tensor:
    """(rows, columns, 2): x y of each cell's reference point in pixels, ((column + offset) stride, (row + offset) stride)."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return (torch.stack([x, y], dim=-1) + offset) * float(stride)


def square_anchors(
    rows: int, columns: int, stride: int, octave: float = 8.0, device: torch.device | str | None = None
) -> Tensor:
    """(rows, columns, 1, 4): one square a cell, of side octave * stride, centred at the cell's corner (offset 0), as in ATSS and GFL."""
    half = octave * stride / 2
    points = cell_points(rows, columns, stride, 0.0, device)
    return torch.cat([points - half, points + half], dim=-1)[:, :, None]


def synthetic_anchors(
    rows: int,
    columns: int,
    stride: int,
    octave: float = 8.0,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    device: torch.device | str | None = None,
) -> Tensor:
    """(rows, columns, A, 4), A ratios: anchors for a map that has none, as an FPN's RPN has them (arXiv:1612.03144): of area
    (octave * stride)^2 and height / width `ratios`, here around the cell's middle."""
    width, height = (
        torch.tensor([octave * stride * ratio**power for ratio in ratios], device=device) for power in (-0.5, 0.5)
    )
    half = torch.stack([width, height], dim=-1) / 2  # (A, 2)
    points = cell_points(rows, columns, stride, 0.5, device)[:, :, None]
    return torch.cat([points - half, points + half], dim=-1)
