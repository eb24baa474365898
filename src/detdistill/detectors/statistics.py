"""Mean and standard deviation of the pixels that a backbone expects.

A backbone was pretrained with pixel statistics of its own: most of timm's with ImageNet's, EfficientNet-Lite and many
others with 0.5 and 0.5. With other statistics, pretrained weights work less well, so they are never assumed.
"""

import json
from pathlib import Path
from typing import NamedTuple

import timm

from detdistill.detectors.registry import DETECTORS, NATIVE
from detdistill.recipe import ModelConfig

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class PixelStatistics(NamedTuple):
    """Mean and standard deviation per channel (red, green, blue), of pixels in 0..1."""

    mean: Channels
    std: Channels


IMAGENET = PixelStatistics(IMAGENET_MEAN, IMAGENET_STD)
UNCHANGED = PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pixel_statistics(config: ModelConfig) -> PixelStatistics:
    """The statistics with which a detector of this config normalizes images.

    They are `mean` and `std` of the config. A field that is None is taken from the run folder that the backbone's
    weights come from, or else from the pretrained configuration of the backbone in timm, or of the family in
    transformers for a native backbone.
    """
    if config.mean is not None and config.std is not None:
        return PixelStatistics(config.mean, config.std)
    default = _of_run(Path(config.backbone_weights)) or _of_backbone(config.name)
    return PixelStatistics(config.mean or default.mean, config.std or default.std)


def saved_statistics(model: ModelConfig) -> PixelStatistics:
    """The statistics in the `model` part of a model.json.

    A file that has none was written before the statistics of the backbone were used. Its detector was trained with
    those of its family: 0 and 1 for the detectors of transformers that do not normalize images, and else ImageNet's.
    """
    if model.mean is not None and model.std is not None:
        return PixelStatistics(model.mean, model.std)
    return _of_family(model.name)


def _of_run(folder: Path) -> PixelStatistics | None:
    """The statistics of a run folder, or None if it is not one.

    A damaged file is reported when its weights are read.
    """
    try:
        content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return saved_statistics(ModelConfig.model_validate(content["model"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_backbone(name: str) -> PixelStatistics:
    """The statistics of the backbone in HEAD:BACKBONE; ImageNet's if timm does not have them."""
    _, _, backbone = name.partition(":")
    if backbone == NATIVE:
        return _of_family(name)
    config = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    if config is None or len(config.mean) != 3 or len(config.std) != 3:
        return IMAGENET
    return PixelStatistics(*[(values[0], values[1], values[2]) for values in (config.mean, config.std)])


def _of_family(name: str) -> PixelStatistics:
    """The statistics of the published weights of the family in HEAD:BACKBONE."""
    record = DETECTORS.get(name.partition(":")[0])
    is_unchanged = record is not None and record.host is not None and not record.host.normalized
    return UNCHANGED if is_unchanged else IMAGENET
