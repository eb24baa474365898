"""Image transforms: resizing, and in training random scale, crop, flip and color.

They use torchvision's v2 functions. All random numbers come from the generator that is passed in. The global random
state is neither read nor changed.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detdistill.recipe import DataConfig
from detdistill.types import MULTIPLE

MIN_SIDE = 1.0  # pixels; a box with a smaller width or height is dropped
BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.3, 0.3  # the factor is in 1 - this .. 1 + this
HUE = 0.05  # the shift is in -this .. this, in turns of the color wheel


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its objects.

    image: (3, H, W) uint8.
    boxes: (G, 4) xyxy in pixels of the image.
    labels: (G,).
    """

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes
    labels: Tensor


def seeded_generator(*parts: object) -> torch.Generator:
    """A generator whose state depends only on the parts, on every platform."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image size, which may be the side of a square."""
    return (size, size) if isinstance(size, int) else size


def canvas_size(config: DataConfig) -> tuple[int, int]:
    """The (height, width) that images are scaled to fit into."""
    return sides(config.image_size)


def largest_canvas(config: DataConfig) -> tuple[int, int]:
    """The (height, width) of the largest padded batch of training."""
    high = config.multiscale[1]
    rounded = math.ceil if high == 1 else round
    sides = [MULTIPLE * max(rounded(high * side / MULTIPLE), 1) for side in canvas_size(config)]
    return sides[0], sides[1]


def batch_config(config: DataConfig, *key: object) -> DataConfig:
    """The config of one batch: with `data.multiscale`, its image size is random.

    The longer side of the canvas is a multiple of 32 in the range times `image_size`, each with equal probability. The
    other side follows in proportion, rounded to a multiple of 32. Both depend only on the parts of `key`.
    """
    low, high = config.multiscale
    if (low, high) == (1.0, 1.0):
        return config
    canvas = canvas_size(config)
    longer = max(canvas)
    least, most = math.ceil(low * longer / MULTIPLE), math.floor(high * longer / MULTIPLE)
    if least > most:  # a narrow range without a multiple of 32
        least = most = max(round((low + high) / 2 * longer / MULTIPLE), 1)
    steps = int(torch.randint(least, most + 1, (), generator=seeded_generator(*key)))
    sides = [MULTIPLE * max(round(side * steps / longer), 1) for side in canvas]
    return config.model_copy(update={"image_size": (sides[0], sides[1])})


def fitted_size(size: tuple[int, int], canvas: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """The (height, width) of an image of `size` that is scaled to fit into the canvas, times `scale`.

    The aspect ratio is kept.
    """
    ratio = min(canvas[0] / size[0], canvas[1] / size[1]) * scale
    return max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)


def image_tensor(picture: Image.Image) -> tv_tensors.Image:
    """The pixels of an RGB image, (3, H, W) uint8."""
    return tv_tensors.Image(F.pil_to_tensor(picture))


def make_sample(image: tv_tensors.Image, boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> Sample:
    """A sample from an image and boxes (G, 4) in a frame of `size`.

    size: (height, width), for example those of the original file. The boxes are resized to the image.
    """
    framed = tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)
    return Sample(image, resize_boxes(framed, (image.shape[-2], image.shape[-1])), labels)


def resize_image(image: tv_tensors.Image, size: tuple[int, int]) -> tv_tensors.Image:
    """The image resized to (height, width), with antialiasing."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.resize(image, list(size), antialias=True)


def resize_boxes(boxes: tv_tensors.BoundingBoxes, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """The boxes for an image that is resized to (height, width)."""
    return boxes if tuple(boxes.canvas_size) == size else F.resize(boxes, list(size))


def fit(sample: Sample, canvas: tuple[int, int]) -> Sample:
    """The sample scaled to fit into the canvas (height, width)."""
    size = fitted_size((sample.image.shape[-2], sample.image.shape[-1]), canvas)
    return Sample(resize_image(sample.image, size), resize_boxes(sample.boxes, size), sample.labels)


def drop_small_boxes(sample: Sample) -> Sample:
    """The sample with boxes clipped to the image, without boxes that have a side below one pixel.

    Rounding can move a box slightly out of the image.
    """
    boxes = F.clamp_bounding_boxes(sample.boxes)
    is_large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(-1)
    return Sample(sample.image, tv_tensors.wrap(boxes[is_large], like=boxes), sample.labels[is_large])


def augment(sample: Sample, config: DataConfig, generator: torch.Generator) -> Sample:
    """Random scale and crop, horizontal flip and color, as configured. The result depends only on the generator."""
    if tuple(config.scale) != (1.0, 1.0):
        sample = scale_and_crop(sample, config, generator)
    if uniform(generator) < config.flip:
        sample = Sample(F.horizontal_flip(sample.image), F.horizontal_flip(sample.boxes), sample.labels)
    if config.photometric:
        sample = Sample(change_colors(sample.image, generator), sample.boxes, sample.labels)
    return sample


def scale_and_crop(sample: Sample, config: DataConfig, generator: torch.Generator) -> Sample:
    """The image at a random scale of its fitted size.

    An image that is larger than the canvas is cropped at a random place. A box is kept if its center is in the crop.
    """
    canvas = canvas_size(config)
    low, high = config.scale
    scale = low + (high - low) * uniform(generator)
    size = fitted_size((sample.image.shape[-2], sample.image.shape[-1]), canvas, scale)
    resized = Sample(resize_image(sample.image, size), resize_boxes(sample.boxes, size), sample.labels)
    return random_crop(resized, canvas, generator)


def random_crop(sample: Sample, largest: tuple[int, int], generator: torch.Generator) -> Sample:
    """The sample, cropped at a random place if it is larger than `largest` (height, width).

    A box is kept if its center is in the crop, and clipped to the crop.
    """
    rows, columns = sample.image.shape[-2:]
    height, width = min(rows, largest[0]), min(columns, largest[1])
    top = round((rows - height) * uniform(generator))
    left = round((columns - width) * uniform(generator))
    if (height, width) == (rows, columns):
        return sample
    boxes = sample.boxes
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    start, end = centers.new_tensor([left, top]), centers.new_tensor([left + width, top + height])
    is_inside = ((centers >= start) & (centers < end)).all(-1)
    boxes = F.crop(tv_tensors.wrap(boxes[is_inside], like=boxes), top, left, height, width)
    return Sample(F.crop(sample.image, top, left, height, width), boxes, sample.labels[is_inside])


def change_colors(image: tv_tensors.Image, generator: torch.Generator) -> tv_tensors.Image:
    """The image with brightness, contrast, saturation and hue changed by random amounts, in random order."""
    brightness, contrast, saturation, hue = [2 * uniform(generator) - 1 for _ in range(4)]
    for operation in torch.randperm(4, generator=generator).tolist():
        if operation == 0:
            image = F.adjust_brightness(image, 1 + BRIGHTNESS * brightness)
        elif operation == 1:
            image = F.adjust_contrast(image, 1 + CONTRAST * contrast)
        elif operation == 2:
            image = F.adjust_saturation(image, 1 + SATURATION * saturation)
        else:
            image = F.adjust_hue(image, HUE * hue)
    return image


def uniform(generator: torch.Generator) -> float:
    """A random number in 0..1."""
    return float(torch.rand((), generator=generator))
