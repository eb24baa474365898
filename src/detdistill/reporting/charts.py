"""Charts as inline SVG. They take all colors from the style sheet of the page, so they follow its theme.

Every text is escaped. A line is told apart by its dashes, too, because not everybody sees the colors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 42
COLORS = 8  # of the style sheet: classes c0 to c7
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "3 1", "2 2 6 2", "12 3")


@dataclass(frozen=True)
class Line:
    """A line of a chart. color: its place in the palette, so that a model has one color on the whole page."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0


def line_chart(title: str, x_label: str, lines: Sequence[Line], y_range: tuple[float, float] | None = None) -> Markup:
    """A chart of lines with axes from the data, or with `y_range`. Points that are not finite are left out."""
    points = [
        [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)] for line in lines
    ]
    every = [point for line in points for point in line]
    first, last = min((x for x, _ in every), default=0.0), max((x for x, _ in every), default=1.0)
    last = last if last > first else first + 1
    low, high = y_range or (min((y for _, y in every), default=0.0), max((y for _, y in every), default=1.0))
    y_ticks = ticks(0 if 0 < low < high / 2 else low, high)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first)
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_axes({tick: place(tick, 0)[0] for tick in ticks(first, last) if first <= tick <= last}, y_ticks, x_label)]
    for line, own in zip(lines, points, strict=True):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in own))
        color = line.color % COLORS
        if len(own) == 1:
            x, y = place(*own[0])
            parts.append(Markup('<circle class="c{} dot" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(color, x, y))
        else:
            dash = DASHES[color]
            parts.append(
                Markup('<polyline class="c{} line" stroke-dasharray="{}" points="{}"/>').format(color, dash, path)
            )
    return _svg(WIDTH, HEIGHT, description(title, lines), "chart", parts)


def description(title: str, lines: Sequence[Line]) -> str:
    """The chart in words: the last value of each line."""
    ends = [f"{line.name} ends at {line.y[-1]:.3g}" for line in lines if len(line.y)]
    return f"{title}: {', '.join(ends)}" if ends else title


def swatch(color: int) -> Markup:
    """The line of a legend."""
    color %= COLORS
    return Markup(
        '<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true" focusable="false">'
        '<line class="c{} line" stroke-dasharray="{}" x1="0" y1="4" x2="28" y2="4"/></svg>'
    ).format(color, DASHES[color])


def whisker(value: float, interval: tuple[float, float] | None, low: float, high: float, color: int = 0) -> Markup:
    """A point with its interval on a scale from `low` to `high`, and a line at 0 if 0 is inside."""
    parts = [Markup('<line class="axis" x1="0" y1="17" x2="160" y2="17"/>')]

    def across(x: float) -> float:
        return 4 + 152 * (min(max(x, low), high) - low) / ((high - low) or 1)

    if low < 0 < high:
        parts.append(Markup('<line class="zero" x1="{0:.1f}" y1="1" x2="{0:.1f}" y2="17"/>').format(across(0)))
    if interval is not None:
        left, right = (across(end) for end in interval)
        parts.append(
            Markup('<line class="c{} line" x1="{:.1f}" y1="9" x2="{:.1f}" y2="9"/>').format(color, left, right)
        )
        for end in (left, right):
            parts.append(
                Markup('<line class="c{0} line" x1="{1:.1f}" y1="5" x2="{1:.1f}" y2="13"/>').format(color, end)
            )
    parts.append(Markup('<circle class="c{} dot" cx="{:.1f}" cy="9" r="4"/>').format(color, across(value)))
    return _svg(160, 18, "", "mark wide", parts)


def bar(value: float, largest: float, color: int = 0) -> Markup:
    """A bar whose length is the share of `value` in `largest`; negative values have none."""
    width = 100 * max(0.0, value) / largest if largest > 0 else 0.0
    return _svg(
        100,
        10,
        "",
        "mark",
        [Markup('<rect class="c{} dot" x="0" y="1" width="{:.1f}" height="8"/>').format(color, width)],
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, equally far apart, that enclose the range."""
    if not high > low:
        low, high = (low - 0.5, low + 0.5) if low else (0.0, 1.0)
    raw = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _axes(x_ticks: Mapping[float, float], y_ticks: Sequence[float], x_label: str) -> Markup:
    """Grid lines with their numbers, and the name of the horizontal axis. x_ticks: where each number is."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for index, tick in enumerate(y_ticks):
        y = bottom - index / (len(y_ticks) - 1) * (bottom - TOP)
        parts.append(Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(LEFT, y, right, y))
        parts.append(
            Markup('<text text-anchor="end" x="{}" y="{:.1f}">{}</text>').format(LEFT - 6, y + 4, f"{tick:.6g}")
        )
    for tick, x in x_ticks.items():
        anchor = "end" if x > right - 20 else "middle"
        parts.append(
            Markup('<text text-anchor="{}" x="{:.1f}" y="{}">{}</text>').format(anchor, x, bottom + 17, f"{tick:.6g}")
        )
    parts.append(Markup('<line class="axis" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, bottom, right, bottom))
    middle = (LEFT + right) / 2
    parts.append(Markup('<text text-anchor="middle" x="{:.1f}" y="{}">{}</text>').format(middle, HEIGHT - 5, x_label))
    return Markup("").join(parts)


def _svg(width: int, height: int, title: str, kind: str, parts: Sequence[Markup]) -> Markup:
    """The picture with its title for people who don't see it; without a title it is decoration."""
    head = (
        Markup('role="img"><title>{}</title>').format(title)
        if title
        else Markup('aria-hidden="true" focusable="false">')
    )
    return Markup('<svg class="{}" viewBox="0 0 {} {}" {}{}</svg>').format(
        kind, width, height, head, Markup("").join(parts)
    )
