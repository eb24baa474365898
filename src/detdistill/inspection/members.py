"""The images and boxes of a data set as flat arrays, each image once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detdistill.data import Data, Record, Split
from detdistill.recipe import DataConfig


@dataclass(frozen=True, eq=False)
class Members:
    """The images of some splits and their N boxes. Crowds are left out.

    records: the images.
    splits: the split of each image; the first one if it is in several.
    classes: class names in the shared order.
    image: (N,) the index into `records` of each box.
    labels: (N,) the class index of each box.
    corners: (N, 4) xyxy in pixels of the file.
    areas: (N,) as annotated.
    """

    records: tuple[Record, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    image: np.ndarray
    labels: np.ndarray
    corners: np.ndarray
    areas: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """(N, 2) width and height in pixels of the file."""
        return self.corners[:, 2:] - self.corners[:, :2]

    @property
    def sizes(self) -> np.ndarray:
        """(images, 2) height and width of each image."""
        return np.array([(record.height, record.width) for record in self.records], dtype=np.float64).reshape(-1, 2)

    def describe(self, box: int) -> str:
        """The file, split, class and corners of a box, for a message."""
        image = int(self.image[box])
        corners = ", ".join(f"{value:.6g}" for value in np.round(self.corners[box], 1))
        return f"{self.file(image)}: {self.classes[int(self.labels[box])]} ({corners})"

    def file(self, image: int) -> str:
        """The file name and the split of an image, for a message."""
        return f"{self.records[image].name} ({self.splits[image]})"


def members(splits: Mapping[str, Split], classes: Sequence[str]) -> Members:
    """The images and boxes of these splits. A record that is in several splits is counted once."""
    homes: dict[Record, str] = {}
    for name, split in splits.items():
        for record in split.records:
            homes.setdefault(record, name)
    kept = [~record.crowds for record in homes]
    counts = [int(mask.sum()) for mask in kept]
    pairs = list(zip(homes, kept, strict=True))
    return Members(
        tuple(homes),
        tuple(homes.values()),
        tuple(classes),
        image=np.repeat(np.arange(len(counts)), counts),
        labels=_joined([record.class_indices[mask] for record, mask in pairs], np.int64),
        corners=_joined([record.corners[mask] for record, mask in pairs], np.float64).reshape(-1, 4),
        areas=_joined([record.areas[mask] for record, mask in pairs], np.float64),
    )


def _joined(arrays: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=kind)


def sums(data: Data) -> dict[str, tuple[str, ...]]:
    """The splits that consist of the images of two or more other splits, such as VOC's trainval, and these splits."""
    files = {name: {_file(record) for record in split.records} for name, split in data.splits.items()}
    found = {}
    for name, whole in files.items():
        parts = tuple(other for other, part in files.items() if part < whole)
        if len(parts) > 1 and set().union(*(files[part] for part in parts)) == whole:
            found[name] = parts
    return found


def roles(data: Data, config: DataConfig) -> tuple[str, str | None]:
    """The names of the training split and of the split that is evaluated on. The first need not exist; the second is
    None if there is none.

    Raises UserError if the config names a split that does not exist.
    """
    found = data.split(config.train_split) if config.train_split else data.find("train")
    evaluated = data.split(config.eval_split) if config.eval_split else data.held_out()
    return "train" if found is None else found.name, None if evaluated is None else evaluated.name


def separate(data: Data, used: Sequence[str | None]) -> dict[str, Split]:
    """The splits that should have no image in common, the training split first.

    used: the names of the training and the evaluation split. Of a split and the splits that it consists of, only the
    parts are kept, unless the whole is used.
    """
    whole = sums(data)
    left_out = {name for name in whole if name not in used}
    for name in whole.keys() - left_out:
        left_out |= set(whole[name]) - set(used)
    names = [name for name in data.splits if name not in left_out]
    names.sort(key=lambda name: name != used[0])
    return {name: data.splits[name] for name in names}


def _file(record: Record) -> Path | Record:
    """What identifies an image: its file, or the record itself if it is drawn."""
    return record.path or record
