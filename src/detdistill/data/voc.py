"""Pascal VOC: one XML file per image.

The splits are the lists in `ImageSets/Main`, or else the folders of the files, such as `images/train`.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from detdistill.data.annotated import AnnotatedObject, AnnotationFile, Kind, Sources, read_annotated
from detdistill.data.faults import Faults, names_of, number, parsed, size_of
from detdistill.data.images import images_in
from detdistill.data.lists import image_lists, image_name, voc_lists
from detdistill.data.locate import Locator
from detdistill.data.records import Contents
from detdistill.data.sidecars import (
    ANNOTATIONS,
    IMAGES,
    Named,
    Pair,
    Siblings,
    grouped,
    image_folders,
)
from detdistill.data.tree import child, probed, tree
from detdistill.data.xml import first_element, load_xml
from detdistill.errors import UserError, plural

CORNERS = ("xmin", "ymin", "xmax", "ymax")
ROOT = "annotation"  # the root element of a file


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
    if not any(first_element(path) == ROOT for path in probed(paths)):
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
    return read_annotated(sources, faults, KIND)


def _image_of(path: Path, file: AnnotationFile | None, image: Path | None, named: Named) -> Path:
    """The image with the name of the annotation file, or else the image that the file names."""
    if image is not None:
        return image
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
        annotated = _read_object(item, f"object {position}", path, faults)
        if annotated is not None:
            objects.append(annotated)
    height, width = (number(parsed(root.findtext(f"size/{side}"))) for side in ("height", "width"))
    return AnnotationFile(tuple(objects), size_of(height, width), (root.findtext("filename") or "").strip())


def _read_object(item: ElementTree.Element, record: str, path: Path, faults: Faults) -> AnnotatedObject | None:
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
    values = []
    for corner in CORNERS:
        value = number(parsed(item.findtext(f"bndbox/{corner}")))
        if value is None:
            problem = f"{record}: {corner} of bndbox is missing or not a number"
            faults.reject(str(path), problem, "write xmin, ymin, xmax and ymax")
            return None
        values.append(value)
    left, top, right, bottom = values
    return AnnotatedObject(name, (left, top, right, bottom), record, difficult == "1")


KIND = Kind(
    _read_annotations,
    _image_of,
    box="bndbox",
    no_objects="no annotation file has an object; give the folder of the annotations",
    inclusive=True,
)
