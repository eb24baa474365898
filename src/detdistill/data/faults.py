"""What is wrong with a data set: mended, left out, or the end of the run. Nothing is dropped without being counted and named."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from detdistill.errors import UserError

Mend = Literal["zero", "outside", "unrotated"]

MENDS: dict[Mend, str] = {
    "zero": "of zero size dropped",
    "outside": "reaching out of the image clipped to it",
    "unrotated": "with an EXIF rotation left as stored, as the annotations were made on it",
}
NAMED = 5  # file names in a note before "and N more"
ROUNDING = 0.5  # pixels outside the image that are the writer's rounding, no fault

logger = logging.getLogger("detdistill.data")


@dataclass
class Faults:
    """The faults of one data set. `stop` raises at the first record that can't be read, `skip` leaves such records out."""

    on_bad_record: Literal["stop", "skip"] = "stop"
    mended: dict[Mend, list[str]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def skips(self) -> bool:
        return self.on_bad_record == "skip"

    def bad(self, file: str, problem: str, remedy: str) -> None:
        """A record that can't be read. Raises UserError with `stop`; the caller leaves the record out otherwise."""
        if not self.skips:
            raise UserError(f"{file}: {problem}; {remedy}, or leave such records out with --on-bad-record skip")
        logger.info("%s: skipped, %s", file, problem)
        self.skipped.append((file, problem))

    def mend(self, file: str, kind: Mend, detail: str) -> None:
        """A record that was put right."""
        logger.info("%s: mended, %s %s", file, detail, MENDS[kind])
        self.mended.setdefault(kind, []).append(file)

    def fit(
        self, corners: Sequence[object], size: tuple[int, int], file: str, where: str, inclusive: bool = False
    ) -> list[float] | None:
        """A box as written, xyxy in pixels, to the box inside an image of `size` (height, width); None where there is none to keep.

        inclusive: Pascal VOC's pixel indices, counted from 1 and both inside the box; 1 is taken off the first corner.
        """
        numbers = [number(value) for value in corners]
        if len(numbers) != 4 or any(value is None for value in numbers):
            self.bad(file, f"{where} is {list(corners)}", "a box is four finite numbers")
            return None
        left, top, right, bottom = (value for value in numbers if value is not None)
        if right < left or bottom < top:
            self.bad(
                file,
                f"{where} ends before it begins ({left:g}, {top:g}, {right:g}, {bottom:g})",
                "correct its corners or its width and height",
            )
            return None
        if right == left or bottom == top:
            self.mend(file, "zero", where)
            return None
        if inclusive:
            left, top = left - 1, top - 1
        height, width = size
        inside = [max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))]
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            spot = f"({left:g}, {top:g}, {right:g}, {bottom:g})"
            self.bad(
                file, f"{where} {spot} lies wholly outside the {width}x{height} image", "correct the box or its unit"
            )
            return None
        if max(-left, -top, right - width, bottom - height) > ROUNDING:
            self.mend(file, "outside", where)
        return inside

    def warn(self) -> None:
        """The notes as warnings in the log, for a caller that has no other place for them."""
        for note in self.notes():
            logger.warning("%s", note)

    def notes(self) -> list[str]:
        """One line for what was mended and one for what was left out, where there is any."""
        lines = []
        if self.mended:
            parts = [
                f"{len(files)} {_noun(kind, len(files))} {MENDS[kind]} ({_names(files)})"
                for kind, files in sorted(self.mended.items())
            ]
            lines.append("mended: " + "; ".join(parts))
        if self.skipped:
            first = self.skipped[0]
            count = len(self.skipped)
            names = _names([file for file, _ in self.skipped])
            lines.append(f"skipped: {count} record{'s' * (count > 1)} ({names}); the first: {first[0]}: {first[1]}")
        return lines


def number(value: object) -> float | None:
    """A finite number, or None. Text and booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def parsed(text: str | None) -> float | str | None:
    """The number that a text spells, or the text itself where it spells none."""
    try:
        return float(text or "")
    except ValueError:
        return text


def _noun(kind: Mend, count: int) -> str:
    if kind == "unrotated":
        return "image" if count == 1 else "images"
    return "box" if count == 1 else "boxes"


def _names(files: Sequence[str]) -> str:
    counts = Counter(file.replace("\\", "/").rsplit("/", 1)[-1] for file in files)
    shown = [name if times == 1 else f"{name} x{times}" for name, times in list(counts.items())[:NAMED]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
