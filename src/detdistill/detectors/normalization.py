"""The pixel statistics with which a detector normalizes its images, whatever library it comes from."""

from typing import Any

from detdistill.detectors.build import config_of
from detdistill.detectors.statistics import PixelStatistics, pixel_statistics
from detdistill.types import Detector


def statistics_of(detector: Detector) -> PixelStatistics | None:
    """Mean and standard deviation of a detector's pixels; None for a detector of the user's own that does not say."""
    config = config_of(detector)
    if config is not None:
        return pixel_statistics(config)
    anything: Any = detector
    family, vit = getattr(anything, "family", None), getattr(anything, "vit", None)
    transform = getattr(getattr(anything, "model", None), "transform", None)  # of torchvision
    if family is not None:
        return family.statistics
    for owner, names in ((vit, ("mean", "std")), (transform, ("image_mean", "image_std"))):
        if owner is not None:
            return PixelStatistics(*(tuple(getattr(owner, name)) for name in names))
    return None
