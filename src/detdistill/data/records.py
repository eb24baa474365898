"""A data set after reading: splits of records. It does not depend on the layout of the files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detdistill.data.faults import Faults
from detdistill.data.images import ImageFile
from detdistill.data.roles import ROLES, role, with_role
from detdistill.errors import UserError, nearest
from detdistill.recipe import DataConfig


class ImageSource(Protocol):
    """The origin of an image: a file, or code that draws it. It must be picklable, because worker processes get it."""

    def open(self) -> Image.Image:
        """The decoded image, RGB and upright."""
        ...


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its objects, in pixels of the upright original image.

    id: the image id of the data set.
    name: the file name, for messages.
    height, width: of the upright image.
    source: where the pixels come from.
    corners: (G, 4) float64 xyxy.
    class_indices: (G,) int64, in the shared class order.
    crowds: (G,) bool, True for a group of objects or a difficult object.
    areas: (G,) float64, as annotated.
    file_id: the image id in the files of the data set, if it differs from `id`; see `data.ids`.

    The arrays are numpy arrays, because one tensor per image takes five times the memory. The properties `boxes`,
    `labels` and `crowd` are tensors.
    """

    id: int
    name: str
    height: int
    width: int
    source: ImageSource
    corners: np.ndarray
    class_indices: np.ndarray
    crowds: np.ndarray
    areas: np.ndarray
    file_id: int | str | None = None

    @property
    def boxes(self) -> Tensor:
        """(G, 4) float32 xyxy."""
        return torch.from_numpy(self.corners.astype(np.float32))

    @property
    def labels(self) -> Tensor:
        """(G,) int64, in the shared class order."""
        return torch.from_numpy(self.class_indices.copy())

    @property
    def crowd(self) -> Tensor:
        """(G,) bool. A crowd is no training target, and in the evaluation a detection on it is no false positive."""
        return torch.from_numpy(self.crowds.copy())

    @property
    def path(self) -> Path | None:
        """The image file, or None for a drawn image."""
        return self.source.path if isinstance(self.source, ImageFile) else None

    def image(self) -> Image.Image:
        """The decoded image, RGB and upright.

        Raises UserError with the file name if it can't be decoded or if its size has changed.
        """
        picture = self.source.open()
        if picture.size != (self.width, self.height):
            raise UserError(
                f"{self.path or self.name}: the size of the image has changed since the data set was opened; "
                "start the run again"
            )
        return picture


@dataclass
class Objects:
    """The objects of one image, collected while its annotations are read. The fields are those of `Record`."""

    corners: list[list[float]]
    class_indices: list[int]
    crowds: list[bool]
    areas: list[float]

    @classmethod
    def empty(cls) -> "Objects":
        return cls([], [], [], [])

    def add(self, box: list[float], class_index: int, is_crowd: bool = False, area: float | None = None) -> None:
        """Add one object. area: None means the area of the box."""
        self.corners.append(box)
        self.class_indices.append(class_index)
        self.crowds.append(is_crowd)
        self.areas.append((box[2] - box[0]) * (box[3] - box[1]) if area is None else area)

    def to_record(self, id: int, name: str, size: tuple[int, int], source: ImageSource) -> Record:
        """The record of an image with these objects. size: (height, width)."""
        height, width = size
        return Record(
            id,
            name,
            height,
            width,
            source,
            corners=np.asarray(self.corners, dtype=np.float64).reshape(-1, 4),
            class_indices=np.asarray(self.class_indices, dtype=np.int64),
            crowds=np.asarray(self.crowds, dtype=bool),
            areas=np.asarray(self.areas, dtype=np.float64),
        )


Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, spread evenly over them, in their order."""
    total, count = len(items), min(count, len(items))
    return [items[index * total // count] for index in range(count)]


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split.

    name: of the split.
    records: the images.
    classes: the class names of the whole data set, in the shared order.
    category_ids: the data set's id of each class.
    """

    name: str
    records: tuple[Record, ...]
    classes: tuple[str, ...] = ()
    category_ids: tuple[int | str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def take(self, count: int) -> "Split":
        """A split of at most `count` images, spread evenly over this split."""
        return replace(self, records=tuple(spread(self.records, count)))

    def ground_truth(self) -> dict[str, Any]:
        """The split as a COCO ground-truth dict.

        Boxes are xywh in pixels of the original image. Category ids, iscrowd and area are those of the data set.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            images.append({"id": record.id, "file_name": record.name, "height": record.height, "width": record.width})
            rows = zip(
                record.corners.tolist(),
                record.class_indices.tolist(),
                record.crowds.tolist(),
                record.areas.tolist(),
                strict=True,
            )
            for (left, top, right, bottom), class_index, is_crowd, area in rows:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record.id,
                        "category_id": self.category_ids[class_index],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": area,
                        "iscrowd": int(is_crowd),
                    }
                )
        categories = [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


@dataclass(frozen=True, eq=False)
class Contents:
    """What a reader returns.

    classes: class names in the shared order.
    category_ids: the data set's id of each class.
    splits: the records of each split, by name. Data without splits have one split with the name "".
    notes: lines for the user.
    absent: splits that the data set names but does not have, with the message for a run that needs one.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int | str, ...]
    splits: Mapping[str, tuple[Record, ...]]
    notes: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set.

    layout: a name in FORMATS, or shapes.
    classes: class names in the shared order.
    category_ids: the data set's id of each class.
    splits: by name.
    notes: lines for the user.
    faults: all records that were repaired or skipped.
    absent: splits that the data set names but does not have, with the message for a run that needs one.
    divided: the image names of each split if the splits were made here, by data.val_fraction and data.test_fraction;
        otherwise None.
    """

    layout: str
    classes: tuple[str, ...]
    category_ids: tuple[int | str, ...]
    splits: Mapping[str, Split]
    notes: tuple[str, ...]
    faults: Faults
    absent: Mapping[str, str] = field(default_factory=dict)
    divided: Mapping[str, tuple[str, ...]] | None = None

    def find(self, name: str) -> Split | None:
        """The split of this name, or the only split with the same role: `val` also finds `valid` or `cards_val`."""
        if name in self.splits:
            return self.splits[name]
        wanted = ROLES.get(name.casefold())
        found = with_role(self.splits, wanted, exact=True) or with_role(self.splits, wanted, exact=False)
        return self.splits[found] if found is not None else None

    def split(self, name: str) -> Split:
        """The split that `find` finds. Raises UserError if there is none: why, or the names of the splits."""
        found = self.find(name)
        if found is not None:
            return found
        missing = name if name in self.absent else with_role(self.absent, ROLES.get(name.casefold()), exact=True)
        if missing is not None:
            raise UserError(self.absent[missing])
        raise UserError(
            f"the data set has no split {name!r}{nearest(name, self.splits)}; choose one of {', '.join(self.splits)}"
        )

    def held_out(self) -> Split | None:
        """The split for evaluation if none is named: `test`, or else `val`, or one with the same role; None without."""
        for exact in (True, False):
            for wanted in ("test", "val"):
                found = wanted if wanted in self.splits else with_role(self.splits, wanted, exact=exact)
                if found is not None:
                    return self.splits[found]
        return None

    def training_split(self, config: DataConfig) -> Split:
        """The split data.train_split, or `train`. Raises UserError if it does not exist or has no objects."""
        return _with_objects(self.split(config.train_split or "train"), "--data.train-split")

    def evaluation_split(self, config: DataConfig) -> Split:
        """The split data.eval_split; otherwise `test` if it exists, or `val`.

        The training split is only used if data.eval_split names it. Raises UserError if there is no such split or if it
        has no objects.
        """
        if config.eval_split is not None:
            return _with_objects(self.split(config.eval_split), "--data.eval-split")
        if (held_out := self.held_out()) is not None:
            return _with_objects(held_out, "--data.eval-split")
        for name, reason in self.absent.items():
            if role(name) in ("test", "val"):
                raise UserError(reason)
        raise UserError(
            f"the data set has neither a test nor a val split; choose one of {', '.join(self.splits)} with "
            "--data.eval-split, or hold out a part of the training images with --data.test-fraction 0.2"
        )


def _with_objects(split: Split, flag: str) -> Split:
    """The split. Raises UserError if it has no object. flag: chooses another split."""
    if not any((~record.crowds).any() for record in split.records):
        has_crowds = any(len(record.crowds) for record in split.records)
        problem = "all objects are crowds" if has_crowds else "no image has an object"
        raise UserError(f"split {split.name!r}: {problem}; correct the annotations or choose another split with {flag}")
    return split
