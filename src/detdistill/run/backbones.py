"""Facts about the backbones of timm: cost, strides, normalization. Nothing is downloaded, and no weights are made."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import timm
import torch
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from detdistill.detectors.statistics import IMAGENET, UNCHANGED, PixelStatistics, pixel_statistics
from detdistill.detectors.timm.backbone import build_backbone
from detdistill.detectors.timm.examine import UnfitError, examine
from detdistill.errors import UserError, nearest
from detdistill.evaluation.speed import count_operations
from detdistill.recipe import ModelConfig
from detdistill.types import padded_size

NORMALIZATIONS = {
    IMAGENET: "imagenet",
    UNCHANGED: "0..1",
    PixelStatistics((0.5,) * 3, (0.5,) * 3): "0.5",
    PixelStatistics(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD): "clip",
}
"""Short names of the statistics that most models expect."""


@dataclass(frozen=True)
class BackboneFacts:
    """What one should know of a timm backbone before a run.

    parameters, operations: of the backbone that gives the maps at those of the recipe's default strides that it has; a
        multiplication and an addition are two operations. None if it can't serve.
    strides: all strides at which it has maps. statistics: mean and deviation of the pixels that it expects.
    has_weights: True if timm publishes pretrained weights. remark: what is special, or the reason why it can't serve.
    """

    name: str
    parameters: int | None
    operations: int | None
    strides: tuple[int, ...]
    statistics: PixelStatistics
    has_weights: bool
    remark: str


def matching(pattern: str) -> list[str]:
    """The timm models whose names match a pattern with the wildcards * and ?, or else contain it.

    Raises UserError with a similar name if there is none.
    """
    known = timm.list_models()
    if timm.is_model(pattern):
        return [pattern]
    matches = [name for name in known if fnmatchcase(name, pattern)] or [name for name in known if pattern in name]
    if not matches:
        raise UserError(f"list backbones {pattern}: no timm model matches{nearest(pattern.strip('*?'), known)}")
    return matches


@torch.no_grad()
def describe(name: str, image_size: tuple[int, int]) -> BackboneFacts:
    """The facts about one timm model. It takes less than a second.

    image_size: (height, width) for the operations.
    """
    config = timm.get_pretrained_cfg(name)
    has_weights = config is not None and config.has_weights
    statistics = pixel_statistics(ModelConfig(name=f"gfl:{name}", backbone_weights="none"))
    try:
        extractor = examine(name)
    except UnfitError as reason:
        return BackboneFacts(name, None, None, (), statistics, has_weights, f"can't serve: {reason}")
    wanted = tuple(stride for stride in ModelConfig().strides if stride in extractor.strides)
    height, width = padded_size(image_size)
    with extractor.dry():
        backbone, _, _ = build_backbone(name, wanted or extractor.strides, "none")
        images = torch.zeros(1, 3, height, width)
        operations = count_operations(lambda: backbone.eval()(images))
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return BackboneFacts(name, parameters, operations, extractor.strides, statistics, has_weights, extractor.remark())


def normalization(statistics: PixelStatistics) -> str:
    """The statistics in a few words: their name, or their numbers."""
    named = NORMALIZATIONS.get(statistics)
    return named or " / ".join(",".join(f"{value:.3g}" for value in values) for values in statistics)
