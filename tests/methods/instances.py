"""Detector outputs with only a neck pyramid, for methods on instances. No detector runs."""

from dataclasses import replace

import torch
from torch import Tensor

from detdistill.types import DetectorInfo, DetectorOutput, ProposalInfo, Pyramid, Targets

STRIDES = (8, 16)


def info(width: int, embedding: int | None = None) -> DetectorInfo:
    """Returns the info of a one-stage detector or, with an embedding width, of a two-stage detector."""
    proposals = ProposalInfo((8, 16), (10.0, 10.0, 5.0, 5.0), embedding) if embedding else None
    activation = "softmax" if embedding else "sigmoid"
    return DetectorInfo("any", ("a", "b"), STRIDES, {"neck": width}, activation, proposals=proposals)


def neck_output(width: int, seed: int, images: int = 2, side: int = 128) -> DetectorOutput:
    """Returns an output of random maps (images, width, side / stride, side / stride) that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(
        torch.randn(images, width, side // s, side // s, generator=generator).requires_grad_() for s in STRIDES
    )
    return DetectorOutput({"neck": Pyramid(levels, STRIDES, torch.full((images, 2), side))})


def select_images(output: DetectorOutput, images: slice) -> DetectorOutput:
    """Returns the output for some of its images. The maps are new leaves that require gradients."""
    neck = output.pyramids["neck"]
    levels = tuple(level[images].detach().requires_grad_() for level in neck.levels)
    return DetectorOutput({"neck": Pyramid(levels, STRIDES, neck.sizes[images])})


def padded(output: DetectorOutput) -> DetectorOutput:
    """Returns the output for the same images in a larger batch tensor."""
    neck = output.pyramids["neck"]
    levels = tuple(
        torch.nn.functional.pad(level, (0, 48 // s, 0, 80 // s)) for level, s in zip(neck.levels, STRIDES, strict=True)
    )
    return replace(output, pyramids={"neck": replace(neck, levels=levels)})


def targets(*labels: list[int]) -> Targets:
    """Returns targets with one list of labels per image. Box k of image i starts at (10 k, 8 i)."""
    boxes = []
    for i, image_labels in enumerate(labels):
        rows = [[10.0 * k, 8 * i, 10 * k + 30, 8 * i + 40] for k in range(len(image_labels))]
        boxes.append(torch.tensor(rows).view(-1, 4))
    return Targets(tuple(boxes), tuple(torch.tensor(image_labels, dtype=torch.long) for image_labels in labels))


def maps(output: DetectorOutput) -> tuple[Tensor, ...]:
    """Returns the levels of the neck."""
    return output.pyramids["neck"].levels
