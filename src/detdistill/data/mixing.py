"""Several training images in one: mosaic and mixup. All random numbers come from the generator that is passed in."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors

from detdistill.data.transforms import Sample, random_crop, uniform
from detdistill.recipe import DataConfig

FILL = 114  # gray value of pixels that no image covers
MARGIN = 0.25  # the images of a mosaic meet at least this share of the side away from its edge
BETA = 32  # the ratio of a mixup is drawn from Beta(BETA, BETA): 0.5, with a standard deviation of 0.06


@dataclass(frozen=True)
class Mix:
    """The images that are joined with an image.

    tiles: indices of the other three images of a mosaic; empty: no mosaic.
    partner: index of the image that is blended in, or None. ratio: share of the first image, 0..1.
    """

    tiles: tuple[int, ...] = ()
    partner: int | None = None
    ratio: float = 1.0

    @classmethod
    def draw(cls, config: DataConfig, count: int, generator: torch.Generator) -> "Mix":
        """A random choice among `count` images, with the probabilities of `data.mosaic` and `data.mixup`."""
        is_mosaic, is_mixed = uniform(generator) < config.mosaic, uniform(generator) < config.mixup
        tiles = torch.randint(count, (4,), generator=generator).tolist()
        partner = tiles.pop()
        return cls(tuple(tiles) if is_mosaic else (), partner if is_mixed else None, blend_ratio(generator))


def blend_ratio(generator: torch.Generator) -> float:
    """A number in 0..1 from Beta(BETA, BETA): the median of 2 BETA - 1 uniform numbers has this distribution.

    torch's own Beta reads the global random state.
    """
    return float(torch.rand(2 * BETA - 1, generator=generator).median())


def mosaic(tiles: Sequence[Sample], canvas: tuple[int, int], generator: torch.Generator) -> Sample:
    """Four images around a random point of a canvas (height, width): top left, top right, bottom left, bottom right.

    Each image touches the point with its corner. It is cropped at a random place to its part of the canvas; a box is
    kept if its center is in the crop. What no image covers is gray.
    """
    height, width = canvas
    row, column = [round((MARGIN + (1 - 2 * MARGIN) * uniform(generator)) * side) for side in canvas]
    pixels = torch.full((3, height, width), FILL, dtype=torch.uint8)
    boxes, labels = [], []
    for place, tile in enumerate(tiles):
        is_bottom, is_right = divmod(place, 2)
        room = (height - row if is_bottom else row, width - column if is_right else column)
        part = random_crop(tile, room, generator)
        rows, columns = part.image.shape[-2:]
        top, left = row if is_bottom else row - rows, column if is_right else column - columns
        pixels[:, top : top + rows, left : left + columns] = part.image
        boxes.append(part.boxes.as_subclass(Tensor) + torch.tensor([left, top, left, top]))
        labels.append(part.labels)
    return _joined(pixels, boxes, labels)


def mixup(first: Sample, second: Sample, ratio: float) -> Sample:
    """`ratio` of the first image plus 1 - ratio of the second, with the boxes of both.

    The images lie on each other with their top left corners. What one of them does not cover counts as gray there.
    Targets have no weights, so each box counts fully; this is why the ratio is drawn near one half.
    """
    height, width = [max(first.image.shape[axis], second.image.shape[axis]) for axis in (-2, -1)]
    blend = torch.zeros(3, height, width)
    for sample, share in ((first, ratio), (second, 1 - ratio)):
        pixels = torch.full((3, height, width), float(FILL))
        pixels[:, : sample.image.shape[-2], : sample.image.shape[-1]] = sample.image
        blend += share * pixels
    boxes = [sample.boxes.as_subclass(Tensor) for sample in (first, second)]
    return _joined(blend.round().to(torch.uint8), boxes, [first.labels, second.labels])


def _joined(pixels: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Sample:
    """One sample from the pixels and the boxes of several images, which are in the frame of the pixels."""
    framed = tv_tensors.BoundingBoxes(
        torch.cat(list(boxes)), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=tuple(pixels.shape[-2:])
    )
    return Sample(tv_tensors.Image(pixels), framed, torch.cat(list(labels)))
