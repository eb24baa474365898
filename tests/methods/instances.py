"""Outputs that are a pyramid and nothing more, for methods that read instances; no detector runs."""

from dataclasses import replace

import torch
from torch import Tensor

from detdistill.types import DetectorInfo, DetectorOutput, ProposalInfo, Pyramid, Targets

STRIDES = (8, 16)


def info(width: int, embedding: int | None = None) -> DetectorInfo:
    """Of a one-stage detector or, with an embedding, a two-stage one."""
    proposals = ProposalInfo((8, 16), (10.0, 10.0, 5.0, 5.0), embedding) if embedding else None
    activation = "softmax" if embedding else "sigmoid"
    return DetectorInfo("any", ("a", "b"), STRIDES, {"neck": width}, activation, proposals=proposals)


def look(width: int, seed: int, images: int = 2, side: int = 128) -> DetectorOutput:
    """Random maps that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(
        torch.randn(images, width, side // s, side // s, generator=generator).requires_grad_() for s in STRIDES
    )
    return DetectorOutput({"neck": Pyramid(levels, STRIDES, torch.full((images, 2), side))})


def part(output: DetectorOutput, images: slice) -> DetectorOutput:
    """Some images of it, as leaves of their own."""
    neck = output.pyramids["neck"]
    levels = tuple(level[images].detach().requires_grad_() for level in neck.levels)
    return DetectorOutput({"neck": Pyramid(levels, STRIDES, neck.sizes[images])})


def padded(output: DetectorOutput) -> DetectorOutput:
    """The same images in a larger batch."""
    neck = output.pyramids["neck"]
    levels = tuple(
        torch.nn.functional.pad(level, (0, 48 // s, 0, 80 // s)) for level, s in zip(neck.levels, STRIDES, strict=True)
    )
    return replace(output, pyramids={"neck": replace(neck, levels=levels)})


def targets(*labels: list[int]) -> Targets:
    """One list of labels an image; box k of image i begins at (10 k, 8 i)."""
    boxes = [
        torch.tensor([[10.0 * k, 8 * i, 10 * k + 30, 8 * i + 40] for k in range(len(own))]).view(-1, 4)
        for i, own in enumerate(labels)
    ]
    return Targets(tuple(boxes), tuple(torch.tensor(own, dtype=torch.long) for own in labels))


def maps(output: DetectorOutput) -> tuple[Tensor, ...]:
    return output.pyramids["neck"].levels
