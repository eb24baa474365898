"""Drawing of detections on images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from detdistill.evaluation.drawing import fonts
from detdistill.evaluation.drawing.colors import Color, color, readable
from detdistill.evaluation.drawing.labels import Memory, Place, Rectangle, place_labels

LONGER_SIDE = 640  # pixels; smaller images are enlarged to about this side, because a label needs about 13 pixels
TINY = 6  # a box with a side below this many lines gets its line outside
LONG = 14  # letters; a longer class name may be shortened where there is no place
MOST_COVERED = 0.1  # share of the picture that labels may cover
MANY = 10  # boxes of a class
LETTER, LINE = 0.55, 1.35  # width of a letter and height of a label, in sizes of the font
SMOOTH = 4  # the rounded corners of a label are drawn this many times larger and reduced
SHADOW = (0, 0, 0, 70)  # beside a line, so that it is seen on a background of its own color


@dataclass(frozen=True)
class Style:
    """Sizes in pixels of the picture.

    line: width of the line of a box.
    text: size of the font.
    """

    line: int
    text: int

    @classmethod
    def of(cls, size: tuple[int, int], boxes: np.ndarray | None = None) -> "Style":
        """Sizes that suit a picture of (width, height).

        boxes: (D, 4). They become smaller with the typical box, down to what can still be read if the whole picture is
        shown on a screen. None: they depend on the picture alone, as in a video, where they must not change.
        """
        longer = max(size)
        line, text = longer / 280, longer / 48
        if boxes is not None and len(boxes):
            typical = float(np.median(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))))
            line, text = min(line, max(typical / 40, longer / 800)), min(text, max(typical / 4.5, longer / 110))
        elif boxes is None:
            line, text = longer / 400, longer / 60
        return cls(max(round(line), 2), max(round(text), 13))


def draw(
    image: Image.Image,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    classes: Sequence[str],
    threshold: float = 0.0,
    colors: Mapping[str, Color] | None = None,
    legend: bool = False,
    memory: Memory | None = None,
    longer_side: int = LONGER_SIDE,
    with_text: bool = True,
) -> Image.Image:
    """A copy of the image with the boxes whose score is at least `threshold`, in the color of their class.

    boxes: (D, 4) xyxy in pixels of the image. labels: (D,). scores: (D,), or None for boxes of the ground truth: they
    are all drawn, without a score. colors: by class name; None: those of `color`, in the order of the classes.
    A small image is enlarged by a whole factor to about `longer_side`. with_text: write the class and the score at each
    box. The best box is drawn last, so it is on top. A label stands where it
    hides least (see `place_labels`). In a crowd, a label that finds no place is shortened or left out.
    legend: a class with so many boxes that their labels would hide the picture gets none. If labels were left out, a
    strip below the picture shows the colors of the classes and their counts.
    memory: of the video that the image is a frame of. Labels keep their places while these are good, and sizes depend
    on the size of the picture only, so that they don't change from frame to frame.
    """
    factor = max(1, round(longer_side / max(image.size)))
    picture = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    order = _best_first(scores, len(boxes), threshold)
    corners = boxes.detach().cpu().numpy().astype(np.float64).reshape(-1, 4)[order] * factor
    indices = labels.tolist()
    kinds = [int(indices[index]) for index in order]
    path, names = fonts.choose(tuple(classes))
    fills = [color(kind) if colors is None else colors[classes[kind]] for kind in kinds]
    style = Style.of(picture.size, None if memory is not None else corners)
    outlines = [_outline(box, style.line, picture.size) for box in corners.tolist()]
    for (outline, line), fill in reversed(list(zip(outlines, fills, strict=True))):
        _draw_outline(picture, outline, fill, line)
    texts = _texts([names[kind] for kind in kinds], None if scores is None else [float(scores[row]) for row in order])
    if not with_text:
        texts = [()] * len(texts)
    if legend:
        crowded = crowded_classes(kinds, style.text, texts, picture.size)
        texts = [() if kind in crowded else variants for kind, variants in zip(kinds, texts, strict=True)]
    around = np.array([outline for outline, _ in outlines], dtype=np.float64).reshape(-1, 4) + np.array((-1, -1, 1, 1))
    font = fonts.font(path, style.text)
    sizes = [[_plate(text, font, style) for text in variants] for variants in texts]
    places = _places(np.clip(around, 0, (*picture.size, *picture.size)), kinds, sizes, picture.size, memory)
    for variants, fill, place in zip(texts, fills, places, strict=True):
        if place is not None:
            _draw_label(picture, variants[place.variant], place.rectangle, fill, font, style)
    if not legend or None not in places:
        return picture
    counts, shown = Counter(kinds), dict(zip(kinds, fills, strict=True))
    rows = [(f"{names[kind]} ({counts[kind]})", shown[kind]) for kind in sorted(shown)]
    return _with_legend(picture, rows, fonts.font(path, max(style.text, round(max(picture.size) / 60))))


def _texts(names: Sequence[str], scores: Sequence[float] | None) -> list[tuple[str, ...]]:
    """The variants of the label of each box, the wanted one first: with the score, without, and shortened."""
    if scores is None:
        return [(name, _short(name)) for name in names]
    return [(f"{name} {score:.2f}", name, _short(name)) for name, score in zip(names, scores, strict=True)]


def _places(
    boxes: np.ndarray,
    kinds: Sequence[int],
    sizes: Sequence[Sequence[tuple[float, float]]],
    picture: tuple[int, int],
    memory: Memory | None,
) -> list[Place | None]:
    """`place_labels`, with the places of the last frame in mind."""
    if memory is None:
        return place_labels(boxes, sizes, picture)
    places = place_labels(boxes, sizes, picture, memory.recall(kinds, boxes))
    memory.keep(kinds, boxes, places)
    return places


def crowded_classes(kinds: Sequence[int], text: int, texts: Sequence[Sequence[str]], size: tuple[int, int]) -> set[int]:
    """The classes whose labels are left out, because all labels together would cover too much of the picture.

    The class with the most boxes is left out first. Classes with few boxes always keep their labels. text: size of the
    font. texts: the variants of each label. size: (width, height).
    """
    areas: Counter[int] = Counter()
    for kind, variants in zip(kinds, texts, strict=True):
        areas[kind] += round(len(variants[0]) * LETTER * text * LINE * text)
    left_out: set[int] = set()
    for kind, count in Counter(kinds).most_common():
        if count < MANY or sum(areas.values()) <= MOST_COVERED * size[0] * size[1]:
            break
        left_out.add(kind)
        del areas[kind]
    return left_out


def _best_first(scores: Tensor | None, count: int, threshold: float) -> list[int]:
    """The indices of the boxes to draw, the best first."""
    if scores is None:
        return list(range(count))[::-1]
    values = scores.tolist()
    return sorted((index for index in range(count) if values[index] >= threshold), key=lambda index: -values[index])


def _short(name: str) -> str:
    """A long class name without its end."""
    return name if len(name) <= LONG else f"{name[: LONG - 2]}.."


def _outline(box: list[float], line: int, size: tuple[int, int]) -> tuple[tuple[int, int, int, int], int]:
    """The outline of a box as (left, top, right, bottom), and the width of its line.

    It lies inside the box, or around it if the box is tiny. size: (width, height) of the picture.
    """
    width, height = size
    left, top = max(0, min(round(box[0]), width - 1)), max(0, min(round(box[1]), height - 1))
    right, bottom = max(left, min(round(box[2]), width - 1)), max(top, min(round(box[3]), height - 1))
    if min(right - left, bottom - top) >= TINY * line:
        return (left, top, right, bottom), line
    line = max(1, round(0.7 * line))
    return (left - line, top - line, right + line, bottom + line), line


def _draw_outline(picture: Image.Image, outline: tuple[int, int, int, int], fill: Color, line: int) -> None:
    """Draw an outline with its shadow on both sides."""
    left, top, right, bottom = outline
    pen = ImageDraw.Draw(picture, "RGBA")  # blends the shadow
    pen.rectangle([left - 1, top - 1, right + 1, bottom + 1], outline=SHADOW)
    if min(right - left, bottom - top) > 2 * line + 1:
        pen.rectangle([left + line, top + line, right - line, bottom - line], outline=SHADOW)
    pen.rectangle([left, top, right, bottom], outline=fill, width=line)


def _pad(style: Style) -> int:
    """Pixels between the text of a label and its border."""
    return max(2, style.text // 6)


def _ascent(font: fonts.Font, style: Style) -> tuple[int, int]:
    """Height of the text above and below its base line."""
    return font.getmetrics() if isinstance(font, fonts.ImageFont.FreeTypeFont) else (style.text, 0)


def _plate(text: str, font: fonts.Font, style: Style) -> tuple[float, float]:
    """(width, height) of a label."""
    return font.getlength(text) + 2 * _pad(style), float(sum(_ascent(font, style)) + _pad(style))


def _draw_label(
    picture: Image.Image, text: str, rectangle: Rectangle, fill: Color, font: fonts.Font, style: Style
) -> None:
    """Draw a text on a plate of the color `fill`."""
    left, top, right, bottom = rectangle
    x, y, pad = round(left), round(top), _pad(style)
    picture.paste(fill, (x, y), _rounded((round(right - left), round(bottom - top)), max(2, style.text // 5)))
    base = y + pad // 2 + _ascent(font, style)[0]
    ImageDraw.Draw(picture).text((x + pad, base), text, fill=readable(fill), font=font, anchor="ls")


def _rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """The mask of a rectangle with round, smooth corners."""
    mask = Image.new("L", (size[0] * SMOOTH, size[1] * SMOOTH))
    ImageDraw.Draw(mask).rounded_rectangle([0, 0, mask.width - 1, mask.height - 1], radius * SMOOTH, fill=255)
    return mask.resize(size, Image.Resampling.BOX)


def _with_legend(picture: Image.Image, rows: Sequence[tuple[str, Color]], font: fonts.Font) -> Image.Image:
    """The picture with a white strip below it that shows the color of each text."""
    swatch = round(font.getbbox("X")[3])
    gap, line = swatch, 2 * swatch
    spots: list[tuple[int, int]] = []
    x, y = gap, gap // 2
    for text, _ in rows:
        width = swatch + gap // 2 + round(font.getlength(text))
        if x > gap and x + width + gap > picture.width:
            x, y = gap, y + line
        spots.append((x, y))
        x += width + 2 * gap
    sheet = Image.new("RGB", (picture.width, picture.height + y + line), "white")
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for (text, fill), (x, y) in zip(rows, spots, strict=True):
        top = picture.height + y
        pen.rectangle([x, top + swatch // 4, x + swatch, top + swatch // 4 + swatch], fill=fill)
        pen.text((x + swatch + gap // 2, top + swatch // 4 + swatch), text, fill=(0, 0, 0), font=font, anchor="ls")
    return sheet
