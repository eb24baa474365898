"""The picture of a method's data flow: two lanes of detector parts, what the method reads of them, and its terms."""

import textwrap
from collections.abc import Iterator
from html import escape

from detdistill.detectors.registry import DETECTORS
from detdistill.methods import METHODS

from .flow import Flow

WIDTH, HEIGHT = 960, 372
BOX, TALL, GAP = 104, 40, 22  # of the parts of a lane
STUDENT, TEACHER, LABELS, PLAIN = "#00796b", "#b45309", "#4338ca", "#64748b"
LANES = {"student": 36, "teacher": 296}  # y of the boxes
BAR = (170, 52)  # y and height of the comparison
BETWEEN = {"student": 103, "teacher": 239}  # y of the boxes that continue from one side
CENTER, RIGHT = 118, 724  # x of the comparison's two ends

PARTS = {
    "dense": {"neck": "neck", "towers": "towers", "stages": "predictions"},
    "two-stage": {"neck": "neck", "proposals": "proposals", "stages": "RoI head"},
    "queries": {"neck": "neck", "memory": "encoder", "queries": "queries", "stages": "decoder"},
}
CONTINUED = {
    "resume": ("teacher's last layers", "on the student's towers"),
    "classify": ("teacher's RoI head", "on the student's proposals"),
    "crossed": ("teacher's RoI head on the", "student's neck and proposals"),
    "given": ("decoder of the {side}", "on the given queries"),
    "redecode": ("decoder of the student", "on the teacher's queries"),
}
SOURCES = {
    "resume": "towers",
    "classify": "proposals",
    "crossed": "proposals",
    "given": "queries",
    "redecode": "queries",
}


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
        skipped = _skipped(list(places), flow) if side == "teacher" else set()
        yield f'<text x="16" y="{y - 9}" class="left" fill="{color}" font-weight="600">{side}</text>'
        for number, (part, (x, label)) in enumerate(places.items()):
            fill, line = (color, color) if part in read else ("#ffffff", PLAIN)
            dashed = part in skipped
            yield _box(x, y, BOX, TALL, (label,), fill, line, dashed=dashed)
            if number:
                yield _arrow(x - GAP, y + TALL // 2, x - 2, y + TALL // 2, dashed=dashed)
            if part in read - _indirect(side, flow):
                yield _read(side, x + BOX // 2)
    end = 16 + len(places) * (BOX + GAP)
    y = LANES["student"]
    yield _arrow(end - GAP, y + TALL // 2, end - 2, y + TALL // 2)
    yield f'<text x="{end + 4}" y="{y + 25}" class="left" fill="{PLAIN}">task losses</text>'


def _skipped(parts: list[str], flow: Flow) -> set[str]:
    """The parts that the teacher does not compute."""
    need = flow.need
    if need.predictions or need.queries or need.proposals:
        return set()
    if need.classify:  # of boxes that are given to it
        return {"proposals"}
    last = max([parts.index(part) for part in flow.teacher if part in parts], default=2)
    return set(parts[last + 1 :])


def _indirect(side: str, flow: Flow) -> set[str]:
    """The parts that are read only through a box that continues from them, or through its function."""
    names = _continuations(flow)
    if side == "student":
        return {SOURCES[name] for name in names if name in ("resume",)}
    return ({"towers"} if "resume" in names else set()) | ({"queries"} if "given" in names else set())


def _read(side: str, x: int) -> str:
    """The arrow from a part to the comparison."""
    if side == "student":
        return _arrow(x, LANES[side] + TALL, x, BAR[0] - 2)
    return _arrow(x, LANES[side], x, BAR[0] + BAR[1] + 2)


def _comparison(name: str, flow: Flow) -> Iterator[str]:
    y, height = BAR
    lines = textwrap.wrap(METHODS[name].copies, 76)
    place = f'x="{CENTER}" y="{y}" width="{RIGHT - CENTER}" height="{height}"'
    yield f'<rect {place} rx="6" fill="#e2e8f0" stroke="{PLAIN}"/>'
    first = y + height // 2 + 5 - 9 * (len(lines) - 1)
    for number, line in enumerate(lines):
        text = escape(line)
        yield f'<text x="{(CENTER + RIGHT) // 2}" y="{first + 18 * number}" fill="#0f172a">{text}</text>'
    if flow.labels:
        yield _box(16, y + 6, 76, TALL, ("labels",), "#ffffff", LABELS)
        yield _arrow(92, y + height // 2, CENTER - 2, y + height // 2)
    if flow.learns:
        yield _box(CENTER + 4, y - 26, 84, 22, ("learned part",), "#ffffff", STUDENT, small=True)


def _continuations(flow: Flow) -> dict[str, list[str]]:
    """The kinds of boxes that continue from another side, each with the sides whose layers they are."""
    found: dict[str, list[str]] = {}
    for side, call, crossed in sorted(flow.calls):
        name = "crossed" if crossed and call == "classify" else call
        found.setdefault(name, []).append(side)
    if "crossed" in found:
        found.pop("classify", None)
    if len(found.get("redecode", ())) > 1:
        found["given"] = found.pop("redecode")
    return found


def _continued(flow: Flow) -> Iterator[str]:
    """The boxes of layers that continue from the features, proposals or queries of the other side."""
    places = _places(flow)
    for name, sides in _continuations(flow).items():
        for side in sides:
            color = TEACHER if side == "teacher" else STUDENT
            row = "teacher" if name == "redecode" or (name == "given" and side == "teacher") else "student"
            middle, y = places[SOURCES[name]][0] + BOX // 2, BETWEEN[row]
            left, right = middle - 104, min(middle + 104, RIGHT)
            if name == "crossed":
                left = places["neck"][0] + BOX // 2 - 24
            text = tuple(line.format(side=side) for line in CONTINUED[name])
            yield _box(left, y, right - left, TALL, text, "#ffffff", color, small=True, shown=color)
            if row == "student":
                yield _arrow(middle, LANES["student"] + TALL, middle, y - 2)
                yield _arrow(middle, y + TALL, middle, BAR[0] - 2)
            else:
                yield _arrow(middle, LANES["teacher"], middle, y + TALL + 2)
                yield _arrow(middle, y, middle, BAR[0] + BAR[1] + 2)


def _terms(name: str, flow: Flow) -> Iterator[str]:
    count, step = len(flow.terms), 30
    middle = BAR[0] + BAR[1] // 2
    top = middle - (count * step - 6) // 2
    yield _arrow(RIGHT, middle, RIGHT + 30, middle)
    for number, term in enumerate(flow.terms):
        yield _box(RIGHT + 34, top + number * step, 196, 24, (f"{name}_{term}",), "#ffffff", "#0f172a", small=True)


def _box(
    x: int,
    y: int,
    width: int,
    height: int,
    lines: tuple[str, ...],
    fill: str,
    line: str,
    *,
    dashed: bool = False,
    small: bool = False,
    shown: str = "#0f172a",
) -> str:
    """A rectangle with lines of text. dashed: a part that is not computed, in gray. shown: color of the text."""
    stroke = ' stroke-dasharray="4 3"' if dashed else ""
    color = "#94a3b8" if dashed else "#ffffff" if fill != "#ffffff" else shown
    size = ' class="small"' if small else ""
    first = y + height // 2 + (4 if small else 5) - 8 * (len(lines) - 1)
    texts = "".join(
        f'<text x="{x + width // 2}" y="{first + 16 * number}" fill="{color}"{size}>{escape(text)}</text>'
        for number, text in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" stroke="{line}"{stroke}/>{texts}'
    )


def _arrow(x1: int, y1: int, x2: int, y2: int, dashed: bool = False) -> str:
    stroke = ' stroke-dasharray="4 3"' if dashed else ""
    color = "#94a3b8" if dashed else "#475569"
    return f'<path d="M{x1} {y1} {x2} {y2}" stroke="{color}" fill="none" marker-end="url(#a)"{stroke}/>'
