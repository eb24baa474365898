"""LabelMe: one JSON file per image with a list of shapes, beside the image or in another folder."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detdistill.data.assemble import Item, assemble, in_splits, numbered
from detdistill.data.faults import Faults, Place, number, size_of
from detdistill.data.locate import name_parts
from detdistill.data.records import Contents, Objects
from detdistill.data.sidecars import Named, Pair, Siblings, check_unique, grouped, image_folders, without_annotations
from detdistill.data.tree import tree
from detdistill.errors import UserError
from detdistill.text import read_text

PROBED = 5  # files that are looked at
SHAPES, IMAGE = '"shapes"', ('"imagePath"', '"imageHeight"')  # keys of every file
EDGE = 65536  # bytes at both ends of a file that are searched for the keys; between them may be the whole image


@dataclass(frozen=True)
class Shape:
    """One object. record: its position in the file, for messages. corners: xyxy in pixels."""

    label: str
    corners: tuple[float, float, float, float]
    record: str


@dataclass(frozen=True)
class AnnotationFile:
    """The content of one file. image: as the file names it. declared: (height, width) of the image, or None."""

    shapes: tuple[Shape, ...]
    image: str
    declared: tuple[int, int] | None


@dataclass(frozen=True)
class Sources:
    """The files of a data set.

    splits: for each split, (JSON file, image of the same name or None).
    folders: where images are looked for by the name in a JSON file.
    images: all images of the folder, to tell those without annotations.
    notes: lines for the user.
    """

    splits: Mapping[str, Sequence[Pair]]
    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def search(root: Path) -> Sources | None:
    """The JSON files anywhere in a folder, or None if there are none of LabelMe. Folders such as `train` are splits."""
    listed = tree(root)
    paths = listed.ending(".json")
    probed = paths[:: max(1, len(paths) // PROBED)]
    if not any(_is_labelme(path) for path in probed):
        return None
    paths = [path for path in paths if _is_labelme(path)]
    images = Siblings(listed.images, listed.parts)
    splits, notes = grouped(listed, [(path, images.find(path)) for path in paths])
    return Sources(splits, image_folders(listed), tuple(listed.images), tuple(notes))


def read(sources: Sources, faults: Faults) -> Contents:
    """All splits. The classes are the labels in all splits, sorted. Their category ids begin at 1.

    A rectangle and a circle give their box, every other shape the box around its points. Shapes of the same label and
    the same group are parts of one object.
    """
    pairs = dict(sorted(dict(pair for split in sources.splits.values() for pair in split).items()))
    files = {path: _read_file(path, faults) for path in pairs}
    classes = tuple(sorted({shape.label for file in files.values() if file for shape in file.shapes}))
    if not classes:
        raise UserError(f"{next(iter(pairs)).parent}: no JSON file has a shape with a label; label the images first")
    class_indices = {name: index for index, name in enumerate(classes)}
    named = Named(sources.folders)
    images = {path: _image_of(path, files[path], image, named) for path, image in pairs.items()}
    check_unique(images.items())
    items = {path: _item(path, files[path], image, class_indices, faults) for path, image in images.items()}
    records = assemble(items, faults)
    splits = in_splits({name: [path for path, _ in split] for name, split in sources.splits.items()}, records)
    notes = (*sources.notes, *without_annotations(sources.images, images.values(), "file"))
    return Contents(classes, numbered(classes), splits, notes)


def _item(
    path: Path, file: AnnotationFile | None, image: Path, class_indices: Mapping[str, int], faults: Faults
) -> Item | None:
    """An image with its annotations, or None if they can't be read."""
    if file is None:
        return None

    def objects(size: tuple[int, int]) -> Objects:
        collected = Objects.empty()
        for shape in file.shapes:
            inside = faults.clip_box(shape.corners, size, Place(str(path), shape.record, image.name), "shape")
            if inside is not None:
                collected.add(inside, class_indices[shape.label])
        return collected

    boxes = [list(map(float, shape.corners)) for shape in file.shapes]
    return Item(image, image.name, path.name, file.declared, objects, boxes)


def _is_labelme(path: Path) -> bool:
    """True if a JSON file has LabelMe's keys near its beginning or its end."""
    with path.open("rb") as file:
        content = file.read(EDGE)
        file.seek(0, 2)
        file.seek(max(EDGE, file.tell() - EDGE))
        content += file.read()
    text = content.replace(b"\x00", b"").decode("latin-1")  # of UTF-16, the keys stay
    return SHAPES in text and any(key in text for key in IMAGE)


def _image_of(path: Path, file: AnnotationFile | None, image: Path | None, named: Named) -> Path:
    """The image that a JSON file names, or else the image of the same name as the file."""
    name = file.image if file is not None else ""
    found = named.beside(path, name) or (None if image is not None else named.anywhere(name))
    if found is not None:
        straight = Path(os.path.normpath(found))  # without `..`, to recognize the image among those of the folder
        return straight if straight.is_file() else found
    return image or path.parent / (name_parts(name) or [f"{path.stem}.jpg"])[-1]


def _read_file(path: Path, faults: Faults) -> AnnotationFile | None:
    """The content of a JSON file, or None if it can't be read."""
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        faults.reject(str(path), f"can't read the file ({error.strerror})", "restore it")
        return None
    except ValueError as error:
        faults.reject(str(path), f"the file is not JSON ({error})", "save the annotations again")
        return None
    items = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(items, list):
        faults.reject(str(path), "'shapes' is missing or not a list", "save the annotations again")
        return None
    shapes: dict[tuple[str, object], Shape] = {}
    for position, item in enumerate(items):
        shape = _read_shape(item, f"shapes[{position}]", path, faults)
        if shape is not None:
            group = item.get("group_id")
            key = (shape.label, ("group", group) if isinstance(group, int) else position)
            shapes[key] = _united(shapes[key], shape) if key in shapes else shape
    image, sides = content.get("imagePath"), [number(content.get(name)) for name in ("imageHeight", "imageWidth")]
    return AnnotationFile(tuple(shapes.values()), image if isinstance(image, str) else "", size_of(*sides))


def _read_shape(item: Any, record: str, path: Path, faults: Faults) -> Shape | None:
    """One shape, or None if it can't be read."""
    label = item.get("label") if isinstance(item, dict) else None
    if not isinstance(label, str) or not label.strip():
        faults.reject(str(path), f"{record}: label is {label!r}", "write the name of its class")
        return None
    label = label.strip()
    points = item.get("points")
    pairs = points if isinstance(points, list) and points else [None]
    numbers = [
        [number(value) for value in point] if isinstance(point, list) and len(point) == 2 else [None] for point in pairs
    ]
    if any(value is None for point in numbers for value in point):
        faults.reject(str(path), f"{record} ({label}): points are {points!r}"[:200], "write pairs of finite numbers")
        return None
    xs, ys = [float(point[0] or 0) for point in numbers], [float(point[1] or 0) for point in numbers]
    corners = (min(xs), min(ys), max(xs), max(ys))
    if item.get("shape_type") == "circle" and len(xs) == 2:  # the center, and a point of the circle
        radius = math.dist((xs[0], ys[0]), (xs[1], ys[1]))
        corners = (xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius)
    return Shape(label, corners, f"{record} ({label})")


def _united(first: Shape, second: Shape) -> Shape:
    """One object of two shapes."""
    left, top, right, bottom = zip(first.corners, second.corners, strict=True)
    return Shape(first.label, (min(left), min(top), max(right), max(bottom)), first.record)
