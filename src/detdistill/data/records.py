"""What a data set is once it is read: splits of records, whatever layout it came in."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detdistill.data.faults import Faults
from detdistill.data.images import ImageFile
from detdistill.errors import UserError, nearest
from detdistill.recipe import DataConfig

ALIASES = {"val": "valid", "valid": "val"}


class Picture(Protocol):
    """Where an image comes from: a file, or code that draws it. Goes to worker processes, so it can be pickled."""

    def open(self) -> Image.Image: ...


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its objects, in pixels of the upright original image.

    corners (G, 4) float64 xyxy, kinds (G,) int64 classes in the shared order, crowds (G,) bool, areas (G,) float64 as annotated.
    numpy, since a tensor an image costs five times the memory; `boxes`, `labels` and `crowd` give tensors.
    """

    id: int
    name: str
    height: int
    width: int
    picture: Picture
    corners: np.ndarray
    kinds: np.ndarray
    crowds: np.ndarray
    areas: np.ndarray

    @property
    def boxes(self) -> Tensor:
        """(G, 4) float32 xyxy."""
        return torch.from_numpy(self.corners.astype(np.float32))

    @property
    def labels(self) -> Tensor:
        """(G,) int64."""
        return torch.from_numpy(self.kinds.copy())

    @property
    def crowd(self) -> Tensor:
        """(G,) bool: a group or a difficult object; no training target, and no false positive in the evaluation."""
        return torch.from_numpy(self.crowds.copy())

    @property
    def path(self) -> Path | None:
        """The image file, or None for a drawn image."""
        return self.picture.path if isinstance(self.picture, ImageFile) else None

    def image(self) -> Image.Image:
        """The RGB picture, EXIF rotation applied. Raises UserError naming the file where it can't be decoded."""
        picture = self.picture.open()
        if picture.size != (self.width, self.height):
            raise UserError(
                f"{self.path or self.name}: the image has changed since the data set was opened; start again"
            )
        return picture


@dataclass
class Objects:
    """The objects of one image while it is read."""

    corners: list[list[float]]
    kinds: list[int]
    crowds: list[bool]
    areas: list[float]

    @classmethod
    def none(cls) -> "Objects":
        return cls([], [], [], [])

    def add(self, box: list[float], kind: int, crowd: bool = False, area: float | None = None) -> None:
        self.corners.append(box)
        self.kinds.append(kind)
        self.crowds.append(crowd)
        self.areas.append((box[2] - box[0]) * (box[3] - box[1]) if area is None else area)

    def record(self, id: int, name: str, size: tuple[int, int], picture: Picture) -> Record:
        """size: (height, width)."""
        corners = np.asarray(self.corners, dtype=np.float64).reshape(-1, 4)
        kinds, crowds = np.asarray(self.kinds, dtype=np.int64), np.asarray(self.crowds, dtype=bool)
        return Record(id, name, *size, picture, corners, kinds, crowds, np.asarray(self.areas, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Split:
    """Images to train on or to measure on. classes and their category_ids are those of the whole data set."""

    name: str
    records: tuple[Record, ...]
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def take(self, count: int) -> "Split":
        """At most `count` images, spread evenly over the split."""
        total = len(self.records)
        chosen = range(total) if count >= total else [index * total // count for index in range(count)]
        return replace(self, records=tuple(self.records[index] for index in chosen))

    def ground_truth(self) -> dict[str, Any]:
        """A COCO ground-truth dict: boxes xywh in original pixels, original category ids, iscrowd and area kept."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            images.append({"id": record.id, "file_name": record.name, "height": record.height, "width": record.width})
            columns = (record.corners.tolist(), record.kinds.tolist(), record.crowds.tolist(), record.areas.tolist())
            for (left, top, right, bottom), kind, crowd, area in zip(*columns, strict=True):
                annotation: dict[str, Any] = {
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": self.category_ids[kind],
                }
                annotation |= {"bbox": [left, top, right - left, bottom - top], "area": area, "iscrowd": int(crowd)}
                annotations.append(annotation)
        categories = [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


@dataclass(frozen=True, eq=False)
class Contents:
    """What a reader found: classes in the shared order, the data set's own ids for them, records by split, lines for the user."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: Mapping[str, tuple[Record, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Data:
    """A data set. classes are in the shared order, category_ids the data set's own; notes are lines for the user; faults in full."""

    layout: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: Mapping[str, Split]
    notes: tuple[str, ...]
    faults: Faults

    def split(self, name: str) -> Split:
        """The split of that name (`val` and `valid` stand for each other). Raises UserError naming those that exist."""
        for known in (name, ALIASES.get(name, name)):
            if known in self.splits:
                return self.splits[known]
        raise UserError(
            f"the data have no split {name!r}{nearest(name, self.splits)} (there are {', '.join(self.splits)})"
        )

    def training_split(self, config: DataConfig) -> Split:
        """data.train_split, or `train`."""
        return _with_objects(self.split(config.train_split or "train"))

    def evaluation_split(self, config: DataConfig) -> Split:
        """data.eval_split, or `test` where there is one, or `val`. Never the training images unless they are named."""
        if config.eval_split is not None:
            return _with_objects(self.split(config.eval_split))
        for name in ("test", "val", "valid"):
            if name in self.splits:
                return _with_objects(self.splits[name])
        raise UserError(
            f"the data have neither a test nor a val split; name one with --data.eval-split (there are {', '.join(self.splits)})"
        )


def _with_objects(split: Split) -> Split:
    if not any((~record.crowds).any() for record in split.records):
        raise UserError(
            f"split {split.name!r}: {len(split)} images without one object; give its annotations or name another split"
        )
    return split
