"""A timm model as it gives feature maps to a detector: the extractor of timm, and what it needs around it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import FeatureInfo
from torch import Tensor, nn

from detdistill.detectors.images import cells_to_patches
from detdistill.types import MULTIPLE

COARSEST = 32  # stride of the coarsest map of a simple pyramid; coarser levels belong to the neck


@dataclass(frozen=True)
class Extractor:
    """What a timm model needs, to give maps at strides that are powers of two for images of any size.

    name: of the timm model. options: arguments of `timm.create_model`.
    maps: timm's index of the deepest map of each stride. widths: its channels. Both from fine to coarse.
    is_plain: True if all maps of the model have one stride, as in a plain ViT.
    channels_last: True if its maps are (B, H, W, C).
    unit: images must be padded to a multiple of it, in pixels.
    cell, patch: images are resized so that `cell` pixels become `patch` pixels. They are equal if nothing is resized.
    parameters: number of the parameters up to the deepest map.
    device: where `dry` builds it: torch's meta device, or the CPU if it fails there.
    """

    name: str
    options: Mapping[str, Any]
    maps: Mapping[int, int]
    widths: Mapping[int, int]
    is_plain: bool
    channels_last: bool
    unit: int
    cell: int
    patch: int
    parameters: int
    device: str

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides at which a detector can get maps, fine to coarse."""
        if not self.is_plain:
            return tuple(self.maps)
        (stride,) = self.maps
        finest = max(4, stride // 4)  # as published: two transposed convolutions at most
        return tuple(2**power for power in range(int(math.log2(finest)), int(math.log2(max(COARSEST, stride))) + 1))

    def remark(self) -> str:
        """What is done to images and maps, in words; '' if images enter the model as they are and its maps are used
        as they are."""
        remarks = {
            "simple pyramid on its last map": self.is_plain,
            f"images resized by {self.patch}/{self.cell}": self.cell != self.patch,
            f"images padded to multiples of {self.unit}": self.unit != MULTIPLE,
            "axes of its maps permuted": self.channels_last,
        }
        return ", ".join(remark for remark, applies in remarks.items() if applies)

    def only_pads(self) -> bool:
        """True if all that is done is that images are padded: it makes no difference for images of the right size."""
        return not (self.is_plain or self.channels_last or self.cell != self.patch)

    def dry(self) -> AbstractContextManager[None]:
        """Inside it, modules and tensors cost no memory if the model permits it, and random numbers are not used up."""
        return dry(self.device)

    def create(self, strides: Sequence[int]) -> nn.Module:
        """timm's own feature extractor with random weights, with maps at these of its strides."""
        indices = tuple(self.maps[stride] for stride in strides)
        return timm.create_model(self.name, features_only=True, pretrained=False, out_indices=indices, **self.options)

    def fit(self, body: nn.Module, strides: Sequence[int]) -> nn.Module:
        """The extractor with what it needs around it; the extractor itself if it needs nothing."""
        if self.unit == MULTIPLE and self.cell == self.patch and not self.channels_last:
            return body
        return Fitted(body, strides, self)


class Fitted(nn.Module):
    """A timm feature extractor that accepts images of any size.

    forward: images (B, 3, H, W) to maps (B, C, ceil(H / stride), ceil(W / stride)).
    body: the extractor; saved weights depend on this name. strides: of its maps, in pixels of the images.
    """

    def __init__(self, body: nn.Module, strides: Sequence[int], needs: Extractor):
        super().__init__()
        self.body = body
        self.strides = tuple(strides)
        self.needs = needs
        self.feature_info = feature_info(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        unit = self.needs.unit
        images = F.pad(images, (0, -width % unit, 0, -height % unit))
        maps = self.body(cells_to_patches(images, self.needs.cell, self.needs.patch))
        if self.needs.channels_last:
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        sizes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in self.strides]
        return [level[..., :rows, :columns].contiguous() for level, (rows, columns) in zip(maps, sizes, strict=True)]


def feature_info(backbone: nn.Module) -> FeatureInfo:
    """timm's description of the maps of a feature extractor."""
    info = backbone.feature_info
    assert isinstance(info, FeatureInfo)
    return info


@contextmanager
def dry(device: str) -> Iterator[None]:
    """Inside it, modules and tensors are made on this device, and random numbers are not used up."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        yield
