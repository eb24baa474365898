"""Boxes in the form that AdaMixer refines: xyzr (..., 4).

x, y: the center in pixels of the padded batch. z = log2 sqrt(w h). r = log2(h / w).
"""

import torch
from torch import Tensor

SMALLEST = 1e-3  # pixels: replaces sides of zero length, whose logarithm would be infinite
EPSILON = 1e-7  # added to the IoF before its logarithm, as published
TEMPERATURE = 10_000.0  # of the sine embedding
PIXELS = 1000.0  # pixels per unit of the sine embedding of x and y, as published


def to_xyzr(boxes: Tensor) -> Tensor:
    """xyxy in pixels to xyzr."""
    low, high = boxes[..., :2], boxes[..., 2:]
    width, height = (high - low).clamp(min=SMALLEST).log2().unbind(-1)
    return torch.cat([(low + high) / 2, torch.stack([(width + height) / 2, height - width], -1)], -1)


def sides(xyzr: Tensor) -> Tensor:
    """Width and height (..., 2) in pixels: 2^(z - r/2) and 2^(z + r/2)."""
    z, half = xyzr[..., 2], xyzr[..., 3] / 2
    return torch.stack([z - half, z + half], -1).exp2()


def to_boxes(xyzr: Tensor) -> Tensor:
    """xyzr to xyxy in pixels."""
    center, half = xyzr[..., :2], sides(xyzr) / 2
    return torch.cat([center - half, center + half], -1)


def refine(xyzr: Tensor, delta: Tensor) -> Tensor:
    """The box of a stage, from the box of the stage before and a correction (..., 4): xy + dxy 2^z and zr + dzr."""
    center = xyzr[..., :2] + delta[..., :2] * xyzr[..., 2:3].exp2()
    return torch.cat([center, xyzr[..., 2:] + delta[..., 2:]], -1)


def log_iof(boxes: Tensor) -> Tensor:
    """Log of the fraction of box i that box j covers, (B, Q, Q), or log of EPSILON if they are apart.

    boxes: xyxy, (B, Q, 4).
    """
    first, second = boxes[:, :, None], boxes[:, None]
    overlap = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)  # (B, Q)
    return (overlap.clamp(min=0).prod(-1) / areas.clamp(min=SMALLEST**2)[..., None] + EPSILON).log()


def position_embedding(xyzr: Tensor, width: int) -> Tensor:
    """Sine embedding, (..., 4) to (..., width). width: a multiple of 8.

    Each of the four numbers has width/4 values, in which sine and cosine alternate. x and y are in thousands of pixels.
    """
    pairs = width // 8
    rates = TEMPERATURE ** (-torch.arange(pairs, device=xyzr.device, dtype=xyzr.dtype) / pairs)
    angles = (xyzr / xyzr.new_tensor([PIXELS, PIXELS, 1.0, 1.0]))[..., None] * rates  # (..., 4, width/8)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)  # (..., width)
