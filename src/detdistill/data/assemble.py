"""From annotations to records: the images are looked at, and the objects are clipped to them."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from detdistill.data.faults import Faults
from detdistill.data.images import read_headers, resolve_image
from detdistill.data.records import Objects, Record

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Item:
    """One image with its annotations.

    image: the file. name: of the record.
    annotations: the name of the annotation file, for messages; empty if it says nothing about the image.
    declared: (height, width) in the annotations, or None.
    objects: the objects for an image of (height, width).
    boxes: the boxes as annotated, xyxy in pixels, which show whether the annotations were made on the upright picture.
    """

    image: Path
    name: str
    annotations: str
    declared: tuple[int, int] | None
    objects: Callable[[tuple[int, int]], Objects]
    boxes: Sequence[Sequence[float]] = ()


def assemble(items: Mapping[Key, Item | None], faults: Faults) -> dict[Key, Record]:
    """The records of the images that can be read. The ids are positions and begin at 1. None: left out already."""
    present = {key: (id, item) for id, (key, item) in enumerate(items.items(), start=1) if item is not None}
    headers = read_headers([item.image for _, item in present.values()], faults)
    records = {}
    for (key, (id, item)), header in zip(present.items(), headers, strict=True):
        resolved = resolve_image(item.image, header, item.declared, faults, item.annotations, item.boxes)
        if resolved is not None:
            image, size = resolved
            records[key] = item.objects(size).to_record(id, item.name, size, image)
    return records


def in_splits(splits: Mapping[str, Iterable[Key]], records: Mapping[Key, Record]) -> dict[str, tuple[Record, ...]]:
    """The records of each split, without those that are left out."""
    return {name: tuple(records[key] for key in keys if key in records) for name, keys in splits.items()}


def numbered(classes: Sequence[str]) -> tuple[int, ...]:
    """Category ids from 1, for layouts without ids."""
    return tuple(range(1, len(classes) + 1))
