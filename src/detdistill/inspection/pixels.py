"""What the pixels of each image tell: whether it can be decoded, and a small picture by which images are compared."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detdistill.data import Record
from detdistill.data.images import READERS, UNDO, ImageFile
from detdistill.errors import one_line

SIDE = 32  # pixels of the small picture
HASH = 8  # rows and columns of the difference hash


@dataclass(frozen=True, eq=False)
class Glance:
    """An image at a glance.

    small: (SIDE, SIDE) uint8, gray and upright, without the aspect ratio.
    bits: the difference hash as a 64-bit number. Bit 8 * r + c is 1 if cell (r, c) is darker than the next one.
    """

    small: np.ndarray
    bits: int


def glances(records: Sequence[Record]) -> list[Glance | str]:
    """Each image at a glance, or what is wrong with it. Threads decode them, JPEGs at a fraction of their size."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(glance, records))


def glance(record: Record) -> Glance | str:
    """One image at a glance, or why it can't be decoded."""
    try:
        gray = _gray(record)
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise any exception for a damaged file
        return one_line(error)
    return Glance(np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BOX)), difference_hash(gray))


def difference_hash(gray: Image.Image) -> int:
    """The difference hash of a gray image, 64 bits. It hardly changes with size, compression and brightness."""
    cells = np.asarray(gray.resize((HASH + 1, HASH), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")


def _gray(record: Record) -> Image.Image:
    if not isinstance(record.source, ImageFile):
        return record.image().convert("L")
    with Image.open(record.source.path) as image:
        image.draft("L", (2 * SIDE, 2 * SIDE))
        gray = (image.convert("RGB") if "transparency" in image.info else image).convert("L")
    undo = UNDO.get(record.source.orientation)
    return gray if undo is None else gray.transpose(undo)


def equal_files(paths: Sequence[Path]) -> list[list[Path]]:
    """The groups of files with the same bytes. Only files of the same size are read."""
    sizes = {path: path.stat().st_size for path in dict.fromkeys(paths) if path.is_file()}
    times = Counter(sizes.values())
    suspects = [path for path, size in sizes.items() if times[size] > 1]
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(_digest, suspects))
    groups: dict[bytes, list[Path]] = {}
    for path, digest in zip(suspects, digests, strict=True):
        groups.setdefault(digest, []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
