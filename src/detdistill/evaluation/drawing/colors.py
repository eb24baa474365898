"""The color of each class, and the text color that is readable on it."""

import colorsys
from collections.abc import Iterable

Color = tuple[int, int, int]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
FIRST: tuple[Color, ...] = (  # the first classes: bright, and far from each other in hue
    (28, 200, 60),
    (40, 105, 255),
    (255, 140, 0),
    (225, 20, 225),
    (0, 215, 235),
    (240, 30, 40),
    (250, 225, 20),
    (120, 70, 230),
    (165, 230, 30),
    (255, 130, 175),
    (0, 130, 115),
    (160, 95, 45),
)
TONES = ((0.55, 1.0), (1.0, 0.6), (0.85, 0.9))  # saturation and value of the further classes, in turn
GOLDEN = 0.61803  # of a turn of the color wheel: consecutive hues differ for any number of classes


def color(index: int) -> Color:
    """The color of class `index`. The colors of few classes are far apart, those of many still differ."""
    if index < len(FIRST):
        return FIRST[index]
    saturation, value = TONES[index % len(TONES)]
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def class_colors(*lists: Iterable[str]) -> dict[str, Color]:
    """The color of each class name in these lists of classes. A name in several lists has one color."""
    names = dict.fromkeys(name for classes in lists for name in classes)
    return {name: color(index) for index, name in enumerate(names)}


def readable(fill: Color) -> Color:
    """Black or white: the one with the higher contrast on `fill`, by WCAG 2. The contrast is at least 4.5."""
    shade = luminance(fill)
    return BLACK if (shade + 0.05) / 0.05 >= 1.05 / (shade + 0.05) else WHITE


def luminance(fill: Color) -> float:
    """The relative luminance of a color as WCAG 2 defines it, in 0..1."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in fill)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
