"""Charts: where a value is drawn, and that a name can't leave its place."""

import math
import re
from xml.etree import ElementTree

import pytest

from detdistill.reporting.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, bar, line_chart, ticks, whisker

from .stories import HOSTILE


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 100, [0, 25, 50, 75, 100]),
        (0.3, 0.9, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3, 5, [-4, -2, 0, 2, 4, 6]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
        (1e-5, 3e-5, [1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def points(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each line of a chart."""
    root = ElementTree.fromstring(svg)
    lines = [element.attrib["points"] for element in root.iter() if element.tag.endswith("polyline")]
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]  # type: ignore[misc]


def test_a_value_is_drawn_at_its_place() -> None:
    drawn = points(line_chart("a", "step", [Line("loss", [0, 50, 100], [0.0, 1.0, 0.5])], (0.0, 1.0)))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    middle = ((LEFT + right) / 2, (TOP + bottom) / 2)
    assert drawn == [[(LEFT, bottom), (middle[0], TOP), (right, middle[1])]]


def test_values_that_are_not_finite_are_left_out() -> None:
    drawn = points(line_chart("a", "step", [Line("loss", [1, 2, 3, 4], [1.0, math.nan, math.inf, 2.0])]))
    assert [len(line) for line in drawn] == [2]


@pytest.mark.parametrize("lines", [[], [Line("loss", [], [])], [Line("loss", [5], [2.0])], [Line("x", [1, 2], [3, 3])]])
def test_a_chart_of_few_values_is_valid(lines: list[Line]) -> None:
    svg = line_chart("few", "step", lines)
    ElementTree.fromstring(svg)
    assert not re.search(r"nan|inf", svg)


def test_names_are_escaped_and_read_out() -> None:
    svg = line_chart(HOSTILE, HOSTILE, [Line(HOSTILE, [1, 2], [1.0, 2.0])])
    root = ElementTree.fromstring(svg)  # fails if a name opens a tag
    title = next(element.text for element in root.iter() if element.tag.endswith("title"))
    assert title == f"{HOSTILE}: {HOSTILE} ends at 2" and root.attrib["role"] == "img"
    assert "<script" not in svg


def numbers(svg: str, tag: str, name: str) -> list[float]:
    """An attribute of all elements of this kind."""
    return [float(found.attrib[name]) for found in ElementTree.fromstring(svg).iter() if found.tag.endswith(tag)]


def test_a_whisker_has_its_interval_and_zero() -> None:
    svg = whisker(0.0, (-1.0, 1.0), -2.0, 2.0)
    assert numbers(svg, "circle", "cx") == [80]  # the middle of 4..156
    assert numbers(svg, "line", "x1") == [0, 80, 42, 42, 118]  # axis, zero, interval and its two ends
    assert numbers(whisker(5.0, None, 0.0, 5.0), "circle", "cx") == [156]
    assert numbers(whisker(9.0, None, 0.0, 5.0), "circle", "cx") == [156]  # stays on the scale


def test_a_bar_has_the_length_of_its_share() -> None:
    assert numbers(bar(25.0, 100.0), "rect", "width") == [25]
    assert numbers(bar(-1.0, 100.0), "rect", "width") == [0] and numbers(bar(0.0, 0.0), "rect", "width") == [0]
