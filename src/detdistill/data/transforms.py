"""From a picture to what a detector is shown: resize, and in training scale, crop, flip and colour. Built on torchvision's v2 functions.

Every draw comes from the generator that is handed in; the global random state is neither read nor moved.
"""

import hashlib
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detdistill.recipe import DataConfig

LEAST = 1.0  # pixels; a box narrower or lower than this is dropped
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.3, 0.3, 0.3, 0.05  # factors in 1 +- this, hue in turns of the wheel


@dataclass(frozen=True, eq=False)
class View:
    """An image as it is shown: pixels (3, H, W) uint8, boxes (G, 4) in its pixels, labels (G,)."""

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes
    labels: Tensor


def seeded(*parts: object) -> torch.Generator:
    """A generator whose state depends on the parts alone, on every platform."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def canvas(config: DataConfig) -> tuple[int, int]:
    """(height, width) that images are fitted into."""
    size = config.image_size
    return (size, size) if isinstance(size, int) else size


def fitted(size: tuple[int, int], into: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """(height, width) of an image of `size` once it fits `into`, its ratio of sides kept, times `scale`."""
    ratio = min(into[0] / size[0], into[1] / size[1]) * scale
    return max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)


def pixels(picture: Image.Image) -> tv_tensors.Image:
    """(3, H, W) uint8."""
    return tv_tensors.Image(F.pil_to_tensor(picture))


def view(image: tv_tensors.Image, boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> View:
    """An image with boxes (G, 4) in a frame of `size` (height, width), which may be that of the original file, brought to the image's."""
    framed = tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)
    return View(image, resize_boxes(framed, (image.shape[-2], image.shape[-1])), labels)


def resize_image(image: tv_tensors.Image, size: tuple[int, int]) -> tv_tensors.Image:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.resize(image, list(size), antialias=True)


def resize_boxes(boxes: tv_tensors.BoundingBoxes, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return boxes if tuple(boxes.canvas_size) == size else F.resize(boxes, list(size))


def kept(shown: View) -> View:
    """Boxes clipped to the image (rounding leaves it by a hair), and none of them smaller than a pixel on a side."""
    boxes = F.clamp_bounding_boxes(shown.boxes)
    wide = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST).all(-1)
    return View(shown.image, tv_tensors.wrap(boxes[wide], like=boxes), shown.labels[wide])


def augment(shown: View, config: DataConfig, generator: torch.Generator) -> View:
    """Random scale and crop, horizontal flip, and colour, as the recipe asks. The draws depend on the generator alone."""
    if tuple(config.scale) != (1.0, 1.0):
        shown = scaled(shown, config, generator)
    if _uniform(generator) < config.flip:
        shown = View(F.horizontal_flip(shown.image), F.horizontal_flip(shown.boxes), shown.labels)
    if config.photometric:
        shown = View(recolored(shown.image, generator), shown.boxes, shown.labels)
    return shown


def scaled(shown: View, config: DataConfig, generator: torch.Generator) -> View:
    """The image at a random scale of its fitted size. What outgrows the canvas is cropped at random, and a box goes with its centre."""
    into = canvas(config)
    low, high = config.scale
    size = fitted((shown.image.shape[-2], shown.image.shape[-1]), into, low + (high - low) * _uniform(generator))
    image, boxes, labels = resize_image(shown.image, size), resize_boxes(shown.boxes, size), shown.labels
    height, width = min(size[0], into[0]), min(size[1], into[1])
    top, left = (round((have - take) * _uniform(generator)) for have, take in zip(size, (height, width), strict=True))
    if (height, width) == size:
        return View(image, boxes, labels)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    start, end = centre.new_tensor([left, top]), centre.new_tensor([left + width, top + height])
    stays = ((centre >= start) & (centre < end)).all(-1)
    boxes = F.crop(tv_tensors.wrap(boxes[stays], like=boxes), top, left, height, width)
    return View(F.crop(image, top, left, height, width), boxes, labels[stays])


def recolored(image: tv_tensors.Image, generator: torch.Generator) -> tv_tensors.Image:
    """Brightness, contrast, saturation and hue by random amounts, in random order."""
    brightness, contrast, saturation, hue = (2 * _uniform(generator) - 1 for _ in range(4))
    for turn in torch.randperm(4, generator=generator).tolist():
        if turn == 0:
            image = F.adjust_brightness(image, 1 + BRIGHTNESS * brightness)
        elif turn == 1:
            image = F.adjust_contrast(image, 1 + CONTRAST * contrast)
        elif turn == 2:
            image = F.adjust_saturation(image, 1 + SATURATION * saturation)
        else:
            image = F.adjust_hue(image, HUE * hue)
    return image


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
