"""COCO JSON: `annotations/instances_<split>*.json` beside image folders, or Roboflow's `<split>/_annotations.coco.json`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detdistill.data.faults import Faults, number
from detdistill.data.images import look_all, settle
from detdistill.data.records import Contents, Objects, Record
from detdistill.errors import UserError

ROBOFLOW = "_annotations.coco.json"
PROBED = 50  # images looked for when the image folder is searched
PLAIN = ("train", "val", "valid", "test")  # annotations/train.json and its like are read too


@dataclass(frozen=True)
class Source:
    """The annotations of one split and the folders its images may be in, likeliest first."""

    annotations: Path
    folders: tuple[Path, ...]


def find(root: Path) -> dict[str, Source]:
    """Splits of a folder in COCO layout; empty where it is in none. Raises UserError where two files claim one split."""
    sources: dict[str, Source] = {}
    for split in PLAIN:
        if (root / split / ROBOFLOW).is_file():
            sources[split] = Source(root / split / ROBOFLOW, (root / split,))
    for path in sorted((root / "annotations").glob("*.json")):
        named = re.fullmatch(r"instances_(.+)|((?:train|valid|val|test)[-_]?\d*)", path.stem)
        if not named:
            continue  # captions, key points and image lists of the COCO download
        suffix = named[1] or named[2]  # train2017
        split = re.sub(r"[-_]?\d{4}$", "", suffix) or suffix
        if split in sources:
            raise UserError(
                f"{path}: {sources[split].annotations.name} is there for split {split!r} too; give explicit paths (data.{split})"
            )
        folders = (
            root / suffix,
            root / "images" / suffix,
            root / split,
            root / "images" / split,
            root / "images",
            root,
        )
        sources[split] = Source(path, folders)
    return sources


def read(sources: Mapping[str, Source], faults: Faults) -> Contents:
    """All splits. Category ids are kept; classes are in the order of their ids; areas are the annotations' own, as COCO counts them."""
    contents = {split: _load(source.annotations) for split, source in sources.items()}
    categories, notes = _categories({source.annotations: contents[split] for split, source in sources.items()})
    kinds = {category: index for index, category in enumerate(categories)}
    splits = {split: _records(source, contents[split], kinds, faults) for split, source in sources.items()}
    return Contents(tuple(categories.values()), tuple(categories), splits, tuple(notes))


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: can't read the annotations ({error.strerror}); correct the path") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); export the annotations again") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: COCO annotations are a mapping with images, annotations and categories; export them again"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(
                f"{path}: {key!r} is missing or no list; COCO annotations have images, annotations and categories"
            )
        if not all(isinstance(item, dict) for item in content[key]):
            raise UserError(f"{path}: {key!r} holds something else than mappings; export the annotations again")
    return content


def _categories(contents: Mapping[Path, Mapping[str, Any]]) -> tuple[dict[int, str], list[str]]:
    """Names by id over all files, in the order of ids, and lines for the user. What one file says must hold for the others."""
    names: dict[int, str] = {}
    origin: dict[int, Path] = {}
    parents, used = set(), set()
    for path, content in contents.items():
        for category in content["categories"]:
            id, name = category.get("id"), category.get("name")
            if isinstance(id, bool) or not isinstance(id, int) or not isinstance(name, str) or not name:
                raise UserError(f"{path}: category {category} needs an integer id and a name; correct 'categories'")
            if names.setdefault(id, name) != name:
                raise UserError(
                    f"{path}: category {id} is {name!r} but {names[id]!r} in {origin[id]}; give an id one name in all files"
                )
            origin.setdefault(id, path)
            parents.add(str(category.get("supercategory")))
        used |= {
            annotation["category_id"]
            for annotation in content["annotations"]
            if isinstance(annotation.get("category_id"), int)
        }
    notes = []
    if any(
        path.name == ROBOFLOW for path in contents
    ):  # its exports open with a category for the project, which has no object
        for id in [id for id, name in names.items() if name in parents and id not in used and len(names) > 1]:
            notes.append(f"category {id} ({names.pop(id)!r}) is left out: a heading of the export without an object")
    repeated = next((name for name in names.values() if list(names.values()).count(name) > 1), None)
    if repeated is not None or not names:
        problem = "there is no category" if repeated is None else f"several categories are called {repeated!r}"
        raise UserError(f"{next(iter(contents))}: {problem}; correct 'categories'")
    return dict(sorted(names.items())), notes


def _records(
    source: Source, content: Mapping[str, Any], kinds: Mapping[int, int], faults: Faults
) -> tuple[Record, ...]:
    entries = _images(source.annotations, content["images"], faults)
    known = {entry.get("id") for entry in content["images"] if isinstance(entry.get("id"), int)}
    annotations: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for position, annotation in enumerate(content["annotations"]):
        image = annotation.get("image_id")
        if isinstance(image, bool) or not isinstance(image, int) or image not in known:
            faults.bad(
                str(source.annotations),
                f"annotations[{position}]: image_id {image!r} is no image's id",
                "correct or remove it",
            )
            continue
        annotations.setdefault(image, []).append((position, annotation))
    folder = _folder(source, entries)
    paths = [folder / entry["file_name"] for entry in entries]
    records = []
    for path, entry, found in zip(paths, entries, look_all(paths, faults), strict=True):
        settled = settle(path, found, _declared(entry), faults, source.annotations.name)
        if settled is None:
            continue
        picture, size = settled
        objects = Objects.none()
        for position, annotation in annotations.get(entry["id"], []):
            _add(objects, annotation, kinds, size, (source.annotations, f"annotations[{position}]", path.name), faults)
        records.append(objects.record(entry["id"], entry["file_name"], size, picture))
    return tuple(records)


def _images(path: Path, entries: Sequence[dict[str, Any]], faults: Faults) -> list[dict[str, Any]]:
    """Entries with an integer id of their own and a file name."""
    sound: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        id, name = entry.get("id"), entry.get("file_name")
        if isinstance(id, bool) or not isinstance(id, int):
            faults.bad(str(path), f"images[{position}]: id {id!r} is no integer", "number the images with integers")
        elif not isinstance(name, str) or not name:
            faults.bad(str(path), f"images[{position}]: file_name is {name!r}", "name the image file")
        elif id in sound:
            faults.bad(
                str(path),
                f"images[{position}]: id {id} is {sound[id]['file_name']}'s already",
                "give every image an id of its own",
            )
        else:
            sound[id] = entry
    return list(sound.values())


def _declared(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) of an image's entry; None without either, 0 for one that is no number, which no file will match."""
    sides = [entry.get("height"), entry.get("width")]
    if sides == [None, None]:
        return None
    height, width = (int(number(side) or 0) for side in sides)
    return height, width


def _folder(source: Source, entries: Sequence[Mapping[str, Any]]) -> Path:
    """The first folder that holds one of the first images."""
    for folder in source.folders:
        if any((folder / entry["file_name"]).is_file() for entry in entries[:PROBED]):
            return folder
    if entries:
        looked = ", ".join(str(folder) for folder in source.folders)
        name = entries[0]["file_name"]
        raise UserError(
            f"{source.annotations}: no image of it is there (looked for {name} in {looked}); give explicit paths in the recipe"
        )
    return source.folders[0]


def _add(
    objects: Objects,
    annotation: Mapping[str, Any],
    kinds: Mapping[int, int],
    size: tuple[int, int],
    place: tuple[Path, str, str],
    faults: Faults,
) -> None:
    """One annotation. place: the JSON file, the position in it, the image's name."""
    path, where, image = place
    category, crowd, box = annotation.get("category_id"), annotation.get("iscrowd", 0), annotation.get("bbox")
    if isinstance(category, bool) or not isinstance(category, int) or category not in kinds:
        faults.bad(
            str(path),
            f"{where} ({image}): category_id {category!r} is not in 'categories'",
            "correct it or add the category",
        )
        return
    if crowd not in (0, 1):
        faults.bad(str(path), f"{where} ({image}): iscrowd is {crowd!r}", "it is 0 or 1")
        return
    numbers = [number(value) for value in box] if isinstance(box, list) else []
    if len(numbers) != 4 or any(value is None for value in numbers):
        faults.bad(str(path), f"{where} ({image}): bbox is {box!r}", "it is x, y, width, height: four finite numbers")
        return
    left, top, width, height = (value for value in numbers if value is not None)
    inside = faults.fit([left, top, left + width, top + height], size, image, f"bbox of {path.name} {where}")
    if inside is not None:
        area = number(annotation.get("area"))
        objects.add(inside, kinds[category], bool(crowd), area if area else None)
