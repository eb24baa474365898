"""Faults of a data set: they are repaired, skipped, or they stop the run.

Every record that is repaired or skipped is counted and named.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from detdistill.errors import UserError, some

Repair = Literal["zero", "outside", "unrotated", "rotated", "repeated"]

REPAIRS: dict[Repair, str] = {
    "zero": "of zero size removed",
    "outside": "clipped to the image",
    "repeated": "removed that repeats another one of the same class",
    "unrotated": "kept without its EXIF rotation, because the annotations belong to the stored pixels",
    "rotated": "rotated upright, because the boxes don't fit the stored pixels, whose size the annotations give",
}
ROUNDING = 0.5  # pixels; a box that is outside by no more than this was rounded, and that is no fault

logger = logging.getLogger("detdistill.data")


@dataclass(frozen=True)
class Place:
    """The place of an object in a data set, for messages.

    file: the annotation file.
    record: the object in the file, such as `annotations[3] (1.png)` or `line 2`.
    image: the name of the image.
    """

    file: str
    record: str
    image: str


@dataclass
class Faults:
    """The faults of one data set.

    on_bad_record: `stop` raises UserError at the first record that can't be read. `skip` leaves such records out.
    decode: with `skip`, every image is decoded, so that a damaged one is found.
    repaired: the names of the repaired images, by the kind of repair.
    skipped: (file, problem) of each record that was left out.
    doubtful: (image, frame) of each rotated image whose boxes fit the upright picture and the stored pixels.
    """

    on_bad_record: Literal["stop", "skip"] = "stop"
    decode: bool = True
    repaired: dict[Repair, list[str]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    doubtful: list[tuple[str, str]] = field(default_factory=list)

    @property
    def skips(self) -> bool:
        """True if records that can't be read are skipped."""
        return self.on_bad_record == "skip"

    @property
    def decodes(self) -> bool:
        """True if every image is decoded while the data set is opened."""
        return self.skips and self.decode

    def reject(self, file: str, problem: str, remedy: str) -> None:
        """Handle a record that can't be read. With `stop`, raises UserError. With `skip`, the caller leaves it out.

        problem: the record, the field and what is wrong. The message is: file, problem, remedy.
        """
        if not self.skips:
            raise UserError(f"{file}: {problem}; {remedy}, or leave such records out with --on-bad-record skip")
        logger.info("%s: skipped: %s", file, problem)
        self.skipped.append((file, problem))

    def repair(self, image: str, kind: Repair, what: str) -> None:
        """Count and log a record that was repaired."""
        logger.info("%s: %s %s", image, what, REPAIRS[kind])
        self.repaired.setdefault(kind, []).append(image)

    def doubt(self, image: str, frame: str) -> None:
        """Count and log a rotated image whose annotations may belong to the upright picture or to the stored pixels.

        frame: the one that is taken.
        """
        logger.info("%s: the boxes fit the upright picture and the stored pixels; taken: %s", image, frame)
        self.doubtful.append((image, frame))

    def clip_box(
        self, corners: Sequence[object], size: tuple[int, int], place: Place, name: str, inclusive: bool = False
    ) -> list[float] | None:
        """The part of a box that is inside its image, or None if there is no box to keep.

        corners: xyxy in pixels, as in the file. size: (height, width) of the image.
        name: of the box field, for messages.
        inclusive: the corners are Pascal VOC's pixel indices. They begin at 1 and are both inside the box, so 1 is
        subtracted from the first corner.
        """
        numbers = [number(value) for value in corners]
        field_name = f"{place.record}: {name}"
        if len(numbers) != 4 or any(value is None for value in numbers):
            self.reject(place.file, f"{field_name} is {list(corners)}", "write four finite numbers")
            return None
        left, top, right, bottom = (value for value in numbers if value is not None)
        written = f"({left:g}, {top:g}, {right:g}, {bottom:g})"
        if right < left or bottom < top:
            problem = f"{field_name} ends before it begins {written}"
            self.reject(place.file, problem, "correct its corners or its width and height")
            return None
        if right == left or bottom == top:
            self.repair(place.image, "zero", field_name)
            return None
        if inclusive:
            left, top = left - 1, top - 1
        height, width = size
        inside = [max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))]
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            box = f"({left:g}, {top:g}, {right:g}, {bottom:g})"
            problem = f"{field_name} {box} is completely outside the {width}x{height} image"
            self.reject(place.file, problem, "correct the box or its unit")
            return None
        if max(-left, -top, right - width, bottom - height) > ROUNDING:
            self.repair(place.image, "outside", field_name)
        return inside

    def log_notes(self) -> None:
        """Write the notes to the log as warnings, for a caller that can't print them."""
        for note in self.notes():
            logger.warning("%s", note)

    def repairs(self) -> list[tuple[str, list[str]]]:
        """For each kind of repair, how many records it changed, in words, and the names of their images."""
        return [
            (f"{len(images)} {_noun(kind, len(images))} {REPAIRS[kind]}", images)
            for kind, images in sorted(self.repaired.items())
        ]

    def notes(self) -> list[str]:
        """One line each about the repaired, the doubtful and the skipped records, if there are any."""
        lines = []
        if self.repaired:
            lines.append("repaired: " + "; ".join(f"{text} ({names_of(images)})" for text, images in self.repairs()))
        if self.doubtful:
            count = len(self.doubtful)
            frames = " or ".join(sorted({frame for _, frame in self.doubtful}))
            lines.append(
                f"check {count} image{'s' * (count > 1)} with an EXIF rotation "
                f"({names_of([image for image, _ in self.doubtful])}): the boxes fit both the upright picture and the "
                f"stored pixels, and are taken for {frames}; if this is wrong, save the images upright with that size"
            )
        if self.skipped:
            count = len(self.skipped)
            names = names_of([file for file, _ in self.skipped])
            file, problem = self.skipped[0]
            lines.append(f"skipped: {count} record{'s' * (count > 1)} ({names}); the first: {file}: {problem}")
        return lines


def number(value: object) -> float | None:
    """The value as a finite number, or None. Text and booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def parsed(text: str | None) -> float | str | None:
    """The number that a text contains, or the text itself if it is not a number."""
    try:
        return float(text or "")
    except ValueError:
        return text


def number_in(value: object) -> float | None:
    """The value as a finite number, or None. A text may contain a number."""
    return number(parsed(value) if isinstance(value, str) else value)


def size_of(height: float | None, width: float | None) -> tuple[int, int] | None:
    """(height, width) as an annotation file declares it, or None if a side is missing, 0 or -1, as some tools write."""
    return (int(height), int(width)) if height and width and height > 0 and width > 0 else None


def _noun(kind: Repair, count: int) -> str:
    if kind in ("unrotated", "rotated"):
        return "image" if count == 1 else "images"
    return "box" if count == 1 else "boxes"


def names_of(files: Sequence[str]) -> str:
    """The first different file names with their counts, and the number of the others.

    Of a path, the name is what stands behind its last slash or backslash.
    """
    counts = Counter(file.replace("\\", "/").rsplit("/", 1)[-1] for file in files)
    return some(name if times == 1 else f"{name} x{times}" for name, times in counts.items())
