"""Reference points and anchors of the cells of a level."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_points(
    rows: int, columns: int, stride: int, offset: float, device: torch.device | str | None = None
) -> Tensor:
    """(rows, columns, 2): the reference point (x, y) of each cell, in pixels.

    x = (column + offset) * stride and y = (row + offset) * stride.
    """
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return (torch.stack([x, y], dim=-1) + offset) * float(stride)


def square_anchors(
    rows: int, columns: int, stride: int, octave: float = 8.0, device: torch.device | str | None = None
) -> Tensor:
    """(rows, columns, 1, 4): one square anchor per cell, of side octave * stride, as in ATSS and GFL.

    The anchor is centered at the upper left corner of the cell (offset 0).
    """
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
    """(rows, columns, A, 4): anchors for a map that has none, one per ratio (A of them).

    Area (octave * stride)^2 and height / width equal to `ratios`, as in the RPN of an FPN (arXiv:1612.03144). Here they
    are centered at the middle of the cell.
    """
    width = torch.tensor([octave * stride * ratio**-0.5 for ratio in ratios], device=device)
    height = torch.tensor([octave * stride * ratio**0.5 for ratio in ratios], device=device)
    half = torch.stack([width, height], dim=-1) / 2  # (A, 2)
    points = cell_points(rows, columns, stride, 0.5, device)[:, :, None]  # (rows, columns, 1, 2)
    return torch.cat([points - half, points + half], dim=-1)
