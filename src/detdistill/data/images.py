"""Image files: their size without their pixels, and their pixels."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from detdistill.data.faults import Faults
from detdistill.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
MODES = frozenset(
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa"}
)  # 8 bits a channel or less
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation to what undoes it
READERS = 8  # threads that look at headers; a network disk answers them side by side


@dataclass(frozen=True)
class ImageFile:
    """An image on disk. turn: the EXIF orientation (1 to 8) that `open` undoes."""

    path: Path
    turn: int = 1

    def open(self) -> Image.Image:
        """The whole picture, RGB, upright. Raises UserError naming the file where it can't be decoded."""
        try:
            with Image.open(self.path) as image:
                picture = image.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # a decoder may raise anything on a damaged file
            message = f"{self.path}: can't decode the image ({_one_line(error)}); restore the file, or leave it out with --on-bad-record skip"
            raise UserError(message) from None
        return picture.transpose(TURNS[self.turn]) if self.turn in TURNS else picture


@dataclass(frozen=True)
class Header:
    """Size of an image as stored, (height, width), and its EXIF orientation."""

    stored: tuple[int, int]
    turn: int

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) once the EXIF rotation is undone."""
        return (self.stored[1], self.stored[0]) if self.turn >= 5 else self.stored


def look(path: Path, decode: bool = False) -> Header | str:
    """The header of an image, or what is wrong with the file. Pixels are only decoded where `decode` asks for it."""
    if not path.is_file():
        return "there is no such image"
    try:
        with Image.open(path) as image:
            if image.mode not in MODES:
                return f"pixels of mode {image.mode} have more than 8 bits"
            # getexif() of a PNG decodes all of it to reach a trailing chunk; writers put the chunk before the pixels
            readable = image.format != "PNG" or "exif" in image.info
            turn = image.getexif().get(ExifTags.Base.Orientation, 1) if readable else 1
            header = Header((image.height, image.width), turn if turn in TURNS else 1)
            if decode:
                image.load()
    except MemoryError:
        raise
    except Exception as error:
        return f"can't read the image ({_one_line(error)})"
    return header


def look_all(paths: Sequence[Path], faults: Faults) -> list[Header | str]:
    """`look` at many files side by side; where faults are skipped every image is decoded, so that none breaks a run later."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda path: look(path, decode=faults.skips), paths))


def settle(
    path: Path, found: Header | str, declared: tuple[int, int] | None, faults: Faults, source: str
) -> tuple[ImageFile, tuple[int, int]] | None:
    """The image and its (height, width) in the frame of its annotations; None for a file to leave out.

    declared: (height, width) that the annotations in `source` give; both empty where there are none. Where that is the stored size and not the upright one, the
    annotations were made on the image as stored, and it stays so.
    """
    if isinstance(found, str):
        faults.bad(
            str(path), found, f"restore the file or {'remove it from the annotations' if source else 'give others'}"
        )
        return None
    if declared is None or declared == found.upright:
        return ImageFile(path, found.turn), found.upright
    if declared == found.stored:
        faults.mend(str(path), "unrotated", "image")
        return ImageFile(path), found.stored
    sizes = f"{declared[1]}x{declared[0]} but the file has {found.upright[1]}x{found.upright[0]}"
    faults.bad(str(path), f"width and height in {source} say {sizes}", "annotate the image as it is, or restore it")
    return None


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder and of those below it, by name."""
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
