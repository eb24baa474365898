"""Drawing of detections on images."""

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Color = tuple[int, int, int]
LONGER_SIDE = 640  # pixels; smaller images are enlarged to about this side, because a label needs about 13 pixels


def draw(
    image: Image.Image,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    classes: Sequence[str],
    threshold: float = 0.0,
    longer_side: int = LONGER_SIDE,
    with_text: bool = True,
) -> Image.Image:
    """A copy of the image with the boxes whose score is at least `threshold`, in the color of their class.

    boxes: (D, 4) xyxy in pixels of the image. labels: (D,). scores: (D,), or None for boxes of the ground truth: they
    are all drawn, without a score.
    with_text: write the class and the score at each box.
    A small image is enlarged by a whole factor to about `longer_side`. The best box is drawn last, so it is on top.
    """
    factor = max(1, round(longer_side / max(image.size)))
    picture = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    line_width = max(2, max(picture.size) // 320)
    font = ImageFont.load_default(size=max(13, max(picture.size) // 50))
    if scores is None:
        order, texts = list(range(len(boxes))), [classes[label] for label in labels.tolist()]
    else:
        kept = (scores >= threshold).nonzero().flatten().tolist()
        order = sorted(kept, key=lambda index: float(scores[index]))
        texts = [f"{classes[int(label)]} {float(score):.2f}" for label, score in zip(labels, scores, strict=True)]
    for index in order:
        box = [value * factor for value in boxes[index].tolist()]
        label = int(labels[index])
        pen.rectangle(box, outline=color(label), width=line_width)
        if with_text:
            _draw_text(pen, box, texts[index], color(label), font)
    return picture


def color(label: int) -> Color:
    """A saturated color for each label.

    The hues are a golden ratio apart. So the colors of consecutive labels differ for any number of classes.
    """
    red, green, blue = colorsys.hsv_to_rgb(label * 0.61803 % 1, 0.9, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_text(
    pen: ImageDraw.ImageDraw,
    box: list[float],
    text: str,
    fill: Color,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Draw the text on a filled rectangle above the box. The rectangle is moved so that it stays inside the image."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(box[0], pen.im.size[0] - width))
    y = max(0, min(box[1] - height, pen.im.size[1] - height))
    pen.rectangle([x, y, x + width, y + height], fill=fill)
    luminance = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]  # ITU-R BT.601
    pen.text((x + 2 - left, y + 2 - top), text, fill=(0, 0, 0) if luminance > 128 else (255, 255, 255), font=font)
