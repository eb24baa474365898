"""Records, data sets and pictures for the tests."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detdistill.data import Data, Faults, Record, Split
from detdistill.data.images import ImageFile
from detdistill.data.records import Objects
from detdistill.inspection.members import Members, members

CLASSES = ("cat", "dog")
Box = tuple[int, float, float, float, float]  # class index, xyxy


@dataclass(frozen=True)
class Plain:
    """A gray image that is in no file."""

    width: int
    height: int

    def open(self) -> Image.Image:
        return Image.new("RGB", (self.width, self.height), "gray")


def record(
    name: str,
    boxes: Sequence[Box] = (),
    size: tuple[int, int] = (200, 200),
    path: Path | None = None,
    crowds: Sequence[Box] = (),
) -> Record:
    """An image of (height, width) with objects. path: its file; None if it has none."""
    objects = Objects.empty()
    for label, *box in boxes:
        objects.add(list(map(float, box)), label)
    for label, *box in crowds:
        objects.add(list(map(float, box)), label, is_crowd=True)
    source = Plain(size[1], size[0]) if path is None else ImageFile(path)
    return objects.to_record(abs(hash(name)) % 10**9, name, size, source)


def data_of(splits: Mapping[str, Sequence[Record]], classes: Sequence[str] = CLASSES) -> Data:
    """A data set with these splits."""
    ids = tuple(range(1, len(classes) + 1))
    made = {name: Split(name, tuple(records), tuple(classes), ids) for name, records in splits.items()}
    return Data("voc", tuple(classes), ids, made, (), Faults())


def members_of(*records: Record, classes: Sequence[str] = CLASSES) -> Members:
    """The images and boxes of a data set with one split, train."""
    return members(data_of({"train": records}, classes).splits, classes)


def picture(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """A picture of soft color patches. Two seeds give pictures that are not alike."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def write_coco(root: Path, splits: Mapping[str, Mapping[str, tuple[Image.Image | bytes, Sequence[Box]]]]) -> Path:
    """A data set in COCO layout with the classes cat and dog; returns its folder.

    splits: for each split, the file names with their pictures (or the bytes of a damaged file) and their boxes.
    """
    (root / "annotations").mkdir(parents=True)
    for split, files in splits.items():
        (root / split).mkdir()
        images, annotations = [], []
        for id, (name, (content, boxes)) in enumerate(files.items(), start=1):
            path = root / split / name
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                content.save(path)
            images.append({"id": id, "file_name": name})
            for label, left, top, right, bottom in boxes:
                box = [left, top, right - left, bottom - top]
                annotations.append({"image_id": id, "category_id": label + 1, "bbox": box, "iscrowd": 0})
        categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)]
        for id, annotation in enumerate(annotations, start=1):
            annotation |= {"id": id, "area": annotation["bbox"][2] * annotation["bbox"][3]}
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def clean_files(first: int, count: int = 10) -> dict[str, tuple[Image.Image, list[Box]]]:
    """Pictures that are all different, each with a cat of 40 x 40 and a dog of 48 x 30 pixels, from seed `first`."""
    boxes: list[Box] = [(0, 5, 5, 45, 45), (1, 60, 50, 108, 80)]
    return {f"{seed}.png": (picture(seed), boxes) for seed in range(first, first + count)}
