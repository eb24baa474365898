"""LabelMe: one JSON file per image with a list of shapes, beside the image or in another folder."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from detdistill.data.annotated import AnnotatedObject, AnnotationFile, Kind, Sources, read_annotated
from detdistill.data.faults import Faults, number, size_of
from detdistill.data.locate import name_parts
from detdistill.data.records import Contents
from detdistill.data.sidecars import Named, Siblings, grouped, image_folders
from detdistill.data.tree import probed, tree
from detdistill.text import read_text

SHAPES, IMAGE = '"shapes"', ('"imagePath"', '"imageHeight"')  # keys of every file
EDGE = 65536  # bytes at both ends of a file that are searched for the keys; between them may be the whole image


def search(root: Path) -> Sources | None:
    """The JSON files anywhere in a folder, or None if there are none of LabelMe. Folders such as `train` are splits."""
    listed = tree(root)
    paths = listed.ending(".json")
    if not any(_is_labelme(path) for path in probed(paths)):
        return None
    paths = [path for path in paths if _is_labelme(path)]
    images = Siblings(listed.images, listed.parts)
    splits, notes = grouped(listed, [(path, images.find(path)) for path in paths])
    return Sources(splits, image_folders(listed), tuple(notes), tuple(listed.images))


def read(sources: Sources, faults: Faults) -> Contents:
    """All splits. The classes are the labels in all splits, sorted. Their category ids begin at 1.

    A rectangle and a circle give their box, every other shape the box around its points. Shapes of the same label and
    the same group are parts of one object.
    """
    return read_annotated(sources, faults, KIND)


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
    shapes: dict[tuple[str, object], AnnotatedObject] = {}
    for position, item in enumerate(items):
        shape = _read_shape(item, f"shapes[{position}]", path, faults)
        if shape is not None:
            group = item.get("group_id")
            key = (shape.name, ("group", group) if isinstance(group, int) else position)
            shapes[key] = _united(shapes[key], shape) if key in shapes else shape
    image, sides = content.get("imagePath"), [number(content.get(name)) for name in ("imageHeight", "imageWidth")]
    return AnnotationFile(tuple(shapes.values()), size_of(*sides), image if isinstance(image, str) else "")


def _read_shape(item: Any, record: str, path: Path, faults: Faults) -> AnnotatedObject | None:
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
    return AnnotatedObject(label, corners, f"{record} ({label})")


def _united(first: AnnotatedObject, second: AnnotatedObject) -> AnnotatedObject:
    """One object of two shapes."""
    left, top, right, bottom = zip(first.corners, second.corners, strict=True)
    return replace(first, corners=(min(left), min(top), max(right), max(bottom)))


KIND = Kind(
    _read_file,
    _image_of,
    box="shape",
    no_objects="no JSON file has a shape with a label; label the images first",
)
