"""Detector outputs made from maps, without a detector, for comparison with published numbers."""

import torch
from torch import Tensor

from detdistill.types import DetectorInfo, DetectorOutput, Pyramid


def info(channels: int, strides: tuple[int, ...] = (8,)) -> DetectorInfo:
    """Returns a detector of unknown kind whose neck has this number of channels."""
    return DetectorInfo("unknown", ("a",), strides, {"neck": channels}, "sigmoid")


def output(*levels: Tensor, strides: tuple[int, ...] = (8,), sizes: Tensor | None = None) -> DetectorOutput:
    """Returns an output whose neck has these levels. sizes (B, 2): image sizes, by default that of the finest level."""
    whole = torch.tensor(levels[0].shape[-2:]) * strides[0]
    return DetectorOutput(
        {"neck": Pyramid(levels, strides, whole.expand(len(levels[0]), 2) if sizes is None else sizes)}
    )
