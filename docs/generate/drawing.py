"""The picture of a method's data flow: two lanes of detector parts, what the method reads of them, and its terms."""

import textwrap
from collections.abc import Iterator
from html import escape

from detdistill.detectors.registry import DETECTORS
from detdistill.methods import METHODS
from detdistill.types import Need

from .flow import Flow

WIDTH, HEIGHT = 960, 372
BOX, TALL, GAP = 104, 40, 22  # of the parts of a lane
STUDENT, TEACHER, LABELS, PLAIN = "#00796b", "#b45309", "#4338ca", "#64748b"
LANES = {"student": 36, "teacher": 296}  # y of the boxes
BAR = (170, 52)  # y and height of the comparison
BETWEEN = {"student": 100, "teacher": 240}  # y of the boxes that continue from one side
CENTER, RIGHT = 118, 700  # x of the comparison's two ends

PARTS = {
    "dense": {"neck": "neck", "towers": "towers", "stages": "predictions"},
    "two-stage": {"neck": "neck", "proposals": "proposals", "stages": "RoI head"},
    "queries": {"neck": "neck", "memory": "encoder", "queries": "queries", "stages": "decoder"},
}
CONTINUED = {
    "resume": "teacher's last layers on the student's towers",
    "classify": "teacher's RoI head on the student's proposals",
    "crossed": "teacher's RoI head on the student's neck, proposals",
}
SOURCES = {"resume": "towers", "classify": "proposals", "redecode": "queries"}


def drawing(name: str, flow: Flow) -> str:
    """The picture as SVG text."""
    body = [*_lanes(flow), *_comparison(name, flow), *_continued(flow), *_terms(name, flow)]
    title = f"Data flow of {name}"
    style = "text{font:14px system-ui,sans-serif;text-anchor:middle}.left{text-anchor:start}.small{font-size:12px}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
            f"<title>{title}</title><style>{style}</style>",
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="#475569"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


def _places(flow: Flow) -> dict[str, tuple[int, str]]:
    """The x and the label of each part of a lane, from left to right."""
    group = DETECTORS[flow.head].group
    labels = {"images": "images", "backbone": "backbone", **PARTS[group]}
    return {part: (16 + number * (BOX + GAP), label) for number, (part, label) in enumerate(labels.items())}


def _lanes(flow: Flow) -> Iterator[str]:
    places = _places(flow)
    for side, color in (("student", STUDENT), ("teacher", TEACHER)):
        y, read = LANES[side], getattr(flow, side)
        last = len(places) - 1 if side == "student" else _last(list(places), flow.need, read)
        yield f'<text x="16" y="{y - 9}" class="left" fill="{color}" font-weight="600">{side}</text>'
        for number, (part, (x, label)) in enumerate(places.items()):
            fill = color if part in read else "#ffffff"
            dashed = number > last
            yield _box(x, y, BOX, TALL, label, fill, color if part in read else PLAIN, dashed=dashed)
            if number:
                yield _arrow(x - GAP, y + TALL // 2, x - 2, y + TALL // 2, dashed=dashed)
            crossing = (side == "student" and part == "towers") or (side == "teacher" and part == "towers")
            if part in read and not (crossing or (part == "proposals" and side == "teacher")):
                yield _read(side, x + BOX // 2)
    end = 16 + len(places) * (BOX + GAP)
    y = LANES["student"]
    yield _arrow(end - GAP, y + TALL // 2, end - 2, y + TALL // 2)
    yield f'<text x="{end + 4}" y="{y + 25}" class="left" fill="{PLAIN}">task losses</text>'


def _last(parts: list[str], need: Need, read: set[str]) -> int:
    """The position of the last part that the teacher computes."""
    if need.predictions or need.queries or need.classify or need.proposals:
        return len(parts) - 1
    return max([parts.index(part) for part in read if part in parts], default=2)


def _read(side: str, x: int) -> str:
    """The arrow from a part to the comparison."""
    if side == "student":
        return _arrow(x, LANES[side] + TALL, x, BAR[0] - 2)
    return _arrow(x, LANES[side], x, BAR[0] + BAR[1] + 2)


def _comparison(name: str, flow: Flow) -> Iterator[str]:
    y, height = BAR
    lines = textwrap.wrap(METHODS[name].copies, 76)
    yield f'<rect x="{CENTER}" y="{y}" width="{RIGHT - CENTER}" height="{height}" rx="6" fill="#e2e8f0" stroke="{PLAIN}"/>'
    first = y + height // 2 + 5 - 9 * (len(lines) - 1)
    for number, line in enumerate(lines):
        text = escape(line)
        yield f'<text x="{(CENTER + RIGHT) // 2}" y="{first + 18 * number}" fill="#0f172a">{text}</text>'
    if flow.labels:
        yield _box(16, y + 6, 76, TALL, "labels", "#ffffff", LABELS)
        yield _arrow(92, y + height // 2, CENTER - 2, y + height // 2)
    if flow.learns:
        yield _box(CENTER + 4, y - 26, 84, 22, "learned part", "#ffffff", STUDENT, small=True)


def _continued(flow: Flow) -> Iterator[str]:
    """The boxes of the parts that continue from the features, proposals or queries of the other side."""
    places = _places(flow)
    for side, call in sorted({(side, call) for side, call, _ in flow.calls}):
        crossed = any(flag for _, name, flag in flow.calls if name == call)
        color = TEACHER if side == "teacher" else STUDENT
        if call == "redecode":
            source, other = ("student", "given queries") if side == "teacher" else ("teacher", "teacher's queries")
            text = f"{side}'s decoder on the {other}"
            if side == "student" and ("teacher", "redecode", False) in flow.calls:
                text = "student's decoder on the given queries"
            source = "teacher" if side == "teacher" else "student"
            middle = places["stages"][0] + BOX // 2
        else:
            text, source = CONTINUED["crossed" if crossed and call == "classify" else call], "student"
            middle = places[SOURCES[call]][0] + BOX // 2
        width = 310
        x = min(max(middle - width // 2, CENTER), RIGHT - width)
        y = BETWEEN[source]
        yield _box(x, y, width, 34, text, "#ffffff", color, small=True, shown=color)
        if source == "student":
            yield _arrow(middle, LANES["student"] + TALL, middle, y - 2)
            yield _arrow(middle, y + 34, middle, BAR[0] - 2)
        else:
            yield _arrow(middle, LANES["teacher"], middle, y + 36)
            yield _arrow(middle, y, middle, BAR[0] + BAR[1] + 2)


def _terms(name: str, flow: Flow) -> Iterator[str]:
    count, step = len(flow.terms), 30
    middle = BAR[0] + BAR[1] // 2
    top = middle - (count * step - 6) // 2
    yield _arrow(RIGHT, middle, RIGHT + 30, middle)
    for number, term in enumerate(flow.terms):
        yield _box(RIGHT + 34, top + number * step, 218, 24, f"{name}_{term}", "#ffffff", "#0f172a", small=True)


def _box(
    x: int,
    y: int,
    width: int,
    height: int,
    text: str,
    fill: str,
    line: str,
    *,
    dashed: bool = False,
    small: bool = False,
    shown: str = "#0f172a",
) -> str:
    """A rectangle with a text. dashed: a part that is not computed, in gray."""
    stroke = ' stroke-dasharray="4 3"' if dashed else ""
    color = "#94a3b8" if dashed else "#ffffff" if fill != "#ffffff" else shown
    size = ' class="small"' if small else ""
    middle = y + height // 2 + (4 if small else 5)
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" stroke="{line}"{stroke}/>'
        f'<text x="{x + width // 2}" y="{middle}" fill="{color}"{size}>{escape(text)}</text>'
    )


def _arrow(x1: int, y1: int, x2: int, y2: int, dashed: bool = False) -> str:
    stroke = ' stroke-dasharray="4 3"' if dashed else ""
    color = "#94a3b8" if dashed else "#475569"
    return f'<path d="M{x1} {y1} {x2} {y2}" stroke="{color}" fill="none" marker-end="url(#a)"{stroke}/>'
