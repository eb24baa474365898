"""YOLO: `data.yaml` with path, train, val, test and names; `images/` beside `labels/`; a text line an object."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detdistill.data.faults import Faults, number, parsed
from detdistill.data.images import images_in, look_all, settle
from detdistill.data.records import Contents, Objects, Record
from detdistill.errors import UserError

SPLITS = ("train", "val", "valid", "test")
YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class Sources:
    """Class names by number, and for each split its images with the label file each has or lacks."""

    names: Mapping[int, str]
    splits: Mapping[str, Sequence[tuple[Path, Path]]]
    notes: tuple[str, ...] = ()


def find(root: Path) -> Path | None:
    """The data.yaml of a folder, or the one YAML file in it that has class names."""
    if root.suffix in (".yaml", ".yml") and root.is_file():
        return root
    for name in YAMLS:
        if (root / name).is_file():
            return root / name
    named = [
        path
        for path in sorted(root.glob("*.y*ml"))
        if isinstance(_peek(path), dict) and {"names", "train"} <= _peek(path).keys()
    ]
    return named[0] if len(named) == 1 else None


def sources(path: Path) -> Sources:
    """What a data.yaml names. Raises UserError with the key where it is wrong."""
    content = _peek(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a YAML mapping; it has the keys path, train, val, test and names")
    notes = []
    root = path.parent / str(content.get("path") or "")
    if not root.is_dir():
        notes.append(
            f"{path.name} says path: {content['path']}, which is not there; its splits are looked for beside it"
        )
        root = path.parent
    splits = {}
    for split in SPLITS:
        entries = content.get(split)
        if entries:
            entries = entries if isinstance(entries, list) else [entries]
            images = [image for entry in entries for image in _images(root, path, split, entry)]
            splits[split] = [(image, _label(image)) for image in dict.fromkeys(images)]
            _check_labels(path, split, splits[split])
    if not splits:
        raise UserError(f"{path}: no split; give the image folders under train, val and test")
    return Sources(class_names(path), splits, tuple(notes))


def class_names(path: Path) -> dict[int, str]:
    """Class names by number, from a data.yaml (a list, or a mapping from numbers) or from a text file with a name a line."""
    names: Any
    if path.suffix == ".txt":
        names = [
            line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
    else:
        content = _peek(path)
        names = content.get("names") if isinstance(content, dict) else None
        count = content.get("nc") if isinstance(content, dict) else None
        if names and count is not None and count != len(names):
            raise UserError(f"{path}: nc is {count} but there are {len(names)} names; correct one of them")
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not numbered:
        raise UserError(f"{path}: 'names' is missing; list the class names")
    if not all(isinstance(key, int) and key >= 0 for key in numbered):
        raise UserError(
            f"{path}: 'names' maps class numbers from 0 to names; got the keys {', '.join(map(str, numbered))}"
        )
    named = {key: str(name) for key, name in sorted(numbered.items())}
    if len(set(named.values())) < len(named):
        raise UserError(f"{path}: 'names' has one name twice; give every class its own")
    return named


def listed(annotations: Path, images: Path) -> list[tuple[Path, Path]]:
    """The split of explicit folders: every image there is, its label file at the same place below `annotations`."""
    return [(image, annotations / image.relative_to(images).with_suffix(".txt")) for image in images_in(images)]


def read(found: Sources, faults: Faults) -> Contents:
    """All splits. Category ids are the class numbers. An image without a label file is background.

    A line is `class cx cy w h` in 0..1 of the upright image, or `class x1 y1 x2 y2 x3 y3 ...`, a polygon, whose bounding box is read.
    """
    kinds = {category: index for index, category in enumerate(found.names)}
    everything = sorted({pair for pairs in found.splits.values() for pair in pairs})
    records: dict[tuple[Path, Path], Record] = {}
    headers = look_all([image for image, _ in everything], faults)
    for id, (pair, header) in enumerate(zip(everything, headers, strict=True), start=1):
        settled = settle(pair[0], header, None, faults, "")
        if settled is not None:
            picture, size = settled
            records[pair] = _objects(pair[1], kinds, size, faults).record(id, pair[0].name, size, picture)
    splits = {name: tuple(records[pair] for pair in pairs if pair in records) for name, pairs in found.splits.items()}
    return Contents(tuple(found.names.values()), tuple(found.names), splits, found.notes)


def _peek(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't read it ({error.strerror}); correct the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}); correct it") from None


def _images(root: Path, path: Path, split: str, entry: object) -> list[Path]:
    """Images of one entry of a split: a folder, or a text file that lists images."""
    place = root / str(entry)
    if not place.exists() and str(entry).startswith("../"):
        place = root / str(entry)[3:]  # Roboflow writes ../train/images for the folder beside the file
    if place.is_dir():
        return images_in(place)
    if place.is_file() and place.suffix == ".txt":
        lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
        return [place.parent / line.strip() for line in lines if line.strip()]
    raise UserError(
        f"{path}: {split}: {entry} is neither a folder nor a list of images (looked for {place}); correct or remove it"
    )


def _label(image: Path) -> Path:
    """images/a/b.jpg to labels/a/b.txt; without a folder `images` above it, the text file beside it."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _check_labels(path: Path, split: str, pairs: Sequence[tuple[Path, Path]]) -> None:
    folders = {label.parent for _, label in pairs}
    if pairs and not any(label.is_file() for _, label in pairs):
        raise UserError(
            f"{path}: {split}: not one label file for its {len(pairs)} images (looked in {min(folders)}); put labels/ beside images/"
        )


def _objects(path: Path, kinds: Mapping[int, int], size: tuple[int, int], faults: Faults) -> Objects:
    objects = Objects.none()
    height, width = size
    for where, category, (left, top, right, bottom) in _lines(path, kinds, faults):
        corners = [left * width, top * height, right * width, bottom * height]
        inside = faults.fit(corners, size, str(path), f"box of {where} (0..1 of the image)")
        if inside is not None:
            objects.add(inside, kinds[category])
    return objects


def _lines(
    path: Path, kinds: Mapping[int, int], faults: Faults
) -> Iterator[tuple[str, int, tuple[float, float, float, float]]]:
    """The line, the class number and the corners in 0..1 of each object."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        faults.bad(str(path), f"can't read the labels ({error})", "write them again as text")
        return
    for position, line in enumerate(lines, start=1):
        where = f"line {position}"
        values = [number(parsed(word)) for word in line.split()]
        if not values:
            continue
        polygon = len(values) >= 7 and len(values) % 2 == 1
        if any(value is None for value in values) or not (len(values) == 5 or polygon):
            faults.bad(str(path), f"{where} is {line.strip()!r}", "a line is: class cx cy w h, all finite numbers")
            continue
        category, *spots = (value for value in values if value is not None)
        if category not in kinds:
            faults.bad(str(path), f"{where}: class {category:g} is not in 'names'", "correct it or add the name")
            continue
        if polygon:
            yield where, int(category), (min(spots[::2]), min(spots[1::2]), max(spots[::2]), max(spots[1::2]))
        else:
            cx, cy, w, h = spots
            yield where, int(category), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
