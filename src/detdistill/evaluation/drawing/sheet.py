"""Two pictures side by side under their titles."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from detdistill.evaluation.drawing import fonts

GAP = 8  # pixels between the pictures, white


def side_by_side(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """The pictures in one row on white, each under its title. A title that is too long loses its beginning."""
    height, width = max(picture.height for picture in pictures), sum(picture.width for picture in pictures)
    size = max(14, round(max(max(picture.size) for picture in pictures) / 40))
    bar = 2 * size
    sheet = Image.new("RGB", (width + GAP * (len(pictures) - 1), height + bar), "white")
    pen, left = ImageDraw.Draw(sheet), 0
    letters = "".join(sorted({*"".join(titles), *"0123456789"}))  # the same for all frames of a video
    path, _ = fonts.choose((letters,))
    font = fonts.font(path, size)
    for picture, title in zip(pictures, titles, strict=True):
        text = title
        while len(text) > 4 and font.getlength(text) > picture.width - size:
            text = "..." + text.removeprefix("...")[1:]
        pen.text((left + picture.width // 2, bar // 2), text, fill=(0, 0, 0), font=font, anchor="mm")
        sheet.paste(picture, (left, bar))
        left += picture.width + GAP
    return sheet
