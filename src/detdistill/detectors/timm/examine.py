"""How a timm model can give feature maps to a detector, found out without memory for weights.

A detector needs maps at strides that are powers of two, for images of any size that is a multiple of 32. Few timm
models lack this, but many need help: an option of timm, padding, another scale of the image, or maps with permuted
axes. What a model needs is computed by running it without weights, so it holds for models that timm adds later, and
for models of the user's own that are registered there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from detdistill.detectors.images import cells_to_patches
from detdistill.detectors.timm.extractor import Extractor, dry, feature_info
from detdistill.errors import one_line
from detdistill.types import MULTIPLE

# Options that let a timm transformer accept images of any size. They are tried in order, and the first that the family
# accepts is used. With always_partition, Swin cuts full windows and shifts them in every stage, whatever the size of
# the map, as the published detectors on Swin do. Without it, a stage whose map is as small as one window at the nominal
# image size never shifts its windows.
ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False, "always_partition": True},
    {"strict_img_size": False},
    {"dynamic_img_size": True},
)
FAILURES = (AssertionError, AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What timm models raise on images that they do not accept."""


class UnfitError(Exception):
    """The reason why a timm model can't be the backbone of a detector."""


@cache
def examine(name: str, quick: bool = False) -> Extractor:
    """What the timm model `name` needs. It takes less than a second.

    The model runs on torch's meta device. If it fails there, it also runs on the CPU, with random weights, because the
    code of a model may need numbers. A model that is declared to be for one size, without an option of timm that
    changes it, also runs there. quick: nothing runs on the CPU.
    Raises UnfitError with the reason if it can't serve.
    """
    try:
        found = _examine(name, "meta")
    except UnfitError:
        if quick:
            raise
        found = _examine(name, "cpu")
    if not quick and not found.options and has_fixed_size(name):
        _check_long_images(found)
    return found


def _examine(name: str, device: str) -> Extractor:
    with dry(device):
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
            unit=MULTIPLE,
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


@torch.no_grad()
def _check_long_images(needs: Extractor) -> None:
    """Raises UnfitError if the model fails on images longer than the size that it was designed for.

    Its tables of positions can be too short, which shows only with numbers.
    """
    nominal = _nominal_size(needs.name)
    with dry("cpu"):
        strides = tuple(needs.maps)
        body = needs.fit(needs.create(strides).eval(), strides)
        try:
            body(torch.zeros(1, 3, max(2 * nominal, needs.unit), needs.unit))
        except FAILURES:
            raise UnfitError(f"accepts images of up to {nominal} pixels only") from None


def _nominal_size(name: str) -> int:
    """The side in pixels of the images that the model was designed for; 0 if timm does not know it."""
    config = timm.get_pretrained_cfg(name)
    return config.input_size[-1] if config is not None and config.input_size else 0


def count_parameters(name: str) -> int:
    """The number of parameters of a timm model up to its deepest map.

    Raises UnfitError if timm can't extract its maps.
    """
    with dry("meta"):
        body, _ = _create(name)
    return sum(parameter.numel() for parameter in body.parameters())


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
            raise UnfitError(f"timm can't extract feature maps from it ({one_line(error, 120)})") from None
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
    nominal = _nominal_size(needs.name)
    units = [MULTIPLE, 2 * MULTIPLE]
    units += [nominal] if nominal > units[-1] and nominal % MULTIPLE == 0 else []
    best, most = MULTIPLE, set[int]()
    problems = ["accepts images of one size only"] if has_fixed_size(needs.name) else []
    for unit in units:
        try:
            honest = _honest_strides(body, strides, needs, unit)
        except FAILURES as error:
            problems.append(f"fails on images of some sizes ({one_line(error, 120)})")
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
    height, width = (3 * unit, 5 * unit) if unit == MULTIPLE else (unit, 2 * unit)
    maps = body(cells_to_patches(torch.zeros(1, 3, height, width), needs.cell, needs.patch))
    honest = set(strides) - {0}
    for stride, channels, level in zip(strides, feature_info(body).channels(), maps, strict=True):
        shape = level.permute(0, 3, 1, 2).shape[1:] if needs.channels_last else level.shape[1:]
        if stride and tuple(shape) != (channels, math.ceil(height / stride), math.ceil(width / stride)):
            honest.discard(stride)
    return honest
