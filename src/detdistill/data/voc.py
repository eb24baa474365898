"""Pascal VOC: one XML file per image.

The splits are the lists in `ImageSets/Main`, or else the folders of the files, such as `images/train`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from detdistill.data.assemble import Item, assemble, in_splits, numbered
from detdistill.data.faults import Faults, Place, names_of, number, parsed, size_of
from detdistill.data.images import images_in
from detdistill.data.lists import image_lists, image_name, voc_lists
from detdistill.data.locate import Locator
from detdistill.data.records import Contents, Objects
from detdistill.data.sidecars import (
    ANNOTATIONS,
    IMAGES,
    Named,
    Pair,
    Siblings,
    check_unique,
    grouped,
    image_folders,
    without_annotations,
)
from detdistill.data.tree import child, tree
from detdistill.data.xml import first_element, load_xml
from detdistill.errors import UserError, plural

CORNERS = ("xmin", "ymin", "xmax", "ymax")
ROOT = "annotation"  # the root element of a file
PROBED = 5  # files whose root element is looked at


@dataclass(frozen=True)
class Sources:
    """The files of a data set.

    splits: for each split, (annotation file, image) of each image. The image is None if it is known only to the file.
    folders: where images are looked for by the name in an annotation file, the most likely folder first.
    notes: lines for the user.
    images: all images of the folder, to tell those without annotations, if no list says which images are meant.
    """

    splits: Mapping[str, Sequence[Pair]]
    folders: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()


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
    image: the file name of the image, or an empty text.
    """

    objects: tuple[VOCObject, ...]
    declared: tuple[int, int] | None
    image: str


def find(root: Path) -> Sources | None:
    """The splits of a folder with lists of images in `ImageSets/Main` or `ImageSets`, or None if it has none."""
    sets = child(root, ("imagesets",))
    if sets is None:
        return None
    annotations = child(root, (*ANNOTATIONS, *IMAGES)) or root
    files = Locator([annotations])
    lists, notes = voc_lists(child(sets, ("main",)) or sets, lambda name: files.find(f"{name}.xml") is not None)
    if not lists:
        return None
    folders = [folder for name in IMAGES if (folder := child(root, (name,))) is not None]
    folders = folders or [annotations, root]
    images = Siblings(
        (image for folder in folders for image in images_in(folder)), lambda path: path.relative_to(root).parts[:-1]
    )
    splits = {}
    for split, names in lists.items():
        paths = [files.find(f"{name}.xml") or annotations / f"{name}.xml" for name in names]
        splits[split] = [(path, images.find(path)) for path in paths]
    return Sources(splits, tuple(folders), tuple(notes))


def search(root: Path) -> Sources | None:
    """The annotation files anywhere in a folder, or None if there are none. Folders such as `train` are splits.

    Raises UserError if the folder has several data sets with lists of images.
    """
    listed = tree(root)
    paths = listed.ending(".xml")
    if not any(first_element(path) == ROOT for path in _probed(paths)):
        return None
    sets = sorted({path.parent for path in listed.files if listed.parts(path)[-2:] == ("ImageSets", "Main")})
    if sets:
        found = ", ".join(str(folder.parent.parent) for folder in sets)
        raise UserError(f"{root}: the folder has Pascal VOC data with lists of images in {found}; give one folder")
    images = Siblings(listed.images, listed.parts)
    others = [path for path in paths if first_element(path) not in (ROOT, "")]  # "": damaged, which is told later
    pairs = [(path, images.find(path)) for path in paths if path not in others]
    splits, notes = _listed(root, pairs) or grouped(listed, pairs)
    if others:
        notes.append(f"{plural(len(others), 'XML file')} of another kind, left out: {names_of(list(map(str, others)))}")
    return Sources(splits, image_folders(listed), tuple(notes), tuple(listed.images))


def _listed(root: Path, pairs: Sequence[Pair]) -> tuple[dict[str, list[Pair]], list[str]] | None:
    """The pairs in the lists of images that lie in the folder itself, such as `train.txt`, and notes; None without."""
    by_stem = {path.stem: (path, image) for path, image in pairs}
    if len(by_stem) < len(pairs):  # names do not tell the images apart
        return None

    def stem(line: str) -> str:
        return image_name(line).rsplit("/", 1)[-1]

    lists = image_lists(root, lambda line: stem(line) in by_stem)
    if not lists:
        return None
    splits: dict[str, list[Pair]] = {}
    for split, lines in lists.items():
        missing = [line for line in lines if stem(line) not in by_stem]
        if missing:
            raise UserError(f"{root / split}.txt: {missing[0]!r} has no annotation file; correct or remove the line")
        splits[split] = list(dict.fromkeys(by_stem[stem(line)] for line in lines))
    used = {pair for split in splits.values() for pair in split}
    others = [str(path) for path, image in pairs if (path, image) not in used]
    return splits, [f"{plural(len(others), 'file')} in no list, left out: {names_of(others)}"] if others else []


def pairs_in(annotations: Path, images: Path) -> list[Pair]:
    """The split of two explicit folders: every annotation file, with the image of its name."""

    def place(path: Path) -> tuple[str, ...]:
        return path.relative_to(annotations if path.suffix.lower() == ".xml" else images).parts[:-1]

    siblings = Siblings(images_in(images), place)
    paths = [path for path in sorted(annotations.iterdir()) if path.suffix.lower() == ".xml"]
    return [(path, siblings.find(path)) for path in paths]


def read(sources: Sources, faults: Faults) -> Contents:
    """All splits. The classes are the names in all splits, sorted. Their category ids begin at 1.

    Corners are pixel indices that begin at 1, and both corners are inside the box. So (xmin, ymin, xmax, ymax) becomes
    (xmin - 1, ymin - 1, xmax, ymax). A `difficult` object becomes a crowd: it is not a training target, and it is
    neither a hit nor a miss in the evaluation. An image in several splits is read once and has one id.
    """
    pairs = dict(sorted(dict(pair for split in sources.splits.values() for pair in split).items()))
    files = {path: _read_annotations(path, faults) for path in pairs}
    names = {voc_object.name for file in files.values() if file for voc_object in file.objects}
    classes = tuple(sorted(names))
    if not classes:
        folder = min(pairs, default=Path("the splits")).parent
        raise UserError(f"{folder}: no annotation file has an object; give the folder of the annotations")
    class_indices = {name: index for index, name in enumerate(classes)}
    named = Named(sources.folders)
    images = {path: image or _image_of(path, files[path], named) for path, image in pairs.items()}
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
        return _clipped_objects(path, file, class_indices, size, image.name, faults)

    boxes = [[float(value) for value in voc_object.corners if value is not None] for voc_object in file.objects]
    return Item(image, image.name, path.name, file.declared, objects, boxes)


def _image_of(path: Path, file: AnnotationFile | None, named: Named) -> Path:
    """The image that an annotation file names, if no image has the name of the file itself."""
    name = file.image if file is not None and file.image else f"{path.stem}.jpg"
    return named.anywhere(name) or named.beside(path, name) or (*named.folders, path.parent)[0] / name


def _read_annotations(path: Path, faults: Faults) -> AnnotationFile | None:
    """The content of an annotation file, or None if it can't be read."""
    root = load_xml(path, faults, "restore the file or remove the image from the list of the split")
    if root is None:
        return None
    if root.tag != ROOT:
        faults.reject(str(path), f"the root element is <{root.tag}>, not <{ROOT}>", "export the annotations as VOC")
        return None
    objects = []
    for position, item in enumerate(root.findall("object"), start=1):
        voc_object = _read_object(item, f"object {position}", path, faults)
        if voc_object is not None:
            objects.append(voc_object)
    height, width = (number(parsed(root.findtext(f"size/{side}"))) for side in ("height", "width"))
    return AnnotationFile(tuple(objects), size_of(height, width), (root.findtext("filename") or "").strip())


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


def _probed(paths: Sequence[Path]) -> list[Path]:
    """A few of the files, spread evenly."""
    return list(paths[:: max(1, len(paths) // PROBED)])
