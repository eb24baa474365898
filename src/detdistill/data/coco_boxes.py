"""The objects of COCO files: class, box, area and crowd as written, and checks of the unit of all boxes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detdistill.data.coco_masks import Shape, read_shape
from detdistill.data.faults import ROUNDING, number_in
from detdistill.data.ids import id_key
from detdistill.errors import UserError

CROWDS = ((None, False), (0, False), (1, True), ("0", False), ("1", True))  # iscrowd and its meaning
FEWEST = 2  # boxes by which corners are recognized; a single box may reach out by mistake
WRONG = 0.02  # at most this share of boxes may contradict that all boxes are corners


@dataclass(frozen=True)
class Written:
    """One object as written in a COCO file.

    class_index: its class.
    corners: xyxy in pixels.
    field: where the box comes from, `bbox` or `segmentation`.
    is_crowd: a group of objects.
    area: as written or of the segmentation; None if there is neither.
    mask_size: (height, width) of the mask if the box comes from one.
    """

    class_index: int
    corners: tuple[float, float, float, float]
    field: str
    is_crowd: bool
    area: float | None
    mask_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Unreadable:
    """What is wrong with an annotation, and what to do."""

    problem: str
    remedy: str


def read_object(annotation: Mapping[str, Any], class_indices: Mapping[int | str, int]) -> Written | Unreadable:
    """The object of an annotation.

    A box that is missing or null is that of the segmentation. An area that is missing, 0 or no number is that of the
    segmentation, or else None.
    """
    category, crowd = annotation.get("category_id"), annotation.get("iscrowd")
    key = id_key(category)
    if key is None or key not in class_indices:
        return Unreadable(f"category_id {category!r} is not in 'categories'", "correct it or add the category")
    is_crowd = next((meaning for value, meaning in CROWDS if crowd == value), None)
    if is_crowd is None:
        return Unreadable(f"iscrowd is {crowd!r}", "write 0 or 1")
    box, segmentation, area = annotation.get("bbox"), annotation.get("segmentation"), number_in(annotation.get("area"))
    has_area = area is not None and area > 0
    shape: Shape | None = None
    if segmentation and (not box or not has_area):
        try:
            shape = read_shape(segmentation)
        except ValueError as error:
            if not box:
                return Unreadable(f"bbox is {box!r} and segmentation {error}", "write one of them")
    if not has_area:
        area = shape.area if shape is not None and shape.area > 0 else None
    index = class_indices[key]
    if not box and shape is not None:
        return Written(index, shape.corners, "segmentation", is_crowd, area, shape.size)
    numbers = [number_in(value) for value in box] if isinstance(box, list) else []
    if len(numbers) != 4 or any(value is None for value in numbers):
        remedy = "write [x, y, width, height] with four finite numbers"
        return Unreadable(f"bbox is {box!r}" + ("" if box else " and there is no segmentation"), remedy)
    left, top, width, height = (value for value in numbers if value is not None)
    return Written(index, (left, top, left + width, top + height), "bbox", is_crowd, area)


def check_unit(path: Path, boxes: Sequence[tuple[tuple[float, float, float, float], tuple[int, int]]]) -> None:
    """Raise UserError if the boxes of a file look like corners, or like fractions of the image.

    boxes: (xyxy as read, (height, width)) of each object with a `bbox`, whose image is known. They look like corners
    if most of them reach out of their image as x, y, width, height, and all fit as x1, y1, x2, y2; like fractions if no
    number is above 1, and not all are whole.
    """
    if not boxes:
        return
    out = fit = 0
    largest, has_parts = 0.0, False
    for (left, top, right, bottom), (height, width) in boxes:
        x2, y2 = right - left, bottom - top  # as written
        out += right > width + ROUNDING or bottom > height + ROUNDING
        fit += -ROUNDING <= left <= x2 <= width + ROUNDING and -ROUNDING <= top <= y2 <= height + ROUNDING
        largest = max(largest, abs(left), abs(top), abs(x2), abs(y2))
        has_parts = has_parts or any(not math.isclose(value, round(value)) for value in (left, top, x2, y2))
    if len(boxes) >= FEWEST and out > len(boxes) / 2 and fit >= len(boxes) * (1 - WRONG):
        raise UserError(
            f"{path}: annotations: {out} of {len(boxes)} boxes reach out of their image as [x, y, width, height], and "
            "fit as [x1, y1, x2, y2]: bbox looks like corners; write [x1, y1, x2 - x1, y2 - y1], and export again if a "
            "tool wrote the file"
        )
    if largest <= 1 and has_parts:
        raise UserError(
            f"{path}: annotations: no number of bbox is above 1: the boxes look like fractions of the image; "
            "write [x, y, width, height] in pixels"
        )
