"""Rows of YOLO label files, and what the numbers after the class are: a box, a polygon, or a box with key points."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detdistill.data.faults import Faults, number, parsed
from detdistill.data.records import spread
from detdistill.errors import UserError
from detdistill.text import read_text

SAMPLE = 1000  # label files from which the kind of rows is found out
FAR = (-1.0, 2.0)  # no fraction of an image is outside of this range, not even that of a box that reaches out
SLACK = 0.1  # of the box; key points may lie outside of it by this much
ENOUGH, HALF = 0.9, 0.5  # shares of rows or key points
FRACTIONS = "YOLO writes fractions of the image"
ORIENTED = 9  # numbers of a row with the four corners of an oriented box

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One object of a label file. record: `line N`. category: the class number. box: xyxy in 0..1 of the image."""

    record: str
    category: int
    box: Box


@dataclass(frozen=True)
class Reading:
    """How the rows of a data set are read.

    pose: the count of numbers in a row of box and key points, or None if long rows are polygons.
    notes: lines for the user.
    """

    pose: int | None = None
    notes: tuple[str, ...] = ()


def choose_reading(files: Sequence[Path], keypoints: tuple[int, ...] | None) -> Reading:
    """How the rows of these label files are read.

    keypoints: kpt_shape of data.yaml: the count of key points and of numbers per key point; () if it says that there
    are none; None if it says nothing. Then the numbers decide: rows of one length have key points if their first four
    numbers are a box around all others. Raises UserError if most numbers are no fractions, or if the rows can be both.
    """
    rows = [(path, line, values) for path in spread(files, SAMPLE) for line, values in _numbers(path)]
    _check_fractions(rows)
    if keypoints:
        return Reading(5 + keypoints[0] * keypoints[1])
    long = [(path, values) for path, _, values in rows if len(values) >= 7]
    lengths = {len(values) for _, values in long}
    if keypoints is not None or len(lengths) != 1:  # polygons have any length, the key points of a data set have one
        return Reading()
    _check_tracks(long)
    (length,), path = lengths, long[0][0]
    if _share(long, _has_keypoints) < ENOUGH or (length == ORIENTED and _share(long, _is_parallelogram) >= ENOUGH):
        return Reading()
    if _share(long, _is_polygon) >= HALF and _share(long, _has_flags) < ENOUGH:
        raise UserError(
            f"{path}: rows of {length} numbers may be polygons, or boxes with key points; write into data.yaml "
            "`kpt_shape: none` for polygons, or kpt_shape with the count of key points and 2 (x y) or 3 (x y visible)"
        )
    note = (
        f"label rows of {length} numbers are read as box and key points, because the first four numbers are a box "
        "around the others; if they are polygons, write `kpt_shape: none` into data.yaml"
    )
    return Reading(length, (note,))


def read_rows(path: Path, classes: Mapping[int, int], reading: Reading, faults: Faults) -> Iterator[Row]:
    """The rows of a label file. A polygon or an oriented box gives its bounding box. classes: known class numbers."""
    try:
        lines = _lines(path)
    except (OSError, UnicodeDecodeError) as error:
        faults.reject(str(path), f"can't read the labels ({error})", "write the file again as UTF-8 text")
        return
    for position, line in lines:
        record, values = f"line {position}", [number(parsed(word)) for word in line.split()]
        numbers = [value for value in values if value is not None]
        problem = _problem(numbers, len(values), reading)
        if problem is not None:
            faults.reject(str(path), f"{record}: {line!r} {problem[0]}", problem[1])
        elif numbers[0] not in classes:
            problem = f"{record}: class {numbers[0]:g} is not in 'names'", "correct the class or add its name"
            faults.reject(str(path), *problem)
        else:
            yield Row(record, int(numbers[0]), _box(numbers, reading))


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines with their numbers, without empty ones."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    return [(position, line.strip()) for position, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _problem(numbers: Sequence[float], count: int, reading: Reading) -> tuple[str, str] | None:
    """What is wrong with a row, and the remedy, or None. count: of the words, which may be no numbers."""
    if len(numbers) < count or count < 5:
        return "is neither a box nor a polygon", "write class cx cy w h, all finite numbers"
    if count == 6:
        return "has a sixth column, a confidence: these are predictions, not labels", "remove the column"
    if count != 5 and count != reading.pose:
        if reading.pose is not None:
            return f"has {count} numbers, but a row with key points has {reading.pose}", "correct the row or kpt_shape"
        if count % 2 == 0:
            problem = f"has {count} numbers: a polygon with a confidence, or a box with key points"
            return problem, "remove the confidence, or write kpt_shape into data.yaml"
    if any(not FAR[0] <= value <= FAR[1] for value in _coordinates(numbers, reading)):
        problem = f"has numbers far outside of 0 to 1, which look like pixels ({FRACTIONS})"
        return problem, "divide x by the width and y by the height of the image"
    return None


def _coordinates(values: Sequence[float], reading: Reading) -> Sequence[float]:
    """The numbers of a row that decide about its box."""
    return values[1:5] if len(values) in (5, reading.pose) else values[1:]


def _box(values: Sequence[float], reading: Reading) -> Box:
    """The box of a row that has no problem."""
    coordinates = _coordinates(values, reading)
    return _corners(coordinates) if len(coordinates) == 4 else _hull(_points(coordinates))


def _numbers(path: Path) -> Iterator[tuple[str, list[float]]]:
    """The lines of a file that consist of numbers, as text and as numbers."""
    try:
        lines = _lines(path)
    except (OSError, UnicodeDecodeError):  # it is reported when it is read
        return
    for _, line in lines:
        values = [value for word in line.split() if (value := number(parsed(word))) is not None]
        if len(values) == len(line.split()) and len(values) >= 5:
            yield line, values


def _check_fractions(rows: Sequence[tuple[Path, str, Sequence[float]]]) -> None:
    """Raise UserError if the boxes of most rows are no fractions."""
    far = [(path, line) for path, line, values in rows if any(not FAR[0] <= value <= FAR[1] for value in values[1:5])]
    if far and len(far) > HALF * len(rows) and len(rows) > 1:
        path, line = far[0]
        raise UserError(
            f"{path}: {len(far)} of {len(rows)} rows have numbers far outside of 0 to 1, such as {line[:60]!r}, which "
            f"look like pixels ({FRACTIONS}); divide x by the width and y by the height of the image"
        )


def _check_tracks(rows: Sequence[tuple[Path, Sequence[float]]]) -> None:
    """Raise UserError if every row is a box with a confidence and the number of a track."""
    if all(
        len(values) == 7 and _is_inside(_corners(values[1:5])) and 0 <= values[5] <= 1 <= values[6] == int(values[6])
        for _, values in rows
    ):
        raise UserError(
            f"{rows[0][0]}: the rows have a confidence and a track number in columns 6 and 7: these are predictions, "
            "not labels; remove the two columns"
        )


def _share(rows: Sequence[tuple[Path, Sequence[float]]], test: Callable[[Sequence[float]], bool]) -> float:
    """The share of rows that pass a test of their numbers after the class."""
    return sum(test(values[1:]) for _, values in rows) / len(rows)


def _has_keypoints(values: Sequence[float]) -> bool:
    """True if the first four numbers are a box in the image around nearly all key points, with or without flags."""
    left, top, right, bottom = box = _corners(values[:4])
    if not (_is_inside(box) and left < right and top < bottom):
        return False
    dx, dy = SLACK * (right - left), SLACK * (bottom - top)
    rest = values[4:]
    readings = [_points(rest)] if len(rest) % 2 == 0 else []
    if _has_flags(values):
        readings.append(list(zip(rest[::3], rest[1::3], strict=True)))
    for points in readings:
        seen = [point for point in points if point != (0, 0)]  # (0, 0) is a key point that is not there
        around = [left - dx <= x <= right + dx and top - dy <= y <= bottom + dy for x, y in seen]
        if sum(around) >= ENOUGH * len(seen):
            return True
    return False


def _has_flags(values: Sequence[float]) -> bool:
    """True if every third number after the box is 0, 1 or 2, as the visibility of a key point is."""
    return len(values) % 3 == 1 and set(values[6::3]) <= {0, 1, 2}


def _is_polygon(values: Sequence[float]) -> bool:
    """True if the numbers are corners of a polygon: its sides do not cross, and its second corner is near the others.

    If the row has key points, the second corner is the width and the height of the box, which is anywhere.
    """
    if len(values) % 2:
        return False
    first, second, *others = points = _points(values)
    left, top, right, bottom = _hull([first, *others])
    reach = 3 * max(right - left, bottom - top)
    near = min(max(abs(second[0] - x), abs(second[1] - y)) for x, y in (first, *others)) <= reach
    return near and not _crosses(points)


def _is_parallelogram(values: Sequence[float]) -> bool:
    """True if four corners are those of an oriented box, up to its side ratio."""
    x1, y1, x2, y2, x3, y3, x4, y4 = values
    return abs(x1 + x3 - x2 - x4) < 1e-2 and abs(y1 + y3 - y2 - y4) < 1e-2


def _crosses(points: Sequence[Point]) -> bool:
    """True if two sides of a polygon cross."""

    def turn(a: Point, b: Point, c: Point) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    sides = list(zip(points, [*points[1:], points[0]], strict=True))
    for index, (a, b) in enumerate(sides):
        for c, d in sides[index + 1 :]:
            if turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0:
                return True
    return False


def _points(values: Sequence[float]) -> list[Point]:
    return list(zip(values[::2], values[1::2], strict=True))


def _hull(points: Sequence[Point]) -> Box:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def _corners(values: Sequence[float]) -> Box:
    """The corners of a box that is written as center and size."""
    cx, cy, w, h = values
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def _is_inside(box: Box) -> bool:
    return min(box[:2]) >= -0.01 and max(box[2:]) <= 1.01
