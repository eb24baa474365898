"""Sizes of images, and of boxes against the strides of a model, after images are resized as for training."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detdistill.data.transforms import MIN_SIDE, canvas_size, fitted_size
from detdistill.errors import NAMED, plural
from detdistill.inspection.coverage import ANCHOR, HEADS, resize_factors, uncovered
from detdistill.inspection.findings import Finding, share
from detdistill.inspection.members import Members
from detdistill.recipe import DataConfig
from detdistill.types import MULTIPLE

SMALL, LARGE = 32.0**2, 96.0**2  # areas in pixels that divide COCO's small, medium and large
NARROW_SHARE = 0.1  # share of the boxes of a class from which on narrow boxes are a finding
UNCOVERED_SHARE = 0.01  # the same for boxes without a positive cell
FEW = 5  # a finding about a class needs at least so many boxes
PADDED_SHARE = 0.25  # padding from which on it is a finding
LESS = 0.05  # another image size is proposed if it saves so much padding
COMMON = 3  # image sizes that are listed

Span = tuple[float, float, float]  # smallest, median, largest


@dataclass(frozen=True)
class ImageSizes:
    """The sizes of images.

    height, width, aspect: of the files; aspect is width / height. scale: the factor of resizing.
    different: number of different sizes. common: the most common ones as (height, width, images).
    padding: share of the pixels of batches that is padding, for batches in random order.
    better: another (height, width) of about the same area for --image-size with less padding, and its padding; None if
    there is none.
    """

    height: Span
    width: Span
    aspect: Span
    scale: Span
    different: int
    common: tuple[tuple[int, int, int], ...]
    padding: float
    better: tuple[int, int, float] | None = None


@dataclass(frozen=True)
class Level:
    """A level of the pyramid. nearest: boxes whose size is closest to its anchors. narrower: boxes with a side below
    its stride.
    """

    stride: int
    nearest: int
    narrower: int


@dataclass(frozen=True)
class ClassSizes:
    """The boxes of a class. side: median of the square root of the area, resized. narrower: boxes with a side below the
    finest stride, resized. All 0 if the class has no box.
    """

    boxes: int
    side: float
    narrower: int


@dataclass(frozen=True)
class BoxSizes:
    """Boxes against the strides of a model.

    canvas: (height, width) that images are scaled to fit into. strides: fine to coarse.
    boxes: their number. in_file, resized: how many are small, medium and large, as COCO counts them: by the annotated
    area in the files, and by the area of the box after resizing.
    levels: fine to coarse. classes: by name.
    dropped: boxes that training leaves out, because a side is below a pixel after resizing.
    uncovered: by assigner, how many boxes get no positive cell. looked_at: how many boxes that was computed for.
    """

    canvas: tuple[int, int]
    strides: tuple[int, ...]
    boxes: int
    in_file: tuple[int, int, int]
    resized: tuple[int, int, int]
    levels: tuple[Level, ...]
    classes: dict[str, ClassSizes]
    dropped: int
    uncovered: dict[str, int]
    looked_at: int


def image_sizes(members: Members, config: DataConfig, batch_size: int) -> ImageSizes:
    """The sizes of the images. There must be at least one image."""
    sizes = members.sizes
    fitted = fitted_sizes(members, canvas_size(config))
    counts = Counter((record.height, record.width) for record in members.records)
    common = tuple((height, width, count) for (height, width), count in counts.most_common(COMMON))
    return ImageSizes(
        height=_span(sizes[:, 0]),
        width=_span(sizes[:, 1]),
        aspect=_span(sizes[:, 1] / sizes[:, 0]),
        scale=_span((fitted / sizes).max(1)),
        different=len(counts),
        common=common,
        padding=padding_share(fitted, batch_size),
        better=_less_padding(members, canvas_size(config), batch_size),
    )


def _less_padding(members: Members, canvas: tuple[int, int], batch_size: int) -> tuple[int, int, float] | None:
    """The upright, lying or square canvas of about the same area with the least padding, and its padding; None if it
    is hardly better than `canvas`.
    """
    side = max(round((canvas[0] * canvas[1]) ** 0.5 / MULTIPLE), 1) * MULTIPLE
    shares = {
        each: padding_share(fitted_sizes(members, each), batch_size) for each in (canvas, canvas[::-1], (side, side))
    }
    best = min(shares, key=lambda each: shares[each])
    return (*best, shares[best]) if shares[best] < shares[canvas] - LESS else None


def fitted_sizes(members: Members, canvas: tuple[int, int]) -> np.ndarray:
    """(images, 2) height and width of each image after it is scaled to fit into the canvas."""
    sizes = [fitted_size((record.height, record.width), canvas) for record in members.records]
    return np.array(sizes, dtype=np.float64).reshape(-1, 2)


def padding_share(fitted: np.ndarray, batch_size: int) -> float:
    """The share of padding in the pixels of batches of resized images (n, 2), taken in a fixed random order."""
    order = np.random.default_rng(0).permutation(len(fitted))
    pixels = 0.0
    for first in range(0, len(order), batch_size):
        batch = fitted[order[first : first + batch_size]]
        height, width = np.ceil(batch.max(0) / MULTIPLE) * MULTIPLE
        pixels += len(batch) * height * width
    return float(1 - fitted.prod(1).sum() / pixels)


def box_sizes(members: Members, config: DataConfig, strides: Sequence[int], assigners: Sequence[str]) -> BoxSizes:
    """The sizes of the boxes against the strides. assigners: names in `ASSIGNERS`."""
    fitted = fitted_sizes(members, canvas_size(config))
    sides = members.sides * resize_factors(members, fitted)[members.image]
    shorter, size = sides.min(1), np.sqrt(sides.prod(1))
    spans = np.log2(ANCHOR * np.array(strides, dtype=np.float64))
    nearest = np.abs(np.log2(np.maximum(size, 1e-6))[:, None] - spans).argmin(1)
    levels = tuple(
        Level(stride, int((nearest == index).sum()), int((shorter < stride).sum()))
        for index, stride in enumerate(strides)
    )
    classes = {}
    for label, name in enumerate(members.classes):
        chosen = members.labels == label
        side = float(np.median(size[chosen])) if chosen.any() else 0.0
        classes[name] = ClassSizes(int(chosen.sum()), side, int((shorter[chosen] < min(strides)).sum()))
    return BoxSizes(
        canvas_size(config),
        tuple(strides),
        len(size),
        _thirds(members.areas),
        _thirds(size**2),
        levels,
        classes,
        int((shorter < MIN_SIDE).sum()),
        *uncovered(members, fitted, strides, assigners),
    )


def _thirds(areas: np.ndarray) -> tuple[int, int, int]:
    """How many areas are small, medium and large, as COCO counts them."""
    small, large = int((areas < SMALL).sum()), int((areas >= LARGE).sum())
    return small, len(areas) - small - large, large


def _span(values: np.ndarray) -> Span:
    return float(values.min()), float(np.median(values)), float(values.max())


def size_findings(images: ImageSizes, boxes: BoxSizes) -> list[Finding]:
    """The findings about sizes."""
    height, width = boxes.canvas
    place = f"at {height}x{width}"
    finest = min(boxes.strides)
    finer = ",".join(map(str, (finest // 2, *sorted(boxes.strides)[: max(len(boxes.strides) - 1, 1)])))
    larger = "a larger --image-size" + (f", or --model.strides {finer}" if finest > 1 else "")
    found = []
    if boxes.dropped:
        count = boxes.dropped
        text = f"{plural(count, 'box', 'boxes')} with a side below one pixel {place}; training leaves such boxes out"
        found.append(Finding("dropped", "problem", count, text, remedy="a larger --image-size"))
    narrow = {
        name: each
        for name, each in boxes.classes.items()
        if each.narrower >= FEW and each.narrower >= NARROW_SHARE * each.boxes
    }
    if narrow:
        count = sum(each.narrower for each in narrow.values())
        classes = plural(len(narrow), "class")
        text = f"{plural(count, 'box', 'boxes')} of {classes} are narrower than one cell of stride {finest} {place}"
        ranked = sorted(narrow.items(), key=lambda item: -item[1].narrower / item[1].boxes)
        examples = tuple(
            f"{name}: {share(each.narrower, each.boxes)} ({each.narrower} of {each.boxes})"
            for name, each in ranked[:NAMED]
        )
        found.append(Finding("narrow", "warning", len(narrow), text, examples, larger))
    for name, count in boxes.uncovered.items():
        if count >= FEW and count >= UNCOVERED_SHARE * boxes.looked_at:
            part = f"{share(count, boxes.looked_at)} of the boxes ({count} of {boxes.looked_at})"
            heads = " and ".join(head for head, assigner in HEADS.items() if assigner == name)
            text = f"{part} get no positive cell {place} with {heads}, so the detector does not learn them"
            found.append(Finding(f"uncovered-{name}", "warning", count, text, remedy=larger))
    if images.padding > PADDED_SHARE:
        text = f"{100 * images.padding:.0f} % of the pixels of a batch are padding {place}"
        remedy = "the images have different shapes"
        if images.better is not None:
            better_height, better_width, padding = images.better
            remedy = f"--image-size {better_height},{better_width} would have {100 * padding:.0f} %"
        found.append(Finding("padding", "note", 1, text, remedy=remedy))
    return found
