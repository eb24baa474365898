"""A timm model as the backbone of a detector."""

import timm
from torch import nn

from detdistill.detectors.timm.examine import UnfitError, examine
from detdistill.detectors.timm.nearest import alternative
from detdistill.detectors.timm.simple_pyramid import SimplePyramid
from detdistill.detectors.timm.weights import load_backbone
from detdistill.errors import UserError, nearest


def build_backbone(
    name: str, strides: tuple[int, ...], weights: str
) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    """Build a timm backbone that returns its maps at those of `strides` that it has.

    weights: `default` (timm's pretrained weights, downloaded), `none`, a file, or a run folder; see `load_backbone`.
    Returns the module, the strides of its maps and their widths, fine to coarse.
    Raises UserError if timm has no such model, if the model can't give maps of any image size (with the nearest model
    that can), if it has none of the strides, or if the weights can't be loaded.
    """
    if not timm.is_model(name):
        raise UserError(f"backbone {name!r}: timm has no such model{nearest(name, timm.list_models())}")
    try:
        extractor = examine(name)
    except UnfitError as reason:
        remedy = f"choose another backbone{alternative(name, strides)}"
        raise UserError(f"backbone {name!r}: {reason}; {remedy}") from None
    available = tuple(stride for stride in strides if stride in extractor.strides)
    if not available:
        problem = f"its maps have strides {extractor.strides}, none of model.strides {strides}"
        remedy = f"choose --model.strides among them, or another backbone{alternative(name, strides)}"
        raise UserError(f"backbone {name!r}: {problem}; {remedy}")
    maps = tuple(extractor.maps) if extractor.is_plain else available
    body = extractor.create(maps)
    load_backbone(body, name, weights)
    backbone = extractor.fit(body, maps)
    if not extractor.is_plain:
        return backbone, available, tuple(extractor.widths[stride] for stride in available)
    (stride,) = maps
    pyramid = SimplePyramid(backbone, extractor.widths[stride], stride, available)
    return pyramid, available, pyramid.widths
