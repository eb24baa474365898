"""YOLO: `data.yaml` with path, train, val, test and names; `images/` beside `labels/`; one text line per object."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detdistill.data.faults import Faults, Place, number, parsed
from detdistill.data.images import images_in, read_headers, resolve_image
from detdistill.data.records import Contents, Objects, Record
from detdistill.errors import UserError
from detdistill.recipe import yaml_problem

SPLITS = ("train", "val", "valid", "test")
YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class Sources:
    """The files of a data set.

    names: class names by class number.
    splits: for each split, (image, label file) of each image. The label file may be absent.
    notes: lines for the user.
    """

    names: Mapping[int, str]
    splits: Mapping[str, Sequence[tuple[Path, Path]]]
    notes: tuple[str, ...] = ()


def find(root: Path) -> Path | None:
    """The data.yaml of a folder, or its only YAML file with class names and a train split, or None."""
    if root.suffix in (".yaml", ".yml") and root.is_file():
        return root
    for name in YAMLS:
        if (root / name).is_file():
            return root / name
    candidates = []
    for path in sorted(root.glob("*.y*ml")):
        content = _load_yaml(path)
        if isinstance(content, dict) and {"names", "train"} <= content.keys():
            candidates.append(path)
    return candidates[0] if len(candidates) == 1 else None


def sources(path: Path) -> Sources:
    """The files that a data.yaml names. Raises UserError with the key if something is wrong."""
    content = _load_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: the file is not a YAML mapping; write the keys path, train, val, test and names")
    notes = []
    root = path.parent / str(content.get("path") or "")
    if not root.is_dir():
        notes.append(
            f"{path.name}: path is {content['path']}, which does not exist; "
            f"the splits are looked for beside {path.name}"
        )
        root = path.parent
    splits = {}
    for split in SPLITS:
        entries = content.get(split)
        if entries:
            entries = entries if isinstance(entries, list) else [entries]
            images = [image for entry in entries for image in _images_of(root, path, split, entry)]
            splits[split] = [(image, _label_path(image)) for image in dict.fromkeys(images)]
            _check_labels(path, split, splits[split])
    if not splits:
        raise UserError(f"{path}: train, val and test are missing; give the image folders of the splits")
    return Sources(class_names(path), splits, tuple(notes))


def class_names(path: Path) -> dict[int, str]:
    """Class names by class number.

    path: a data.yaml, where `names` is a list or a mapping from numbers, or a text file with one name per line.
    Raises UserError if the names are missing or not unique.
    """
    names: Any
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    else:
        content = _load_yaml(path)
        names = content.get("names") if isinstance(content, dict) else None
        count = content.get("nc") if isinstance(content, dict) else None
        if names and count is not None and count != len(names):
            raise UserError(f"{path}: nc is {count}, but 'names' has {len(names)} names; correct one of them")
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not numbered:
        raise UserError(f"{path}: 'names' is missing; list the class names")
    if not all(isinstance(key, int) and key >= 0 for key in numbered):
        keys = ", ".join(map(str, numbered))
        raise UserError(f"{path}: 'names' has the keys {keys}; use class numbers from 0 as keys")
    sorted_names = {key: str(name) for key, name in sorted(numbered.items())}
    if len(set(sorted_names.values())) < len(sorted_names):
        raise UserError(f"{path}: 'names' has the same name twice; give each class its own name")
    return sorted_names


def pairs_in(annotations: Path, images: Path) -> list[tuple[Path, Path]]:
    """The split of two explicit folders: every image, with its label file at the same place below `annotations`."""
    return [(image, annotations / image.relative_to(images).with_suffix(".txt")) for image in images_in(images)]


def read(sources: Sources, faults: Faults) -> Contents:
    """All splits. The category ids are the class numbers. An image without a label file has no objects.

    A line is `class cx cy w h` in 0..1 of the upright image, or a polygon `class x1 y1 x2 y2 x3 y3 ...`. Of a polygon
    the bounding box is used.
    """
    class_indices = {category: index for index, category in enumerate(sources.names)}
    pairs = sorted({pair for split in sources.splits.values() for pair in split})
    records: dict[tuple[Path, Path], Record] = {}
    headers = read_headers([image for image, _ in pairs], faults)
    for id, (pair, header) in enumerate(zip(pairs, headers, strict=True), start=1):
        path, labels = pair
        resolved = resolve_image(path, header, None, faults, "")
        if resolved is not None:
            image, size = resolved
            objects = _read_objects(labels, class_indices, size, path.name, faults)
            records[pair] = objects.to_record(id, path.name, size, image)
    splits = {name: tuple(records[pair] for pair in split if pair in records) for name, split in sources.splits.items()}
    return Contents(tuple(sources.names.values()), tuple(sources.names), splits, sources.notes)


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't read the file ({error.strerror}); correct the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: invalid YAML: {yaml_problem(error)}") from None


def _images_of(root: Path, path: Path, split: str, entry: object) -> list[Path]:
    """The images of one entry of a split, which is a folder or a text file that lists images."""
    place = root / str(entry)
    if not place.exists() and str(entry).startswith("../"):
        place = root / str(entry)[3:]  # Roboflow writes ../train/images for a folder beside data.yaml
    if place.is_dir():
        return images_in(place)
    if place.is_file() and place.suffix == ".txt":
        lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
        return [place.parent / line.strip() for line in lines if line.strip()]
    raise UserError(
        f"{path}: {split}: {entry} is neither a folder nor a list of images (looked for {place}); correct or remove it"
    )


def _label_path(image: Path) -> Path:
    """The label file of an image: labels/a/b.txt for images/a/b.jpg.

    If no folder above the image is named `images`, it is the text file beside the image.
    """
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _check_labels(path: Path, split: str, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Raise UserError if a split has images but no label file at all."""
    if pairs and not any(label.is_file() for _, label in pairs):
        folder = min(label.parent for _, label in pairs)
        raise UserError(
            f"{path}: {split}: none of its {len(pairs)} images has a label file (looked in {folder}); "
            "put labels/ beside images/"
        )


def _read_objects(
    path: Path, class_indices: Mapping[int, int], size: tuple[int, int], image: str, faults: Faults
) -> Objects:
    """The objects of a label file, clipped to the image of (height, width)."""
    objects = Objects.empty()
    height, width = size
    for record, category, (left, top, right, bottom) in _lines(path, class_indices, faults):
        corners = [left * width, top * height, right * width, bottom * height]
        place = Place(str(path), record, image)
        inside = faults.clip_box(corners, size, place, "box (written in 0..1 of the image, here in pixels)")
        if inside is not None:
            objects.add(inside, class_indices[category])
    return objects


def _lines(
    path: Path, class_indices: Mapping[int, int], faults: Faults
) -> Iterator[tuple[str, int, tuple[float, float, float, float]]]:
    """The line number as text, the class number and the corners in 0..1 of each object."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        faults.reject(str(path), f"can't read the labels ({error})", "write the file again as UTF-8 text")
        return
    for position, line in enumerate(lines, start=1):
        record = f"line {position}"
        values = [number(parsed(word)) for word in line.split()]
        if not values:
            continue
        is_polygon = len(values) >= 7 and len(values) % 2 == 1
        if any(value is None for value in values) or not (len(values) == 5 or is_polygon):
            problem = f"{record}: {line.strip()!r} is neither a box nor a polygon"
            faults.reject(str(path), problem, "write class cx cy w h, all finite numbers")
            continue
        category, *coordinates = (value for value in values if value is not None)
        if category not in class_indices:
            problem = f"{record}: class {category:g} is not in 'names'"
            faults.reject(str(path), problem, "correct the class or add its name")
            continue
        if is_polygon:
            xs, ys = coordinates[::2], coordinates[1::2]
            yield record, int(category), (min(xs), min(ys), max(xs), max(ys))
        else:
            cx, cy, w, h = coordinates
            yield record, int(category), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
