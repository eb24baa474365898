"""`shapes:N`: a built-in data set drawn by code, for the demo, the tests and the benches. No file, no download.

Six classes, made so that a small network learns most of it soon and trails a larger one at the rest. Hue mostly tells pairs apart (disc
and square, star and cross, plank and ladder), but within a pair it is the outline, or the direction of the stripes against the object's
own long axis. All are turned at any angle, stretched, small and large, plain or striped or speckled, at times faint or of a stray hue,
over each other, among lines, arcs and rocks that are no class.
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
SEED = 20_731  # of the data set; another one is another data set
IDS = 1_000_000  # ids of split s begin at s * IDS, so that an image keeps its id whatever N
FINE = 2  # drawn at this many times the size, then averaged: smooth edges
FAINT = 0.1  # share of objects near the colour of what is behind them
STRAY = 0.1  # share of objects of any hue
OVERLAP = 0.4  # most of the smaller of two boxes that the other covers
SIDES = (16.0, 60.0)  # pixels across, log-uniform


@dataclass(frozen=True)
class Item:
    """One object: class, outline (V, 2) in pixels, angle of its long axis in radians, larger side of its box."""

    kind: int
    outline: np.ndarray
    angle: float
    side: float

    @property
    def box(self) -> list[float]:
        """xyxy inside the image."""
        (left, top), (right, bottom) = self.outline.min(0), self.outline.max(0)
        return [
            max(float(left), 0.0),
            max(float(top), 0.0),
            min(float(right), float(WIDTH)),
            min(float(bottom), float(HEIGHT)),
        ]


@dataclass(frozen=True)
class Scene:
    """Picture `index` of split `split` (0 train, 1 val, 2 test), drawn whenever it is opened."""

    split: int
    index: int

    def open(self) -> Image.Image:
        """RGB, 160 x 128."""
        return _draw(layout(self.split, self.index), np.random.default_rng([SEED, self.split, self.index, 1]))


def named(path: str) -> bool:
    """True for shapes:N, whatever N is."""
    return path.split(":")[0] == "shapes" and ":" in path


def read(path: str) -> Contents:
    """N training images, N // 4 val, N // 4 test. Image k of a split is the same whatever N."""
    found = re.fullmatch(r"shapes:(\d{1,7})", path)
    if not found or not 4 <= int(found[1]) < IDS:
        raise UserError(f"{path}: the built-in set is shapes:N with N from 4 to {IDS - 1} training images")
    count = int(found[1])
    counts = (count, count // 4, count // 4)
    splits = {name: tuple(_record(split, index) for index in range(counts[split])) for split, name in enumerate(SPLITS)}
    return Contents(CLASSES, tuple(range(1, len(CLASSES) + 1)), splits)


def layout(split: int, index: int) -> tuple[Item, ...]:
    """The objects of a picture, from back to front: eight at most, none covering more than OVERLAP of another."""
    random = np.random.default_rng([SEED, split, index, 0])
    items: list[Item] = []
    for _ in range(int(random.integers(2, 9))):
        for _ in range(6):
            item = _item(random)
            if all(_covered(item.box, other.box) <= OVERLAP for other in items):
                items.append(item)
                break
    return tuple(items)


def _record(split: int, index: int) -> Record:
    objects = Objects.none()
    for item in layout(split, index):
        objects.add(item.box, item.kind)
    return objects.record(split * IDS + index + 1, f"{SPLITS[split]}-{index:06d}", (HEIGHT, WIDTH), Scene(split, index))


def _item(random: np.random.Generator) -> Item:
    kind = int(random.integers(len(CLASSES)))
    draws = random.random(5)
    side = SIDES[0] * (SIDES[1] / SIDES[0]) ** float(draws[0])
    angle = float(draws[1]) * 2 * math.pi
    stretch = 0.87 + 0.28 * float(draws[2])  # along the first axis, its inverse along the second
    unit = _OUTLINES[CLASSES[kind]] * (stretch, 1 / stretch)
    turned = unit @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned *= side / (turned.max(0) - turned.min(0)).max()
    low, high = turned.min(0), turned.max(0)
    room = np.array([WIDTH, HEIGHT]) - (high - low)
    return Item(kind, turned - low + draws[3:5] * room, angle, side)


def _covered(box: Sequence[float], other: Sequence[float]) -> float:
    """The share of the smaller box that lies in the larger."""
    wide, high = min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(wide, 0.0) * max(high, 0.0) / smaller


def _ring(radii: Sequence[float] | np.ndarray, start: float = 0.0) -> np.ndarray:
    """(V, 2): points at even angles and the given radii."""
    angles = start + np.arange(len(radii)) * (2 * math.pi / len(radii))
    return np.asarray(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(arm: float) -> np.ndarray:
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    turns = [np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in np.arange(4) * math.pi / 2]
    return np.concatenate([quarter @ turn for turn in turns])


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
    canvas = _background(random)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(random.integers(1, 6))):
        _distract(draw, random)
    for item in items:
        _paint(canvas, item, random)
    pixels = np.asarray(canvas.reduce(FINE), dtype=np.int16)
    grain = np.frombuffer(random.bytes(pixels.size), dtype=np.uint8).reshape(pixels.shape)
    level = int(random.integers(8, 44))  # peak to peak
    noisy = pixels + ((grain.astype(np.int16) * level) >> 8) - level // 2
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _background(random: np.random.Generator) -> Image.Image:
    """Clouds of two scales around one colour, at FINE times the size."""
    base = int(random.integers(60, 196)) + random.integers(-12, 13, 3)
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.int16) + base.astype(np.int16)
    for rows, columns, strength in ((3, 4, 50), (20, 25, 30)):
        grey, tint = random.integers(0, 256, (rows, columns, 1)), random.integers(0, 256, (rows, columns, 3))
        cloud = Image.fromarray(((3 * grey + tint) // 4).astype(np.uint8))
        wide = np.asarray(cloud.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), dtype=np.int16)
        picture += (wide - 128) * int(random.integers(8, strength)) >> 7
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)).resize(
        (WIDTH * FINE, HEIGHT * FINE), Image.Resampling.NEAREST
    )


def _distract(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """A line, an arc or a rock."""
    color = tuple(int(value) for value in random.integers(20, 236, 3))
    spot = random.random(2) * (WIDTH * FINE, HEIGHT * FINE)
    reach = 8 + 50 * float(random.random())
    sort = int(random.integers(3))
    if sort == 0:
        ends = spot + (random.random((2, 2)) - 0.5) * 4 * reach
        draw.line([tuple(point) for point in ends.tolist()], fill=color, width=int(random.integers(1, 6)))
    elif sort == 1:
        begin = float(random.random()) * 360
        corners = [*(spot - reach).tolist(), *(spot + reach).tolist()]
        draw.arc(
            corners, begin, begin + 60 + 150 * float(random.random()), fill=color, width=int(random.integers(1, 6))
        )
    else:
        rock = _ring(0.35 + 0.65 * random.random(int(random.integers(6, 12)))) * reach * 0.6 + spot
        draw.polygon([tuple(point) for point in rock.tolist()], fill=color)


def _paint(canvas: Image.Image, item: Item, random: np.random.Generator) -> None:
    """One object over what is there: its outline filled with two colours in the pattern of its class, or a random one."""
    left, top, right, bottom = (round(value * FINE) for value in item.box)
    area = (left, top, max(right, left + 2), max(bottom, top + 2))
    width, height = area[2] - area[0], area[3] - area[1]
    behind = np.asarray(canvas.crop(area)).reshape(-1, 3)[::7].mean(0)
    first = _color(item.kind, random)
    second = first * 0.4 if random.random() < 0.5 else 255 - (255 - first) * 0.4  # a shade or a tint of it
    if random.random() < FAINT:
        first, second = (behind + (color - behind) * 0.35 for color in (first, second))
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in (item.outline * FINE - area[:2]).tolist()], fill=255)
    shape = CLASSES[item.kind]
    pattern = int(random.integers(6))
    if shape in ("plank", "ladder"):
        lit = _stripes(
            item.angle + (math.pi / 2 if shape == "plank" else 0.0), item.side * 0.22, (height, width), random
        )
    elif pattern < 4:
        lit = np.zeros((height, width), dtype=bool)
    elif pattern == 4:
        lit = _stripes(
            float(random.random()) * math.pi, item.side * (0.15 + 0.2 * float(random.random())), (height, width), random
        )
    else:
        cells = (random.random((max(height // 5, 1), max(width // 5, 1))) < 0.4).astype(np.uint8) * 255
        lit = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)) > 0
    fill = np.where(lit[..., None], second, first).astype(np.uint8)
    canvas.paste(Image.fromarray(fill), area[:2], mask)


def _stripes(angle: float, period: float, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """(height, width) bool: stripes that follow each other along `angle`, `period` pixels of the picture apart."""
    step = 2 * math.pi / (max(period, 3.0) * FINE)
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])[None]
    phase = float(random.random()) * 2 * math.pi
    return np.sin((columns * math.cos(angle) + rows * math.sin(angle)) * step + phase) > 0


def _color(kind: int, random: np.random.Generator) -> np.ndarray:
    """A strong colour (3,) in 0..255: mostly near the hue that a class shares with its neighbour, at times any."""
    draws = random.random(5)
    hue = float(draws[1]) if draws[0] < STRAY else kind // 2 / 3 + 0.16 * float(draws[1] + draws[2] - 1)
    return np.array(colorsys.hsv_to_rgb(hue % 1, 0.5 + 0.5 * float(draws[3]), 0.5 + 0.5 * float(draws[4]))) * 255
