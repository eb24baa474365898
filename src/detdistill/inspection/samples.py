"""Images of a data set with their boxes, chosen so that all classes and splits are seen."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from detdistill.data import Record, Split
from detdistill.evaluation import draw
from detdistill.files import replacing

COUNT = 10
COLUMNS = 5  # of the contact sheet
CELL = 320  # pixels of a picture's longer side on the contact sheet
SHEET = "samples.jpg"


def choose(splits: Mapping[str, Split], readable: Iterable[Record], count: int = COUNT) -> list[tuple[str, Record]]:
    """At most `count` images with their splits: one split after the other, each time an image with the class that was
    shown least so far.

    readable: only these records are chosen. The choice depends on the data only.
    """
    allowed = set(readable)
    pools = {
        name: [record for record in split.records if record in allowed and len(record.class_indices)]
        for name, split in splits.items()
    }
    classes = max((len(split.classes) for split in splits.values()), default=0)
    shown = np.zeros(classes, dtype=int)
    chosen: list[tuple[str, Record]] = []
    while len(chosen) < count and any(pools.values()):
        names = [name for name, pool in pools.items() if pool]
        name = names[len(chosen) % len(names)]
        record = _with_rarest(pools[name], shown, len(chosen) / count)
        pools[name].remove(record)
        shown[np.unique(record.class_indices)] += 1
        chosen.append((name, record))
    return chosen


def _with_rarest(pool: list[Record], shown: np.ndarray, position: float) -> Record:
    """An image with the class that was shown least. position: in 0..1, which of the images with this class."""
    present = np.unique(np.concatenate([record.class_indices for record in pool]))
    label = present[shown[present].argmin()]
    candidates = [record for record in pool if label in record.class_indices]
    return candidates[int(position * len(candidates))]


def draw_samples(chosen: Sequence[tuple[str, Record]], classes: Sequence[str], out: Path) -> list[Path]:
    """Draw each image with its boxes into the folder `out`, and all of them on one sheet, samples.jpg. Returns the
    files.
    """
    files, pictures = [], []
    for number, (split, record) in enumerate(chosen, start=1):
        picture = draw(record.image(), record.boxes, record.labels, None, classes)
        path = out / f"{number:02}-{split}-{Path(record.name).stem}.jpg"
        _save(picture, path)
        files.append(path)
        pictures.append(picture)
    if pictures:
        _save(_sheet(pictures), out / SHEET)
        files.append(out / SHEET)
    return files


def _sheet(pictures: list[Image.Image]) -> Image.Image:
    """The pictures side by side, COLUMNS per row."""
    cells = [picture.copy() for picture in pictures]
    for cell in cells:
        cell.thumbnail((CELL, CELL))
    height, rows = max(cell.height for cell in cells), -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (min(len(cells), COLUMNS) * CELL, rows * height), "white")
    for index, cell in enumerate(cells):
        row, column = divmod(index, COLUMNS)
        sheet.paste(cell, (column * CELL, row * height))
    return sheet


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, quality=90)
