"""Places for the labels of boxes, so that they hide neither objects nor each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture

MOST_OVERLAP = 0.05  # share of a label that may lie on other labels
MOST_HIDDEN = 0.5  # share of an object that a label may hide
INSIDE = 0.35  # cost of a place inside the box, even if the box is large
ORDER = 0.02  # cost of each step down the list of places
KEEP = 0.6  # advantage of the place that the label had in the last frame


class Place(NamedTuple):
    """Where a label stands. variant: of its text. position: the number of its place in the list of places."""

    variant: int
    rectangle: Rectangle
    position: int


@dataclass
class Memory:
    """The labels of the last frame of a video, so that a label does not jump while its place is still good.

    kinds: (D,) class of each box. boxes: (D, 4). positions: (D,), -1 for a box without a label.
    """

    kinds: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))

    def recall(self, kinds: Sequence[int], boxes: np.ndarray) -> list[int]:
        """The position that the label of each box had, or -1. A box is the former one of its class that it overlaps
        most, if their IoU is at least a half.
        """
        common = overlaps(boxes, self.boxes)
        areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, self.boxes)]
        ious = common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)
        ious[np.asarray(kinds, dtype=int)[:, None] != self.kinds[None]] = 0
        if not ious.size:
            return [-1] * len(boxes)
        best = ious.argmax(1)
        return [int(self.positions[old]) if row[old] >= 0.5 else -1 for row, old in zip(ious, best, strict=True)]

    def keep(self, kinds: Sequence[int], boxes: np.ndarray, places: Sequence[Place | None]) -> None:
        """Remember this frame."""
        self.kinds, self.boxes = np.asarray(kinds, dtype=int), boxes
        self.positions = np.asarray([-1 if place is None else place.position for place in places], dtype=int)


def place_labels(
    boxes: np.ndarray,
    sizes: Sequence[Sequence[tuple[float, float]]],
    picture: tuple[float, float],
    former: Sequence[int] | None = None,
) -> list[Place | None]:
    """For each box the variant of its label that fits and its place, or None if every place would hide too much.

    boxes: (D, 4) xyxy, the box with the most important label first; it gets its place first.
    sizes: (width, height) of the variants of each label, the wanted one first.
    picture: (width, height).
    former: the position of each label in the last frame of a video, or -1; this place is preferred.
    Places are above and below the box, then beside it, then inside it at the edge. The place with the least cost wins:
    the shares of other boxes and of itself that lie under it, and a little for places further down the list. A label
    never leaves the picture, and at most 5 % of it lie on other labels and at most half of an object under it.
    """
    placed: list[Rectangle] = []
    result: list[Place | None] = []
    for index, variants in enumerate(sizes):
        found = None
        for variant, size in enumerate(variants):
            best = _best(index, boxes, size, picture, placed, -1 if former is None else former[index])
            if best is not None:
                found = Place(variant, *best)
                placed.append(found.rectangle)
                break
        result.append(found)
    return result


def _best(
    index: int,
    boxes: np.ndarray,
    size: tuple[float, float],
    picture: tuple[float, float],
    placed: list[Rectangle],
    former: int,
) -> tuple[Rectangle, int] | None:
    """The best place for a label of this size at box `index` and its position in the list, or None."""
    places = _candidates(boxes[index], size, picture)
    if not places:
        return None
    rectangles, positions = np.asarray(list(places.values())), np.asarray(list(places))  # (P, 4), (P,)
    area = size[0] * size[1]
    on_labels = overlaps(rectangles, np.asarray(placed).reshape(-1, 4)).sum(1) / area
    covered = overlaps(rectangles, boxes)  # (P, D)
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1.0)
    hidden = covered / areas
    cost = 10 * on_labels + (covered / np.minimum(areas, area)).sum(1) + ORDER * positions
    cost += INSIDE * (covered[:, index] > 0)
    cost -= KEEP * (positions == former)
    cost[(on_labels > MOST_OVERLAP) | (hidden > MOST_HIDDEN).any(1)] = np.inf
    best = int(cost.argmin())
    return (places[int(positions[best])], int(positions[best])) if np.isfinite(cost[best]) else None


def _candidates(box: np.ndarray, size: tuple[float, float], picture: tuple[float, float]) -> dict[int, Rectangle]:
    """The places of a label at a box that are inside the picture by their position in the list, the usual one first."""
    left, top, right, bottom = (float(side) for side in box)
    width, height = size
    above, below = top - height, bottom
    corners = [
        (left, above),
        (right - width, above),
        (left, below),
        (right - width, below),
        (right, top),
        (left - width, top),
        (right, bottom - height),
        (left - width, bottom - height),
        (left, top),
        (right - width, top),
        (left, bottom - height),
        (right - width, bottom - height),
    ]
    places = {}
    for position, (x, y) in enumerate(corners):
        if position < 4:  # above and below: the label may move along the box's side
            x = min(max(x, 0.0), picture[0] - width)
        if x >= 0 and y >= 0 and x + width <= picture[0] and y + height <= picture[1]:
            places[position] = (x, y, x + width, y + height)
    return places


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The common areas of rectangles (P, 4) and (Q, 4): (P, Q), in square pixels."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    sides = np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner
    return np.clip(sides, 0, None).prod(-1)
