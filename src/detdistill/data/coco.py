"""COCO JSON: `annotations/instances_<split>*.json` beside image folders.

Roboflow's `<split>/_annotations.coco.json` is read too.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detdistill.data.faults import Faults, Place, number
from detdistill.data.images import read_headers, resolve_image
from detdistill.data.records import Contents, Objects, Record
from detdistill.errors import UserError

ROBOFLOW = "_annotations.coco.json"
PROBED = 50  # number of images that are looked for in each candidate for the image folder
PLAIN = ("train", "val", "valid", "test")  # annotations/train.json and the like are also read


@dataclass(frozen=True)
class Source:
    """The files of one split.

    annotations: the JSON file.
    folders: where its images may be, the most likely folder first.
    """

    annotations: Path
    folders: tuple[Path, ...]


def find(root: Path) -> dict[str, Source]:
    """The splits of a folder in COCO layout by name, or {} if it has another layout.

    Raises UserError if two files belong to the same split.
    """
    sources: dict[str, Source] = {}
    for split in PLAIN:
        if (root / split / ROBOFLOW).is_file():
            sources[split] = Source(root / split / ROBOFLOW, (root / split,))
    for path in sorted((root / "annotations").glob("*.json")):
        name = re.fullmatch(r"instances_(.+)|((?:train|valid|val|test)[-_]?\d*)", path.stem)
        if not name:
            continue  # captions, key points and image lists of the COCO download
        suffix = name[1] or name[2]  # such as train2017
        split = re.sub(r"[-_]?\d{4}$", "", suffix) or suffix
        if split in sources:
            raise UserError(
                f"{path}: {sources[split].annotations.name} also belongs to split {split!r}; "
                f"remove one of the files or give explicit paths with data.{split}"
            )
        images = root / "images"
        folders = (root / suffix, images / suffix, root / split, images / split, images, root)
        sources[split] = Source(path, folders)
    return sources


def read(sources: Mapping[str, Source], faults: Faults) -> Contents:
    """All splits. The category ids are those of the files, and the classes are in the order of their ids.

    The areas are those of the annotations, because COCO measures objects by them.
    """
    contents = {split: _load(source.annotations) for split, source in sources.items()}
    names, notes = _categories({source.annotations: contents[split] for split, source in sources.items()})
    class_indices = {category: index for index, category in enumerate(names)}
    splits = {split: _records(source, contents[split], class_indices, faults) for split, source in sources.items()}
    return Contents(tuple(names.values()), tuple(names), splits, tuple(notes))


def _load(path: Path) -> dict[str, Any]:
    """The content of a COCO JSON file. Raises UserError if a main field is missing or has a wrong type."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: can't read the annotations ({error.strerror}); correct the path") from None
    except ValueError as error:
        raise UserError(f"{path}: the file is not JSON ({error}); export the annotations again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: the file is not a mapping with images, annotations and categories; export it again")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{path}: field {key!r} is missing or not a list; "
                "a COCO file has images, annotations and categories, so export it again"
            )
        if not all(isinstance(item, dict) for item in content[key]):
            raise UserError(f"{path}: field {key!r} has entries that are not mappings; export the annotations again")
    return content


def _categories(contents: Mapping[Path, Mapping[str, Any]]) -> tuple[dict[int, str], list[str]]:
    """The category names of all files by id, in the order of the ids, and notes for the user.

    Raises UserError if the files contradict each other.
    """
    names: dict[int, str] = {}
    origin: dict[int, Path] = {}
    parents: set[str] = set()
    used: set[int] = set()
    for path, content in contents.items():
        for position, category in enumerate(content["categories"]):
            id, name = category.get("id"), category.get("name")
            record = f"{path}: categories[{position}]"
            if isinstance(id, bool) or not isinstance(id, int):
                raise UserError(f"{record}: id is {id!r}; write an integer")
            if not isinstance(name, str) or not name:
                raise UserError(f"{record}: name is {name!r}; write the name of the class")
            if names.setdefault(id, name) != name:
                raise UserError(
                    f"{record}: id {id} is {name!r}, but {names[id]!r} in {origin[id]}; "
                    "give an id the same name in all files"
                )
            origin.setdefault(id, path)
            parents.add(str(category.get("supercategory")))
        category_ids = [annotation.get("category_id") for annotation in content["annotations"]]
        used |= {id for id in category_ids if isinstance(id, int)}
    notes = []
    if any(path.name == ROBOFLOW for path in contents):
        # Roboflow's exports begin with a category for the project, which has no objects.
        is_only_category = len(names) == 1
        headings = [id for id, name in names.items() if name in parents and id not in used]
        for id in [] if is_only_category else headings:
            notes.append(f"category {id} ({names.pop(id)!r}) is left out: it is a heading without objects")
    _check_names(next(iter(contents)), list(names.values()))
    return dict(sorted(names.items())), notes


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise UserError if there is no category or if two categories have the same name."""
    if not names:
        raise UserError(f"{path}: field 'categories' has no category; add the classes")
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{path}: field 'categories' has several categories with the name {name!r}; give each its own name"
            )


def _records(
    source: Source, content: Mapping[str, Any], class_indices: Mapping[int, int], faults: Faults
) -> tuple[Record, ...]:
    """The records of one split."""
    entries = _image_entries(source.annotations, content["images"], faults)
    annotations = _annotations_by_image(source.annotations, content, faults)
    folder = _image_folder(source, entries)
    paths = [folder / entry["file_name"] for entry in entries]
    records = []
    for path, entry, header in zip(paths, entries, read_headers(paths, faults), strict=True):
        resolved = resolve_image(path, header, _declared_size(entry), faults, source.annotations.name)
        if resolved is None:
            continue
        image, size = resolved
        objects = Objects.empty()
        for position, annotation in annotations.get(entry["id"], []):
            place = Place(str(source.annotations), f"annotations[{position}] ({path.name})", path.name)
            _add_object(objects, annotation, class_indices, size, place, faults)
        records.append(objects.to_record(entry["id"], entry["file_name"], size, image))
    return tuple(records)


def _annotations_by_image(
    path: Path, content: Mapping[str, Any], faults: Faults
) -> dict[int, list[tuple[int, Mapping[str, Any]]]]:
    """The annotations with their positions in the file, by the id of their image."""
    image_ids = {entry.get("id") for entry in content["images"] if isinstance(entry.get("id"), int)}
    annotations: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for position, annotation in enumerate(content["annotations"]):
        image = annotation.get("image_id")
        if isinstance(image, bool) or not isinstance(image, int) or image not in image_ids:
            problem = f"annotations[{position}]: image_id {image!r} is not the id of an image"
            faults.reject(str(path), problem, "correct it or remove the annotation")
            continue
        annotations.setdefault(image, []).append((position, annotation))
    return annotations


def _image_entries(path: Path, entries: Sequence[dict[str, Any]], faults: Faults) -> list[dict[str, Any]]:
    """The image entries that have a file name and an integer id that no other entry has."""
    readable: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        id, name = entry.get("id"), entry.get("file_name")
        record = f"images[{position}]"
        if isinstance(id, bool) or not isinstance(id, int):
            faults.reject(str(path), f"{record}: id {id!r} is not an integer", "number the images with integers")
        elif not isinstance(name, str) or not name:
            faults.reject(str(path), f"{record}: file_name is {name!r}", "write the name of the image file")
        elif id in readable:
            problem = f"{record}: id {id} is also the id of {readable[id]['file_name']}"
            faults.reject(str(path), problem, "give each image its own id")
        else:
            readable[id] = entry
    return list(readable.values())


def _declared_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) in an image entry, or None if the entry has neither.

    A side that is not a number becomes 0, which equals the size of no file.
    """
    sides = [entry.get("height"), entry.get("width")]
    if sides == [None, None]:
        return None
    height, width = [int(number(side) or 0) for side in sides]
    return height, width


def _image_folder(source: Source, entries: Sequence[Mapping[str, Any]]) -> Path:
    """The first folder that has one of the first images. Raises UserError if no folder has one."""
    for folder in source.folders:
        if any((folder / entry["file_name"]).is_file() for entry in entries[:PROBED]):
            return folder
    if entries:
        folders = ", ".join(dict.fromkeys(map(str, source.folders)))
        raise UserError(
            f"{source.annotations}: images: no image was found (looked for {entries[0]['file_name']} in {folders}); "
            "move the images or give explicit paths in the recipe"
        )
    return source.folders[0]


def _add_object(
    objects: Objects,
    annotation: Mapping[str, Any],
    class_indices: Mapping[int, int],
    size: tuple[int, int],
    place: Place,
    faults: Faults,
) -> None:
    """Add the object of one annotation, or reject it."""
    category, crowd, box = annotation.get("category_id"), annotation.get("iscrowd", 0), annotation.get("bbox")
    if isinstance(category, bool) or not isinstance(category, int) or category not in class_indices:
        problem = f"{place.record}: category_id {category!r} is not in 'categories'"
        faults.reject(place.file, problem, "correct it or add the category")
        return
    if crowd not in (0, 1):
        faults.reject(place.file, f"{place.record}: iscrowd is {crowd!r}", "write 0 or 1")
        return
    numbers = [number(value) for value in box] if isinstance(box, list) else []
    if len(numbers) != 4 or any(value is None for value in numbers):
        problem = f"{place.record}: bbox is {box!r}"
        faults.reject(place.file, problem, "write [x, y, width, height] with four finite numbers")
        return
    left, top, width, height = (value for value in numbers if value is not None)
    inside = faults.clip_box([left, top, left + width, top + height], size, place, "bbox")
    if inside is not None:
        area = number(annotation.get("area"))
        objects.add(inside, class_indices[category], bool(crowd), area if area else None)
