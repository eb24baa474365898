"""`shapes:N`: a built-in data set that is drawn by code, for the demo, the tests and the benchmarks.

It needs no files and no download. A small network learns most of it quickly, but stays behind a larger network.
There are six classes in three pairs: disc and square, star and cross, plank and ladder. The hue mostly gives the pair.
Inside a pair, the outline or the direction of the stripes relative to the object's long axis gives the class. Objects
have any angle and size, are stretched, and are plain, striped or speckled. Some are faint or have a random hue. They
may overlap. Lines, arcs and rocks belong to no class.
"""

import colorsys
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from detdistill.data.records import Contents, Objects, Record
from detdistill.errors import UserError

CLASSES = ("disc", "square", "star", "cross", "plank", "ladder")
HEIGHT, WIDTH = 128, 160
SPLITS = ("train", "val", "test")
SEED = 20_731  # of the data set; another seed gives another data set
IDS = 1_000_000  # the ids of split s begin at s * IDS, so that the id of an image does not depend on N
FINE = 2  # images are drawn at this multiple of the size and then averaged, which gives smooth edges
FAINT = 0.1  # share of objects whose color is close to the color behind them
STRAY = 0.1  # share of objects with a random hue
OVERLAP = 0.4  # upper limit of the share of the smaller of two boxes that the other box covers
SIDES = (16.0, 60.0)  # range of the larger side in pixels, log-uniform


@dataclass(frozen=True)
class Item:
    """One object of a scene.

    class_index: its class.
    outline: (V, 2) polygon in pixels.
    angle: of its long axis, in radians.
    side: the larger side of its box, in pixels.
    """

    class_index: int
    outline: np.ndarray
    angle: float
    side: float

    @property
    def box(self) -> list[float]:
        """The bounding box xyxy, clipped to the image."""
        (left, top), (right, bottom) = self.outline.min(0), self.outline.max(0)
        return [
            max(float(left), 0.0),
            max(float(top), 0.0),
            min(float(right), float(WIDTH)),
            min(float(bottom), float(HEIGHT)),
        ]


@dataclass(frozen=True)
class Scene:
    """Image `index` of split `split` (0 train, 1 val, 2 test). It is drawn each time it is opened."""

    split: int
    index: int

    def open(self) -> Image.Image:
        """The drawn image, RGB, 160 x 128."""
        return _draw(scene_items(self.split, self.index), np.random.default_rng([SEED, self.split, self.index, 1]))


def is_shapes(path: str) -> bool:
    """True for shapes:N with any text as N."""
    return path.split(":")[0] == "shapes" and ":" in path


def read(path: str) -> Contents:
    """N training images, N // 4 validation images and N // 4 test images. Image k of a split does not depend on N."""
    match = re.fullmatch(r"shapes:(\d{1,7})", path)
    if not match or not 4 <= int(match[1]) < IDS:
        raise UserError(f"{path}: N is not a number from 4 to {IDS - 1}; write shapes:N with N training images")
    count = int(match[1])
    counts = (count, count // 4, count // 4)
    splits = {name: tuple(_record(split, index) for index in range(counts[split])) for split, name in enumerate(SPLITS)}
    return Contents(CLASSES, tuple(range(1, len(CLASSES) + 1)), splits)


def scene_items(split: int, index: int) -> tuple[Item, ...]:
    """The objects of an image, from back to front. At most eight; OVERLAP limits how much they cover each other."""
    random = np.random.default_rng([SEED, split, index, 0])
    items: list[Item] = []
    for _ in range(int(random.integers(2, 9))):
        for _ in range(6):
            item = _random_item(random)
            if all(_covered_share(item.box, previous.box) <= OVERLAP for previous in items):
                items.append(item)
                break
    return tuple(items)


def _record(split: int, index: int) -> Record:
    objects = Objects.empty()
    for item in scene_items(split, index):
        objects.add(item.box, item.class_index)
    id, name = split * IDS + index + 1, f"{SPLITS[split]}-{index:06d}"
    return objects.to_record(id, name, (HEIGHT, WIDTH), Scene(split, index))


def _random_item(random: np.random.Generator) -> Item:
    """A random object at a random place inside the image."""
    class_index = int(random.integers(len(CLASSES)))
    draws = random.random(5)
    side = SIDES[0] * (SIDES[1] / SIDES[0]) ** float(draws[0])
    angle = float(draws[1]) * 2 * math.pi
    stretch = 0.87 + 0.28 * float(draws[2])  # along the first axis; its inverse along the second axis
    unit = _OUTLINES[CLASSES[class_index]] * (stretch, 1 / stretch)
    turned = unit @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned *= side / (turned.max(0) - turned.min(0)).max()
    low, high = turned.min(0), turned.max(0)
    room = np.array([WIDTH, HEIGHT]) - (high - low)
    return Item(class_index, turned - low + draws[3:5] * room, angle, side)


def _covered_share(first: Sequence[float], second: Sequence[float]) -> float:
    """The share of the area of the smaller box that is covered by the larger box."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    smaller_area = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return max(width, 0.0) * max(height, 0.0) / smaller_area


def _ring(radii: Sequence[float] | np.ndarray, start: float = 0.0) -> np.ndarray:
    """(V, 2): points at equally spaced angles with these radii."""
    angles = start + np.arange(len(radii)) * (2 * math.pi / len(radii))
    return np.asarray(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(arm: float) -> np.ndarray:
    """(12, 2): a cross whose arms have the length 1 and the half width `arm`."""
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    corners = []
    for angle in np.arange(4) * math.pi / 2:
        rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        corners.append(quarter @ rotation)
    return np.concatenate(corners)


_BAR = np.array([[-1.0, -0.45], [1.0, -0.45], [1.0, 0.45], [-1.0, 0.45]])
_OUTLINES = {
    "disc": _ring([1.0] * 28),
    "square": _ring([1.0] * 4, math.pi / 4),
    "star": _ring([1.0, 0.45] * 5),
    "cross": _cross(0.33),
    "plank": _BAR,
    "ladder": _BAR,
}


def _draw(items: Sequence[Item], random: np.random.Generator) -> Image.Image:
    """The image of a background, distractors, the items and grain."""
    canvas = _background(random)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(random.integers(1, 6))):
        _draw_distractor(draw, random)
    for item in items:
        _draw_item(canvas, item, random)
    pixels = np.asarray(canvas.reduce(FINE), dtype=np.int16)
    grain = np.frombuffer(random.bytes(pixels.size), dtype=np.uint8).reshape(pixels.shape)
    level = int(random.integers(8, 44))  # peak to peak
    noisy = pixels + ((grain.astype(np.int16) * level) >> 8) - level // 2
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _background(random: np.random.Generator) -> Image.Image:
    """Clouds of two scales around one color, at FINE times the size."""
    base = int(random.integers(60, 196)) + random.integers(-12, 13, 3)
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.int16) + base.astype(np.int16)
    for rows, columns, strength in ((3, 4, 50), (20, 25, 30)):
        gray = random.integers(0, 256, (rows, columns, 1))
        tint = random.integers(0, 256, (rows, columns, 3))
        cloud = Image.fromarray(((3 * gray + tint) // 4).astype(np.uint8))
        resized = np.asarray(cloud.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), dtype=np.int16)
        picture += (resized - 128) * int(random.integers(8, strength)) >> 7
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)).resize(
        (WIDTH * FINE, HEIGHT * FINE), Image.Resampling.NEAREST
    )


def _draw_distractor(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw a line, an arc or a rock, which belong to no class."""
    color = tuple(int(value) for value in random.integers(20, 236, 3))
    spot = random.random(2) * (WIDTH * FINE, HEIGHT * FINE)
    reach = 8 + 50 * float(random.random())
    kind = int(random.integers(3))
    if kind == 0:
        ends = spot + (random.random((2, 2)) - 0.5) * 4 * reach
        draw.line([tuple(point) for point in ends.tolist()], fill=color, width=int(random.integers(1, 6)))
    elif kind == 1:
        begin = float(random.random()) * 360
        corners = [*(spot - reach).tolist(), *(spot + reach).tolist()]
        draw.arc(
            corners, begin, begin + 60 + 150 * float(random.random()), fill=color, width=int(random.integers(1, 6))
        )
    else:
        rock = _ring(0.35 + 0.65 * random.random(int(random.integers(6, 12)))) * reach * 0.6 + spot
        draw.polygon([tuple(point) for point in rock.tolist()], fill=color)


def _draw_item(canvas: Image.Image, item: Item, random: np.random.Generator) -> None:
    """Draw one object: its outline, filled with two colors in the pattern of its class or in a random pattern."""
    left, top, right, bottom = (round(value * FINE) for value in item.box)
    area = (left, top, max(right, left + 2), max(bottom, top + 2))
    width, height = area[2] - area[0], area[3] - area[1]
    behind = np.asarray(canvas.crop(area)).reshape(-1, 3)[::7].mean(0)
    first = _random_color(item.class_index, random)
    second = first * 0.4 if random.random() < 0.5 else 255 - (255 - first) * 0.4  # a darker or a lighter first color
    if random.random() < FAINT:
        first = behind + (first - behind) * 0.35
        second = behind + (second - behind) * 0.35
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in (item.outline * FINE - area[:2]).tolist()], fill=255)
    name = CLASSES[item.class_index]
    pattern = int(random.integers(6))
    if name in ("plank", "ladder"):
        angle = item.angle + (math.pi / 2 if name == "plank" else 0.0)
        use_second = _stripes(angle, item.side * 0.22, (height, width), random)
    elif pattern < 4:  # plain
        use_second = np.zeros((height, width), dtype=bool)
    elif pattern == 4:  # striped
        angle = float(random.random()) * math.pi
        period = item.side * (0.15 + 0.2 * float(random.random()))
        use_second = _stripes(angle, period, (height, width), random)
    else:  # speckled
        cells = (random.random((max(height // 5, 1), max(width // 5, 1))) < 0.4).astype(np.uint8) * 255
        use_second = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)) > 0
    fill = np.where(use_second[..., None], second, first).astype(np.uint8)
    canvas.paste(Image.fromarray(fill), area[:2], mask)


def _stripes(angle: float, period: float, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Bool array of size (height, width): stripes that repeat along `angle`, every `period` pixels of the image."""
    step = 2 * math.pi / (max(period, 3.0) * FINE)
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])[None]
    phase = float(random.random()) * 2 * math.pi
    return np.sin((columns * math.cos(angle) + rows * math.sin(angle)) * step + phase) > 0


def _random_color(class_index: int, random: np.random.Generator) -> np.ndarray:
    """A saturated color (3,) in 0..255. Its hue is mostly close to the hue of the class's pair, sometimes random."""
    draws = random.random(5)
    hue = float(draws[1]) if draws[0] < STRAY else class_index // 2 / 3 + 0.16 * float(draws[1] + draws[2] - 1)
    return np.array(colorsys.hsv_to_rgb(hue % 1, 0.5 + 0.5 * float(draws[3]), 0.5 + 0.5 * float(draws[4]))) * 255
