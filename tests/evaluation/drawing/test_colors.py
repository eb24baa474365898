"""The palette."""

from itertools import combinations

from detdistill.evaluation.drawing import class_colors, color
from detdistill.evaluation.drawing.colors import luminance, readable


def test_the_first_colors_are_far_apart_and_all_differ() -> None:
    assert len({color(index) for index in range(200)}) == 200
    for first, second in combinations([color(index) for index in range(12)], 2):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 90


def test_a_name_has_one_color_in_both_lists() -> None:
    colors = class_colors(["cat", "dog"], ["ship", "dog", "cat"])
    assert colors == {"cat": color(0), "dog": color(1), "ship": color(2)}


def test_luminance_and_contrast_of_text() -> None:
    assert [luminance(fill) for fill in ((0, 0, 0), (255, 255, 255))] == [0, 1]
    assert round(luminance((255, 0, 0)), 4) == 0.2126
    for fill in map(color, range(100)):
        shades = sorted([luminance(fill), luminance(readable(fill))])
        assert (shades[1] + 0.05) / (shades[0] + 0.05) >= 4.5  # WCAG 2, level AA
