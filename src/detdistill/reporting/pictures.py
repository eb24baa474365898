"""Pictures that are part of the page itself."""

import base64
import io

from PIL import Image

from detdistill.reporting.content import Picture

SIDE = 440  # longest side in pixels; on the page, four pictures share a row
QUALITY = 80  # of the JPEG file, 1..95


def picture(title: str, description: str, image: Image.Image) -> Picture:
    """The image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    return Picture(title, description, "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
