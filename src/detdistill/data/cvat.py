"""CVAT for images 1.1: one `annotations.xml` for all images."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from detdistill.data.assemble import Item, assemble, in_splits, numbered
from detdistill.data.faults import Faults, Place, names_of, number, parsed, size_of
from detdistill.data.locate import Locator
from detdistill.data.records import Contents, Objects
from detdistill.data.roles import role
from detdistill.data.tree import tree
from detdistill.data.xml import first_element, read_xml
from detdistill.errors import UserError, plural

ROOT = "annotations"  # the root element of a file
NOT_READ = ("tag",)  # a class of the whole image
WHOLE = ("default", "")  # CVAT's name of the subset of images that are in no subset

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Entry:
    """One image of a file. split: its subset, or the role of the file's name, or an empty text."""

    file: Path
    element: Element
    split: str

    @property
    def name(self) -> str:
        """The name of the image, with the folders that it has in CVAT."""
        return self.element.get("name") or ""


def find(root: Path) -> list[Path]:
    """The annotation files: the file itself, or the files of a folder."""
    paths = [root] if root.is_file() else sorted(root.glob("*.[xX][mM][lL]"))
    return [path for path in paths if path.suffix.lower() == ".xml" and first_element(path) == ROOT]


def search(root: Path) -> list[Path]:
    """The annotation files anywhere in a folder."""
    return [path for path in tree(root).ending(".xml") if first_element(path) == ROOT]


def read(files: Sequence[Path], faults: Faults) -> Contents:
    """All splits, which are CVAT's subsets. The classes are the labels of the files, in their order, and their category
    ids begin at 1.

    A box, an ellipse and a mask give their box, also if they are rotated; other shapes give the box around their
    points. Shapes that mark a whole image are not read. Raises UserError if a file has no images.
    """
    roots = {path: _load(path) for path in files}
    entries = [entry for path, root in roots.items() for entry in _entries(path, root)]
    if not entries:
        raise UserError(f"{files[0]}: the file has no image; export it as 'CVAT for images 1.1'")
    classes = _classes(roots.values(), entries)
    class_indices = {name: index for index, name in enumerate(classes)}
    locators: dict[tuple[Path, str], Locator] = {}
    paths = [_image_of(entry, locators) for entry in entries]
    _check_unique(entries, paths)
    left_out: Counter[str] = Counter()
    items = {
        position: _item(entry, path, class_indices, faults, left_out)
        for position, (entry, path) in enumerate(zip(entries, paths, strict=True))
    }
    records = assemble(items, faults)
    splits: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        splits.setdefault(entry.split, []).append(position)
    notes = [
        f"{plural(count, kind)} not read, because it marks no place in its image" for kind, count in left_out.items()
    ]
    outside = splits.pop("", []) if len(splits) > 1 else []
    if outside:
        names = names_of([entries[position].name for position in outside])
        notes.append(f"{plural(len(outside), 'image')} in no subset ({', '.join(splits)}), left out: {names}")
    return Contents(classes, numbered(classes), in_splits(splits, records), tuple(notes))


def _item(entry: Entry, path: Path, class_indices: Mapping[str, int], faults: Faults, left_out: Counter[str]) -> Item:
    """An image with its annotations."""
    declared = size_of(*(number(parsed(entry.element.get(side))) for side in ("height", "width")))

    def objects(size: tuple[int, int]) -> Objects:
        return _read_objects(entry, class_indices, size, faults, left_out)

    return Item(path, entry.name, entry.file.name, declared, objects)


def _load(path: Path) -> Element:
    """The root element of a file. Raises UserError if it can't be read or holds a video."""
    try:
        root = read_xml(path)
    except OSError as error:
        raise UserError(f"{path}: can't read the annotations ({error.strerror}); correct the path") from None
    except ValueError as error:
        raise UserError(f"{path}: the file is not XML ({error}); export the annotations again") from None
    if root.find("track") is not None:
        raise UserError(f"{path}: the file has tracks of a video; export it as 'CVAT for images 1.1'")
    return root


def _entries(path: Path, root: Element) -> Iterator[Entry]:
    """The images of a file."""
    for element in root.findall("image"):
        subset = element.get("subset") or ""
        is_split = subset.casefold() not in WHOLE
        yield Entry(path, element, subset if is_split else (path.stem if role(path.stem) else ""))


def _classes(roots: Iterable[Element], entries: Sequence[Entry]) -> tuple[str, ...]:
    """The labels that the files declare, and then the other labels of objects. Raises UserError if there are none."""
    declared = [
        (label.findtext("name") or "").strip()
        for root in roots
        for label in root.findall("meta//labels/label")
        if not label.findtext("parent")  # part of a skeleton
    ]
    shapes = [shape for entry in entries for shape in entry.element if shape.tag not in NOT_READ]
    used = sorted({(shape.get("label") or "").strip() for shape in shapes})
    classes = tuple(name for name in dict.fromkeys([*declared, *used]) if name)
    if not classes:
        raise UserError(f"{entries[0].file}: the file has no label; add the classes in CVAT and export it again")
    return classes


def _image_of(entry: Entry, locators: dict[tuple[Path, str], Locator]) -> Path:
    """The image of an entry: in `images`, in a folder of its subset, or beside the file or its folder."""
    root, subset = entry.file.parent, entry.element.get("subset") or ""
    if (root, subset) not in locators:
        near = [root / "images" / subset, root / "images", root / subset, root]
        locators[root, subset] = Locator([*near, root.parent / "images", root.parent])
    return locators[root, subset].find(entry.name) or root / "images" / (entry.name or "image without a name")


def _check_unique(entries: Sequence[Entry], paths: Sequence[Path]) -> None:
    """Raise UserError if an image stands in the files twice."""
    owners: dict[Path, Entry] = {}
    for entry, path in zip(entries, paths, strict=True):
        if path in owners:
            files = " and ".join(dict.fromkeys((str(owners[path].file), str(entry.file))))
            raise UserError(f"{path}: the image stands twice in {files}; remove one of its entries or files")
        owners[path] = entry


def _read_objects(
    entry: Entry, class_indices: Mapping[str, int], size: tuple[int, int], faults: Faults, left_out: Counter[str]
) -> Objects:
    """The objects of an image, clipped to (height, width)."""
    objects = Objects.empty()
    for position, shape in enumerate(entry.element, start=1):
        if shape.tag in NOT_READ:
            left_out[shape.tag] += 1
            continue
        label = (shape.get("label") or "").strip()
        record = f"image {entry.name!r}: {shape.tag} {position}"
        if not label:
            faults.reject(str(entry.file), f"{record}: label is missing", "give it a label")
            continue
        record = f"{record} ({label})"
        corners = _corners(shape)
        if corners is None:
            faults.reject(str(entry.file), f"{record}: its coordinates are missing or no numbers", "export it again")
            continue
        inside = faults.clip_box(corners, size, Place(str(entry.file), record, entry.name), "shape")
        if inside is not None:
            objects.add(inside, class_indices[label])
    return objects


def _corners(shape: Element) -> Corners | None:
    """The box of a shape in pixels, xyxy, or None if it has no box."""
    if shape.tag == "box":
        sides = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
        return _rotated(sides, _angle(shape)) if sides else None
    if shape.tag == "ellipse":
        sides, angle = _numbers(shape, "cx", "cy", "rx", "ry"), _angle(shape)
        if not sides:
            return None
        cx, cy, rx, ry = sides
        dx = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
        dy = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
        return cx - dx, cy - dy, cx + dx, cy + dy
    if shape.tag == "mask":
        sides = _numbers(shape, "left", "top", "width", "height")
        return (sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3]) if sides else None
    if shape.tag == "cuboid":
        values = {name: number(parsed(value)) for name, value in shape.attrib.items()}
        xs = [value for name, value in values.items() if name[0] == "x" and value is not None]
        ys = [value for name, value in values.items() if name[0] == "y" and value is not None]
        return (min(xs), min(ys), max(xs), max(ys)) if xs and ys else None
    if shape.tag == "skeleton":
        texts = [point.get("points") or "" for point in shape if point.get("outside") != "1"]
        if not texts:
            return 0.0, 0.0, 0.0, 0.0  # nothing of it is visible: a box without area is removed and told
    else:
        texts = (shape.get("points") or "").split(";")
    points = [[number(parsed(value)) for value in text.split(",")] for text in texts]
    if not points or any(len(point) != 2 or None in point for point in points):
        return None
    xs, ys = [float(point[0] or 0) for point in points], [float(point[1] or 0) for point in points]
    return min(xs), min(ys), max(xs), max(ys)


def _numbers(shape: Element, *names: str) -> list[float] | None:
    """The numbers of these attributes, or None if one is missing."""
    values = [value for name in names if (value := number(parsed(shape.get(name)))) is not None]
    return values if len(values) == len(names) else None


def _angle(shape: Element) -> float:
    """The rotation in radians, clockwise around the center."""
    return math.radians(number(parsed(shape.get("rotation"))) or 0.0)


def _rotated(sides: Sequence[float], angle: float) -> Corners:
    """The box around a rotated box."""
    left, top, right, bottom = sides
    if angle == 0:
        return left, top, right, bottom
    cx, cy, w, h = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    dx = w * abs(math.cos(angle)) + h * abs(math.sin(angle))
    dy = w * abs(math.sin(angle)) + h * abs(math.cos(angle))
    return cx - dx, cy - dy, cx + dx, cy + dy
