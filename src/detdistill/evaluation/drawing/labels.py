"""Places for the labels of boxes, so that they hide neither objects nor each other."""

from collections.abc import Sequence

import numpy as np

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture

MOST_OVERLAP = 0.05  # share of a label that may lie on other labels
MOST_HIDDEN = 0.5  # share of an object that a label may hide
INSIDE = 0.35  # cost of a place inside the box, even if the box is large
ORDER = 0.02  # cost of each step down the list of places


def place_labels(
    boxes: np.ndarray, sizes: Sequence[Sequence[tuple[float, float]]], picture: tuple[float, float]
) -> list[tuple[int, Rectangle] | None]:
    """For each box the variant of its label that fits and its place, or None if every place would hide too much.

    boxes: (D, 4) xyxy, the box with the most important label first; it gets its place first.
    sizes: (width, height) of the variants of each label, the wanted one first.
    picture: (width, height).
    Places are above and below the box, then beside it, then inside it at the edge. The place with the least cost wins:
    the shares of other boxes and of itself that lie under it, and a little for places further down the list. A label
    never leaves the picture, and at most 5 % of it lie on other labels and at most half of an object under it.
    """
    placed: list[Rectangle] = []
    result: list[tuple[int, Rectangle] | None] = []
    for index, variants in enumerate(sizes):
        found = None
        for variant, size in enumerate(variants):
            rectangle = _best(index, boxes, size, picture, placed)
            if rectangle is not None:
                found = (variant, rectangle)
                placed.append(rectangle)
                break
        result.append(found)
    return result


def _best(
    index: int, boxes: np.ndarray, size: tuple[float, float], picture: tuple[float, float], placed: list[Rectangle]
) -> Rectangle | None:
    """The best place for a label of this size at box `index`, or None."""
    places = _candidates(boxes[index], size, picture)
    if not len(places):
        return None
    rectangles = np.asarray(places)  # (P, 4)
    area = size[0] * size[1]
    on_labels = overlaps(rectangles, np.asarray(placed).reshape(-1, 4)).sum(1) / area
    covered = overlaps(rectangles, boxes)  # (P, D)
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1.0)
    hidden = covered / areas
    cost = 10 * on_labels + (covered / np.minimum(areas, area)).sum(1) + ORDER * np.arange(len(places))
    cost += INSIDE * (covered[:, index] > 0)
    cost[(on_labels > MOST_OVERLAP) | (hidden > MOST_HIDDEN).any(1)] = np.inf
    best = int(cost.argmin())
    return places[best] if np.isfinite(cost[best]) else None


def _candidates(box: np.ndarray, size: tuple[float, float], picture: tuple[float, float]) -> list[Rectangle]:
    """The places of a label at a box that are inside the picture, the usual one first."""
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
    places = []
    for position, (x, y) in enumerate(corners):
        if position < 4:  # above and below: the label may move along the box's side
            x = min(max(x, 0.0), picture[0] - width)
        if x >= 0 and y >= 0 and x + width <= picture[0] and y + height <= picture[1]:
            places.append((x, y, x + width, y + height))
    return places


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The common areas of rectangles (P, 4) and (Q, 4): (P, Q), in square pixels."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    sides = np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner
    return np.clip(sides, 0, None).prod(-1)
