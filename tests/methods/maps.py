"""Outputs of given maps, without a detector, for what must equal published numbers."""

import torch
from torch import Tensor

from detdistill.types import DetectorInfo, DetectorOutput, Pyramid


def info(channels: int, strides: tuple[int, ...] = (8,)) -> DetectorInfo:
    """A detector of no known kind with a neck of this width."""
    return DetectorInfo("unknown", ("a",), strides, {"neck": channels}, "sigmoid")


def output(*levels: Tensor, strides: tuple[int, ...] = (8,), sizes: Tensor | None = None) -> DetectorOutput:
    """One whose neck has these levels; sizes: valid ones, by default the whole of the finest level."""
    whole = torch.tensor(levels[0].shape[-2:]) * strides[0]
    return DetectorOutput(
        {"neck": Pyramid(levels, strides, whole.expand(len(levels[0]), 2) if sizes is None else sizes)}
    )
