"""Image files: their size without decoding the pixels, and their pixels."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from detdistill.data.faults import Faults
from detdistill.errors import UserError, one_line

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
MODES = frozenset(  # of at most 8 bits per channel
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa"}
)
UNDO = {  # EXIF orientation to the operation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Frame = Literal["upright", "stored"]
"""What annotations were made on: the picture with its EXIF rotation undone, or the pixels as stored."""
READERS = 8  # threads that read headers; a network disk serves several at a time


@dataclass(frozen=True)
class ImageFile:
    """An image on disk.

    path: of the file.
    orientation: the EXIF orientation (1 to 8) that `open` undoes.
    """

    path: Path
    orientation: int = 1

    def open(self) -> Image.Image:
        """The decoded image, RGB and upright. Raises UserError with the file name if it can't be decoded."""
        try:
            with Image.open(self.path) as image:
                picture = image.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # a decoder may raise any exception for a damaged file
            raise UserError(
                f"{self.path}: can't decode the image ({one_line(error)}); "
                "restore the file, or leave it out with --on-bad-record skip"
            ) from None
        return picture.transpose(UNDO[self.orientation]) if self.orientation in UNDO else picture


@dataclass(frozen=True)
class Header:
    """What is known of an image without its pixels.

    stored: (height, width) as stored.
    orientation: the EXIF orientation, 1 to 8.
    """

    stored: tuple[int, int]
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) after the EXIF rotation is undone."""
        return (self.stored[1], self.stored[0]) if self.orientation >= 5 else self.stored

    @property
    def is_turned(self) -> bool:
        """True if width and height of the upright picture and of the stored pixels differ."""
        return self.upright != self.stored


def read_header(path: Path, decode: bool = False) -> Header | str:
    """The header of an image, or a description of what is wrong with the file.

    decode: also decode the pixels, to find damaged files.
    """
    if not path.is_file():
        return "the image file does not exist"
    try:
        with Image.open(path) as image:
            if image.mode not in MODES:
                return f"the pixels of mode {image.mode} have more than 8 bits per channel"
            # If a PNG has no EXIF before its pixels, getexif() decodes all of them to look behind them. Programs write
            # it before the pixels.
            has_exif = image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if has_exif else 1
            header = Header((image.height, image.width), orientation if orientation in UNDO else 1)
            if decode:
                image.load()
    except MemoryError:
        raise
    except Exception as error:
        return f"can't read the image ({one_line(error)})"
    return header


def read_headers(paths: Sequence[Path], faults: Faults) -> list[Header | str]:
    """`read_header` of many files in parallel.

    If faults are skipped, every image is also decoded, so that a damaged file can't stop the run later, unless
    `faults.decode` is False.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda path: read_header(path, decode=faults.decodes), paths))


def fitting_frames(header: Header, boxes: Sequence[Sequence[float]]) -> tuple[Frame, ...]:
    """The frames that contain all boxes (xyxy in pixels). A box may reach out by a pixel, or 1 % of the side."""
    if not boxes:
        return ("upright", "stored")
    right, bottom = np.asarray(boxes, dtype=np.float64)[:, 2:].max(axis=0)
    sizes: dict[Frame, tuple[int, int]] = {"upright": header.upright, "stored": header.stored}
    return tuple(
        frame
        for frame, (height, width) in sizes.items()
        if right <= width + max(1.0, width / 100) and bottom <= height + max(1.0, height / 100)
    )


def resolve_image(
    path: Path,
    header: Header | str,
    declared: tuple[int, int] | None,
    faults: Faults,
    source: str,
    boxes: Sequence[Sequence[float]] = (),
    usual: Frame | None = None,
) -> tuple[ImageFile, tuple[int, int]] | None:
    """The image and its (height, width) in the frame of its annotations, or None if it must be left out.

    header: from `read_header`.
    declared: (height, width) in the annotations, or None. A side of 0 or less means that the size is not given.
    source: the name of the annotation file, or an empty string if there are no annotations.
    boxes: xyxy in pixels, as in the annotations.
    usual: the frame of the images of this source whose boxes fit only one frame.
    An image that is not rotated or whose rotation changes no side is upright. Otherwise the frame is the only one that
    contains all boxes. If both do, it is `usual` or else the one with the declared size, and the image is noted, except
    if these two agree.
    """
    if isinstance(header, str):
        remedy = "restore the file or remove it from the annotations" if source else "restore the file or remove it"
        faults.reject(str(path), header, remedy)
        return None
    if declared is not None and min(declared) <= 0:
        declared = None
    if declared not in (None, header.upright, header.stored):
        sizes = f"{declared[1]}x{declared[0]}, but the file has {header.upright[1]}x{header.upright[0]}"
        problem = f"width and height in {source} are {sizes}"
        faults.reject(str(path), problem, "correct the annotations or restore the original image")
        return None
    if not header.is_turned:
        return ImageFile(path, header.orientation), header.upright
    declared_frame: Frame = "stored" if declared == header.stored else "upright"
    frame, fitting = declared_frame, fitting_frames(header, boxes)
    if len(fitting) == 1:
        (frame,) = fitting
    elif boxes and len(fitting) == 2 and usual != declared_frame:
        frame = usual or declared_frame
        faults.doubt(str(path), frame)
    if frame == "stored":
        faults.repair(str(path), "unrotated", "image")
        return ImageFile(path), header.stored
    if declared == header.stored:
        faults.repair(str(path), "rotated", "image")
    return ImageFile(path, header.orientation), header.upright


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, sorted by path, without hidden files."""
    files = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    return sorted(path for path in files if not path.name.startswith("."))
