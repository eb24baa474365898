"""From a batch of pixels to what a backbone eats. Every detector normalises the same augmented images for itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detdistill.types import Batch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def valid_mask(sizes: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) bool, True inside each image's valid (height, width) of `sizes` (B, 2)."""
    row = torch.arange(height, device=sizes.device) < sizes[:, :1]  # (B, H)
    column = torch.arange(width, device=sizes.device) < sizes[:, 1:]  # (B, W)
    return row[:, :, None] & column[:, None, :]


def normalize(batch: Batch, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """(B, 3, H, W) float: scaled to 0..1, standardised per channel, and the padding zero again (hosts pad after they normalise)."""
    images = batch.images
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    center, scale = (images.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (images - center) / scale * valid_mask(batch.sizes, *images.shape[-2:])[:, None]


def host_sizes(sizes: Tensor) -> list[tuple[int, int]]:
    """Valid sizes as the list of (height, width) that host libraries ask for."""
    return [(int(height), int(width)) for height, width in sizes.tolist()]
