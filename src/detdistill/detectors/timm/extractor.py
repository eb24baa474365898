"""How a timm model gives feature maps to a detector, found out without memory for weights.

A detector needs maps at strides that are powers of two, for images of any size that is a multiple of 32. Few timm
models lack this, but many need help: an option of timm, padding, another scale of the image, or maps with permuted
axes. What a model needs is computed by running it without weights, so it holds for models that timm adds later, and
for models of the user's own that are registered there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import FeatureInfo
from torch import Tensor, nn

from detdistill.detectors.images import cells_to_patches

# Options that let a timm transformer accept images of any size. They are tried in order, and the first that the family
# accepts is used. With always_partition, Swin cuts full windows and shifts them in every stage, whatever the size of
# the map, as the published detectors on Swin do. Without it, a stage whose map is as small as one window at the nominal
# image size never shifts its windows.
ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False, "always_partition": True},
    {"strict_img_size": False},
    {"dynamic_img_size": True},
)
BATCH_UNIT = 32  # batches are padded to a multiple of it
COARSEST = 32  # stride of the coarsest map of a simple pyramid; coarser levels belong to the neck
FAILURES = (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)  # of timm models


class UnfitError(Exception):
    """The reason why a timm model can't be the backbone of a detector."""


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
            f"images padded to multiples of {self.unit}": self.unit != BATCH_UNIT,
            "axes of its maps permuted": self.channels_last,
        }
        return ", ".join(remark for remark, applies in remarks.items() if applies)

    def only_pads(self) -> bool:
        """True if all that is done is that images are padded: it makes no difference for images of the right size."""
        return not (self.is_plain or self.channels_last or self.cell != self.patch)

    def dry(self) -> AbstractContextManager[None]:
        """Inside it, modules and tensors cost no memory if the model permits it, and random numbers are not used up."""
        return _dry(self.device)

    def create(self, strides: Sequence[int]) -> nn.Module:
        """timm's own feature extractor with random weights, with maps at these of its strides."""
        indices = tuple(self.maps[stride] for stride in strides)
        return timm.create_model(self.name, features_only=True, pretrained=False, out_indices=indices, **self.options)

    def fit(self, body: nn.Module, strides: Sequence[int]) -> nn.Module:
        """The extractor with what it needs around it; the extractor itself if it needs nothing."""
        if self.unit == BATCH_UNIT and self.cell == self.patch and not self.channels_last:
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


@cache
def examine(name: str, quick: bool = False) -> Extractor:
    """What the timm model `name` needs. It takes less than a second.

    The model runs on torch's meta device. If it fails there, it also runs on the CPU, with random weights, because the
    code of a model may need numbers. quick: it then counts as failed.
    Raises UnfitError with the reason if it can't serve.
    """
    try:
        return _examine(name, "meta")
    except UnfitError:
        if quick:
            raise
    return _examine(name, "cpu")


def _examine(name: str, device: str) -> Extractor:
    with _dry(device):
        body, options = _create(name)
        info = feature_info(body)
        reductions = info.reduction()
        cell, patch = _scale(max(reductions))
        strides = [_power_of_two(reduction * cell / patch) for reduction in reductions]
        needs = Extractor(
            name=name,
            options=options,
            maps={},
            widths={},
            is_plain=len(set(reductions)) == 1,
            channels_last=getattr(body, "output_fmt", "NCHW") == "NHWC",
            unit=BATCH_UNIT,
            cell=cell,
            patch=patch,
            parameters=sum(parameter.numel() for parameter in body.parameters()),
            device=device,
        )
        unit, honest = _smallest_unit(body, strides, needs)
    rows = [
        (stride, index % len(info.info), width)
        for stride, index, width in zip(strides, info.out_indices, info.channels(), strict=True)
        if stride in honest
    ]  # of one stride, the last row is the deepest map
    maps = {stride: index for stride, index, _ in rows}
    widths = {stride: width for stride, _, width in rows}
    return replace(needs, maps=maps, widths=widths, unit=unit)


@contextmanager
def _dry(device: str) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        yield


def count_parameters(name: str) -> int:
    """The number of parameters of a timm model up to its deepest map.

    Raises UnfitError if timm can't extract its maps.
    """
    with _dry("meta"):
        body, _ = _create(name)
    return sum(parameter.numel() for parameter in body.parameters())


def feature_info(backbone: nn.Module) -> FeatureInfo:
    """timm's description of the maps of a feature extractor."""
    info = backbone.feature_info
    assert isinstance(info, FeatureInfo)
    return info


def has_fixed_size(name: str) -> bool:
    """True if timm declares that the model accepts images of one size, as most transformers do."""
    config = timm.get_pretrained_cfg(name)
    return config is not None and config.fixed_input_size


def _create(name: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """timm's feature extractor with all its maps, for images of any size if timm has an option for that.

    Returns it and the option. Raises UnfitError if timm can't build it.
    """
    for options in (*(ANY_SIZE_OPTIONS if has_fixed_size(name) else ()), {}):
        try:
            return timm.create_model(name, features_only=True, pretrained=False, **options).eval(), options
        except FAILURES as error:
            if isinstance(error, TypeError) and options:  # this family does not know the option
                continue
            raise UnfitError(f"timm can't extract feature maps from it ({_first_words(error)})") from None
    raise AssertionError("the last options are empty")


def _scale(coarsest: int) -> tuple[int, int]:
    """(cell, patch): the scale of the image with which the coarsest stride is a power of two, or (1, 1)."""
    cell = 2 ** round(math.log2(coarsest))
    return (1, 1) if cell == coarsest else (cell, coarsest)


def _power_of_two(stride: float) -> int:
    """The stride if it is a power of two, else 0."""
    return int(stride) if stride >= 1 and math.log2(stride).is_integer() else 0


def _smallest_unit(body: nn.Module, strides: Sequence[int], needs: Extractor) -> tuple[int, set[int]]:
    """The smallest unit with which all maps have the sizes that their strides say, and the strides of these maps.

    If there is no such unit, it is the one with the most such maps. A model may need cells of stride 64, or the size
    that it was designed for, which is a multiple of its windows. Raises UnfitError if no map ever has the right size.
    """
    config = timm.get_pretrained_cfg(needs.name)
    nominal = config.input_size[-1] if config is not None and config.input_size else 0
    units = [BATCH_UNIT, 2 * BATCH_UNIT]
    units += [nominal] if nominal > units[-1] and nominal % BATCH_UNIT == 0 else []
    best, most = BATCH_UNIT, set[int]()
    problems = ["accepts images of one size only"] if has_fixed_size(needs.name) else []
    for unit in units:
        try:
            honest = _honest_strides(body, strides, needs, unit)
        except FAILURES as error:
            problems.append(f"fails on images of some sizes ({_first_words(error)})")
            continue
        problems.append("the sizes of its maps are no fractions of an image")
        if len(honest) > len(most):
            best, most = unit, honest
        if len(honest) == len(set(strides)):
            break
    if not most:
        raise UnfitError(problems[0])
    return best, most


@torch.no_grad()
def _honest_strides(body: nn.Module, strides: Sequence[int], needs: Extractor, unit: int) -> set[int]:
    """The strides whose maps have the right size, for images whose sides are different multiples of `unit`.

    Raises one of FAILURES if the model does not accept them.
    """
    height, width = (3 * unit, 5 * unit) if unit == BATCH_UNIT else (unit, 2 * unit)
    maps = body(cells_to_patches(torch.zeros(1, 3, height, width), needs.cell, needs.patch))
    honest = set(strides) - {0}
    for stride, channels, level in zip(strides, feature_info(body).channels(), maps, strict=True):
        shape = level.permute(0, 3, 1, 2).shape[1:] if needs.channels_last else level.shape[1:]
        if stride and tuple(shape) != (channels, math.ceil(height / stride), math.ceil(width / stride)):
            honest.discard(stride)
    return honest


def _first_words(error: Exception) -> str:
    """The message of an error in one short line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
