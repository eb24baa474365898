"""Pascal VOC: `Annotations/*.xml`, `JPEGImages`, and splits by name in `ImageSets/Main/*.txt`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from detdistill.data.faults import Faults, number, parsed
from detdistill.data.images import SUFFIXES, look_all, settle
from detdistill.data.records import Contents, Objects, Record
from detdistill.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Thing:
    """One object as it stands in the file."""

    name: str
    corners: tuple[float | str | None, ...]
    difficult: bool
    where: str


@dataclass(frozen=True)
class Sheet:
    """One annotation file, read: the objects, and (height, width) where it gives them."""

    things: tuple[Thing, ...]
    declared: tuple[int, int] | None


def find(root: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Splits of a folder in VOC layout: for each image its annotation file and the folder of its picture; empty where it is in none.

    A split is a file in ImageSets/Main, whatever its name; `<class>_train.txt` and its like, VOC's lists by class, are not splits.
    """
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    if not lists or not (root / "Annotations").is_dir() or not (root / "JPEGImages").is_dir():
        return {}
    splits = {}
    for path in lists:
        if re.search(r"_(train|val|trainval|test)$", path.stem):
            continue
        stems = [
            line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        splits[path.stem] = [
            (root / "Annotations" / f"{stem}.xml", root / "JPEGImages") for stem in dict.fromkeys(stems)
        ]
    return splits


def listed(annotations: Path, images: Path) -> list[tuple[Path, Path]]:
    """The split of explicit folders: every annotation file there is."""
    return [(path, images) for path in sorted(annotations.glob("*.xml"))]


def read(sources: Mapping[str, Sequence[tuple[Path, Path]]], faults: Faults) -> Contents:
    """All splits. Classes are the names found in any split, sorted, with category ids from 1.

    Corners are pixel indices from 1, both inside the box: (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax).
    An object marked `difficult` is kept as a crowd: no training target, and neither a hit nor a miss in the evaluation.
    An image in several splits is read once and has one id.
    """
    everything = sorted({pair for pairs in sources.values() for pair in pairs})
    sheets = {pair: _sheet(pair[0], faults) for pair in everything}
    classes = tuple(sorted({thing.name for sheet in sheets.values() if sheet for thing in sheet.things}))
    if not classes:
        folder = everything[0][0].parent if everything else "the splits"
        raise UserError(f"{folder}: no annotation file has an object; give the folder of the annotations")
    kinds = {name: index for index, name in enumerate(classes)}
    pictures = {folder: _by_stem(folder) for folder in {folder for _, folder in everything}}
    paths = [pictures[folder].get(path.stem, folder / f"{path.stem}.jpg") for path, folder in everything]
    records: dict[tuple[Path, Path], Record] = {}
    for id, (pair, path, found) in enumerate(zip(everything, paths, look_all(paths, faults), strict=True), start=1):
        sheet = sheets[pair]
        settled = sheet and settle(path, found, sheet.declared, faults, pair[0].name)
        if sheet and settled:
            picture, size = settled
            records[pair] = _objects(sheet, kinds, size, path.name, faults).record(id, path.name, size, picture)
    splits = {name: tuple(records[pair] for pair in pairs if pair in records) for name, pairs in sources.items()}
    return Contents(classes, tuple(range(1, len(classes) + 1)), splits)


def _sheet(path: Path, faults: Faults) -> Sheet | None:
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        faults.bad(
            str(path),
            f"can't read the annotations ({error.strerror})",
            "restore the file or take the image off the split's list",
        )
        return None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        faults.bad(str(path), f"not XML ({error})", "export the annotations again")
        return None
    things = [
        _thing(item, f"object {position}", path, faults)
        for position, item in enumerate(root.findall("object"), start=1)
    ]
    sides = [number(parsed(root.findtext(f"size/{side}"))) for side in ("height", "width")]
    declared = (int(sides[0]), int(sides[1])) if sides[0] and sides[1] else None  # some tools write 0
    return Sheet(tuple(thing for thing in things if thing is not None), declared)


def _thing(item: ElementTree.Element, where: str, path: Path, faults: Faults) -> Thing | None:
    name = (item.findtext("name") or "").strip()
    if not name:
        faults.bad(str(path), f"{where} has no name", "name its class")
        return None
    difficult = (item.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        faults.bad(str(path), f"{where} ({name}): difficult is {difficult!r}", "it is 0 or 1")
        return None
    corners = tuple(parsed(item.findtext(f"bndbox/{corner}")) for corner in CORNERS)
    absent = [corner for corner, value in zip(CORNERS, corners, strict=True) if number(value) is None]
    if absent:
        faults.bad(
            str(path),
            f"{where} ({name}): {absent[0]} of bndbox is missing or no number",
            "give xmin, ymin, xmax and ymax",
        )
        return None
    return Thing(name, corners, difficult == "1", where)


def _objects(sheet: Sheet, kinds: Mapping[str, int], size: tuple[int, int], image: str, faults: Faults) -> Objects:
    objects = Objects.none()
    for thing in sheet.things:
        inside = faults.fit(thing.corners, size, image, f"bndbox of {thing.where} ({thing.name})", inclusive=True)
        if inside is not None:
            objects.add(inside, kinds[thing.name], thing.difficult)
    return objects


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files of a folder by their name without the suffix."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.stem: path for path in files if path.suffix.lower() in SUFFIXES}
