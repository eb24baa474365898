"""From the pixels of a batch to the input of a backbone. Each detector normalizes images with its own mean and std."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detdistill.types import Batch


def valid_mask(sizes: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width) bool, True for the pixels inside each image. sizes (B, 2): valid (height, width) per image."""
    row = torch.arange(height, device=sizes.device) < sizes[:, :1]  # (B, H)
    column = torch.arange(width, device=sizes.device) < sizes[:, 1:]  # (B, W)
    return row[:, :, None] & column[:, None, :]  # (B, H, W)


def normalize(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The batch's images (B, 3, H, W), float: scaled to 0..1, then standardized per channel.

    The padding is 0 afterwards, because the host libraries pad after they normalize.
    """
    images = batch.images
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    center = images.new_tensor(mean).view(1, 3, 1, 1)
    scale = images.new_tensor(std).view(1, 3, 1, 1)
    return (images - center) / scale * valid_mask(batch.sizes, *images.shape[-2:])[:, None]


def size_tensor(values: Sequence[int], like: Tensor) -> Tensor:
    """A tensor (len(values),) of sizes in pixels or cells, with the type and device of `like`.

    Unlike `torch.tensor`, it can be exported when the sizes depend on the image, and it does not wait for a GPU.
    """
    return torch.stack([like.new_full((), value) for value in values])


def cells_to_patches(images: Tensor, cell: int, patch: int) -> Tensor:
    """Images (B, C, H, W) resized so that `cell` pixels become `patch` pixels.

    They are first padded with zeros to whole cells, and keep this size if both are equal.
    """
    images = F.pad(images, (0, -images.shape[-1] % cell, 0, -images.shape[-2] % cell))
    if cell == patch:
        return images
    size = [side // cell * patch for side in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def host_sizes(sizes: Tensor) -> list[tuple[int, int]]:
    """Valid sizes (B, 2) as a list of (height, width), the form that the host libraries expect."""
    return [(int(height), int(width)) for height, width in sizes.tolist()]
