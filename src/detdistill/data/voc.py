"""Pascal VOC: `Annotations/*.xml`, `JPEGImages`, and one list per split in `ImageSets/Main/*.txt`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from detdistill.data.faults import Faults, Place, number, parsed
from detdistill.data.images import SUFFIXES, read_headers, resolve_image
from detdistill.data.records import Contents, Objects, Record
from detdistill.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VOCObject:
    """One object as written in an annotation file.

    name: of the class.
    corners: xmin, ymin, xmax, ymax.
    is_difficult: marked as difficult.
    record: its position in the file, for messages.
    """

    name: str
    corners: tuple[float | str | None, ...]
    is_difficult: bool
    record: str


@dataclass(frozen=True)
class AnnotationFile:
    """The content of one annotation file.

    objects: in the order of the file.
    declared: (height, width) of the image, or None if the file does not have them.
    """

    objects: tuple[VOCObject, ...]
    declared: tuple[int, int] | None


def find(root: Path) -> dict[str, list[tuple[Path, Path]]]:
    """The splits of a folder in VOC layout by name, or {} if it has another layout.

    A split is a list of (annotation file, image folder), one per image. Each file in ImageSets/Main is a split, except
    VOC's lists per class, such as `<class>_train.txt`.
    """
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    annotations, images = root / "Annotations", root / "JPEGImages"
    if not lists or not annotations.is_dir() or not images.is_dir():
        return {}
    splits = {}
    for path in lists:
        if re.search(r"_(train|val|trainval|test)$", path.stem):
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        stems = dict.fromkeys(line.strip() for line in lines if line.strip())  # without repetitions
        splits[path.stem] = [(annotations / f"{stem}.xml", images) for stem in stems]
    return splits


def pairs_in(annotations: Path, images: Path) -> list[tuple[Path, Path]]:
    """The split of two explicit folders: every annotation file, with the image folder."""
    return [(path, images) for path in sorted(annotations.glob("*.xml"))]


def read(sources: Mapping[str, Sequence[tuple[Path, Path]]], faults: Faults) -> Contents:
    """All splits. The classes are the names in all splits, sorted. Their category ids begin at 1.

    Corners are pixel indices that begin at 1, and both corners are inside the box. So (xmin, ymin, xmax, ymax) becomes
    (xmin - 1, ymin - 1, xmax, ymax). A `difficult` object becomes a crowd: it is not a training target, and it is
    neither a hit nor a miss in the evaluation. An image in several splits is read once and has one id.
    """
    pairs = sorted({pair for split in sources.values() for pair in split})
    files = {pair: _read_annotations(pair[0], faults) for pair in pairs}
    names = {voc_object.name for file in files.values() if file for voc_object in file.objects}
    classes = tuple(sorted(names))
    if not classes:
        folder = pairs[0][0].parent if pairs else "the splits"
        raise UserError(f"{folder}: no annotation file has an object; give the folder of the annotations")
    class_indices = {name: index for index, name in enumerate(classes)}
    images = {folder: _by_stem(folder) for folder in {folder for _, folder in pairs}}
    paths = [images[folder].get(path.stem, folder / f"{path.stem}.jpg") for path, folder in pairs]
    records: dict[tuple[Path, Path], Record] = {}
    for id, (pair, path, header) in enumerate(zip(pairs, paths, read_headers(paths, faults), strict=True), start=1):
        file = files[pair]
        if file is None:
            continue
        resolved = resolve_image(path, header, file.declared, faults, pair[0].name)
        if resolved is not None:
            image, size = resolved
            objects = _clipped_objects(pair[0], file, class_indices, size, path.name, faults)
            records[pair] = objects.to_record(id, path.name, size, image)
    splits = {name: tuple(records[pair] for pair in split if pair in records) for name, split in sources.items()}
    return Contents(classes, tuple(range(1, len(classes) + 1)), splits)


def _read_annotations(path: Path, faults: Faults) -> AnnotationFile | None:
    """The content of an annotation file, or None if it can't be read."""
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        problem = f"can't read the annotations ({error.strerror})"
        faults.reject(str(path), problem, "restore the file or remove the image from the list of the split")
        return None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        faults.reject(str(path), f"the file is not XML ({error})", "export the annotations again")
        return None
    objects = []
    for position, item in enumerate(root.findall("object"), start=1):
        voc_object = _read_object(item, f"object {position}", path, faults)
        if voc_object is not None:
            objects.append(voc_object)
    height = number(parsed(root.findtext("size/height")))
    width = number(parsed(root.findtext("size/width")))
    declared = (int(height), int(width)) if height and width else None  # some tools write 0
    return AnnotationFile(tuple(objects), declared)


def _read_object(item: ElementTree.Element, record: str, path: Path, faults: Faults) -> VOCObject | None:
    """One object, or None if it can't be read."""
    name = (item.findtext("name") or "").strip()
    if not name:
        faults.reject(str(path), f"{record}: name is missing", "write the name of its class")
        return None
    record = f"{record} ({name})"
    difficult = (item.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        faults.reject(str(path), f"{record}: difficult is {difficult!r}", "write 0 or 1")
        return None
    corners = tuple(parsed(item.findtext(f"bndbox/{corner}")) for corner in CORNERS)
    for corner, value in zip(CORNERS, corners, strict=True):
        if number(value) is None:
            problem = f"{record}: {corner} of bndbox is missing or not a number"
            faults.reject(str(path), problem, "write xmin, ymin, xmax and ymax")
            return None
    return VOCObject(name, corners, difficult == "1", record)


def _clipped_objects(
    path: Path,
    file: AnnotationFile,
    class_indices: Mapping[str, int],
    size: tuple[int, int],
    image: str,
    faults: Faults,
) -> Objects:
    """The objects of an annotation file, clipped to the image of (height, width)."""
    objects = Objects.empty()
    for voc_object in file.objects:
        place = Place(str(path), voc_object.record, image)
        inside = faults.clip_box(voc_object.corners, size, place, "bndbox", inclusive=True)
        if inside is not None:
            objects.add(inside, class_indices[voc_object.name], voc_object.is_difficult)
    return objects


def _by_stem(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their name without the suffix."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.stem: path for path in files if path.suffix.lower() in SUFFIXES}
