"""Segmentations of COCO files: the box and the area of polygons and of run-length encoded masks.

A mask is `{"size": [height, width], "counts": ...}`: the lengths of runs, down one column after the other, of pixels
that are by turns outside and inside. The counts are a list, or a text in which each number has groups of five bits from
the lowest, a sixth bit says that another group follows, the last group has the sign, and each number after the third is
the difference to the number two places before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detdistill.data.faults import number_in


@dataclass(frozen=True)
class Shape:
    """What is read of a segmentation.

    corners: xyxy in pixels, of zero size if it has no pixel.
    area: in pixels.
    size: (height, width) of the image of a mask; None for polygons.
    """

    corners: tuple[float, float, float, float]
    area: float
    size: tuple[int, int] | None


def read_shape(segmentation: object) -> Shape:
    """The box and the area of a segmentation. Raises ValueError, with what is wrong, if it can't be read."""
    if isinstance(segmentation, dict):
        return _mask(segmentation)
    if isinstance(segmentation, list) and segmentation:
        return _polygons(segmentation)
    raise ValueError("is neither a list of polygons nor a mask with size and counts")


def _polygons(segmentation: list[object]) -> Shape:
    """The box around polygons and the sum of their areas. A polygon is [x1, y1, x2, y2, ...], or a list of points."""
    polygons = [_points(item) for item in _rows(segmentation)]
    points = np.concatenate(polygons)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    area = 0.0
    for x, y in ((polygon[:, 0], polygon[:, 1]) for polygon in polygons):
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return Shape((left, top, right, bottom), area, None)


def _rows(segmentation: list[object]) -> Iterator[list[object]]:
    """The coordinates of each polygon as one list. Some tools leave out a level of lists, others add one."""
    if not isinstance(segmentation[0], list):
        yield segmentation
    elif all(isinstance(item, list) and len(item) == 2 for item in segmentation):
        yield [value for point in segmentation if isinstance(point, list) for value in point]
    else:
        for item in segmentation:
            if isinstance(item, list) and item and isinstance(item[0], list):
                yield from _rows(item)
            else:
                yield item if isinstance(item, list) else []


def _points(row: list[object]) -> np.ndarray:
    """The points (P, 2) of a polygon. Raises ValueError if they are not at least three points of finite numbers."""
    values = [number_in(value) for value in row]
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"has a polygon of {len(values)} numbers")
    if None in values:
        raise ValueError("has a polygon with something that is not a finite number")
    return np.array(values, dtype=np.float64).reshape(-1, 2)


def _mask(segmentation: dict[str, object]) -> Shape:
    """The box and the number of pixels of a run-length encoded mask."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"has the size {size!r}")
    height, width = size
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("has counts that are neither a list of numbers from 0 nor their compressed form")
    if sum(counts) > height * width:
        raise ValueError(f"has counts of {sum(counts)} pixels, but the size {height} x {width}")
    ends = np.cumsum(np.array([0, *counts], dtype=np.int64))
    starts, stops = ends[1:-1:2], ends[2::2]  # of the runs inside
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        return Shape((0.0, 0.0, 0.0, 0.0), 0.0, (height, width))
    first, last = starts // height, (stops - 1) // height  # columns of each run
    top, bottom = starts % height, (stops - 1) % height
    crosses = last > first  # a run that goes on in the next column touches bottom and top
    box = (first.min(), np.where(crosses, 0, top).min(), last.max(), np.where(crosses, height - 1, bottom).max())
    left, upper, right, lower = map(float, box)
    return Shape((left, upper, right + 1, lower + 1), float((stops - starts).sum()), (height, width))


def decode_counts(text: str) -> list[int]:
    """The run lengths in a compressed mask. Raises ValueError if the text is not one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("has counts that are no compressed mask")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("has counts that end in the middle of a number")
    return counts
