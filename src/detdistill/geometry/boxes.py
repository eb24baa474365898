"""Conversions between boxes, points with side distances, and boxes relative to a frame."""

import torch
from torch import Tensor
from torchvision.ops import box_convert


def centers(boxes: Tensor) -> Tensor:
    """Centers (x, y) of boxes: (..., 4) to (..., 2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def side_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances left, top, right, bottom (..., 4) from points (..., 2) to the sides of boxes (..., 4), in pixels.

    A distance is negative if the point is outside that side.
    """
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """The inverse of `side_distances`: points (..., 2) and distances (..., 4) to boxes (..., 4)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def expected_distance(edges: Tensor) -> Tensor:
    """Mean of each side's distance distribution: (..., R) logits to (...), in strides, in 0..R-1.

    GFL's integral, arXiv:2006.04388, equation 5.
    """
    bins = torch.arange(edges.shape[-1], device=edges.device, dtype=edges.dtype)
    return (edges.softmax(-1) * bins).sum(-1)  # autocast would do a matrix product in half precision


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), in 0..1; points (..., 2) and boxes (..., 4) to (...).

    It is 0 for points outside the box. FCOS, arXiv:1904.01355, equation 3.
    """
    left, top, right, bottom = side_distances(points, boxes).clamp(min=0).unbind(-1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right).clamp(min=1e-6)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp(min=1e-6)
    return (horizontal * vertical).sqrt()


def extents(frame: Tensor) -> Tensor:
    """Convert (height, width) (B, 2) to width, height, width, height (B, 1, 4), in single precision."""
    return frame.flip(-1).repeat(1, 2)[:, None].float()


def to_pixels(boxes: Tensor, frame: Tensor) -> Tensor:
    """Convert cx cy w h (..., B, Q, 4) in 0..1 of the frame (B, 2) to xyxy in pixels of the padded batch."""
    return box_convert(boxes, "cxcywh", "xyxy") * extents(frame)


def to_relative(boxes: Tensor, frame: Tensor) -> Tensor:
    """The inverse of `to_pixels`: xyxy in pixels to cx cy w h in 0..1 of the frame."""
    return box_convert(boxes / extents(frame), "xyxy", "cxcywh")
