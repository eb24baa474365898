"""YOLO: one text file per image with one line per object; class names in `data.yaml`, `obj.data` or `classes.txt`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from detdistill.data.assemble import Item, assemble, in_splits
from detdistill.data.faults import Faults, Place, names_of
from detdistill.data.images import SUFFIXES, images_in
from detdistill.data.lists import image_lists
from detdistill.data.locate import Locator
from detdistill.data.records import Contents, Objects
from detdistill.data.sidecars import Pair, Siblings, grouped
from detdistill.data.tree import Tree, tree
from detdistill.data.yolo_files import (
    NAMES,
    SPLITS,
    YAMLS,
    Labeled,
    Labels,
    Sources,
    class_names,
    darknet_keys,
    from_darknet,
    from_yaml,
    keypoints,
    listed_images,
    load_yaml,
)
from detdistill.data.yolo_rows import Reading, choose_reading, read_rows
from detdistill.errors import UserError, plural

__all__ = ["NAMES", "YAMLS", "Sources", "class_names", "find", "keypoints", "pairs_in", "read", "search", "sources"]


def find(root: Path) -> Path | None:
    """A data.yaml or obj.data: the file itself, or the one of a folder, or its only YAML file with class names and a
    train split; or None. A file that can't be read is not one.
    """
    if root.is_file():
        return root if root.suffix.lower() in (".yaml", ".yml", ".data") else None
    for name in YAMLS:
        if (root / name).is_file() and _keys(root / name) & {"names", *SPLITS}:
            return root / name
    candidates = [path for path in sorted(root.glob("*.y*ml")) if _keys(path) >= {"names", "train"}]
    if len(candidates) == 1:
        return candidates[0]
    for folder in (root, root / "data", root / "cfg"):
        for path in sorted(folder.glob("*.data")):
            if path.is_file() and "names" in darknet_keys(path):
                return path
    return None


def search(root: Path) -> Sources | None:
    """The label files anywhere in a folder with a file of class names, or None if there are none.

    Lists of images in the folder, such as `train.txt`, are the splits, or else subfolders such as `train`. Raises
    UserError if files of class names contradict each other.
    """
    listed = tree(root)
    names = [path for path in listed.files if path.name.casefold() in NAMES or path.suffix.lower() == ".names"]
    if not names or unread_yaml(root) is not None:
        return None
    labels = [path for path in listed.ending(".txt") if path not in names]
    pairs, notes = _with_labels(listed, labels)
    if not pairs:
        return None
    numbered = _names_of(root, names)
    lists = image_lists(root, lambda line: Path(line).suffix.lower() in SUFFIXES)
    if not lists:
        splits, more = grouped(listed, pairs)
        return Sources(numbered, _filled(splits), (*notes, *more))
    labels_of = dict(pairs)
    images = {split: dict.fromkeys(listed_images(lines, root)) for split, lines in lists.items()}
    listed_splits = {split: [(image, labels_of.get(image)) for image in members] for split, members in images.items()}
    others = [str(image) for image in labels_of if not any(image in members for members in images.values())]
    if others:
        notes.append(f"{plural(len(others), 'image')} in no list, left out: {names_of(others)}")
    return Sources(numbered, _filled(listed_splits), tuple(notes))


def sources(found: Path | Sources) -> Sources:
    """The files of what `find` or `search` found. Raises UserError with the key if a file names something wrong."""
    if isinstance(found, Sources):
        return found
    return from_darknet(found) if found.suffix.lower() == ".data" else from_yaml(found)


def unread_yaml(root: Path) -> Path | None:
    """A data.yaml of the folder, which `find` may have passed over because it is wrong."""
    return next((root / name for name in YAMLS if (root / name).is_file()), None)


def pairs_in(annotations: Path, images: Path) -> list[Labeled]:
    """The split of two explicit folders: every image, with its label file at the same place below `annotations`."""
    pairs: list[Labeled] = []
    files: dict[Path, Locator] = {}
    for image in images_in(images):
        place = annotations / image.relative_to(images).with_suffix(".txt")
        locator = files.setdefault(place.parent, Locator([place.parent]))
        pairs.append((image, locator.find(place.name) or place))
    return pairs


def read(sources: Sources, faults: Faults) -> Contents:
    """All splits. The category ids are the class numbers. An image without a label file has no objects.

    A line is `class cx cy w h` in 0..1 of the upright image, or a polygon `class x1 y1 x2 y2 x3 y3 ...`, of which the
    bounding box is used, or a box with key points.
    """
    class_indices = {category: index for index, category in enumerate(sources.names)}
    pairs = sorted({pair for split in sources.splits.values() for pair in split})
    labeled = [label for _, label in pairs if label.is_file()]
    reading = choose_reading(labeled, sources.keypoints)

    def item(path: Path, labels: Path) -> Item:
        def objects(size: tuple[int, int]) -> Objects:
            return _read_objects(labels, class_indices, reading, size, path.name, faults)

        return Item(path, path.name, "", None, objects)

    records = assemble({pair: item(*pair) for pair in pairs}, faults)
    splits = in_splits(sources.splits, records)
    notes = [*sources.notes, *reading.notes]
    if len(labeled) < len(pairs):
        background = [str(image) for image, label in pairs if not label.is_file()]
        notes.append(
            f"{plural(len(background), 'image')} without a label file, read as background: {names_of(background)}"
        )
    return Contents(tuple(sources.names.values()), tuple(sources.names), splits, tuple(notes), sources.absent)


def _keys(path: Path) -> set[str]:
    """The keys of a YAML file, or an empty set if it can't be read or is no mapping."""
    try:
        content = load_yaml(path)
    except UserError:
        return set()
    return set(map(str, content)) if isinstance(content, dict) else set()


def _with_labels(listed: Tree, labels: Sequence[Path]) -> tuple[list[Pair], list[str]]:
    """The images of all folders that have an image with a label file, and notes."""
    siblings = Siblings(labels, listed.parts)
    found = {image: siblings.find(image) for image in listed.images}
    folders = {image.parent for image, label in found.items() if label is not None}
    pairs = [(image, label) for image, label in found.items() if image.parent in folders]
    used = {label for _, label in pairs}
    places = {label.parent for label in used if label is not None}
    unused = [str(label) for label in labels if label not in used and label.parent in places - {listed.root}]
    notes = [f"{plural(len(unused), 'label file')} without an image, left out: {names_of(unused)}"] if unused else []
    return pairs, notes


def _names_of(root: Path, files: Sequence[Path]) -> dict[int, str]:
    """The class names in a folder. A file directly in the folder counts before the files of its subfolders."""
    files = [path for path in files if path.parent == root] or files
    names = class_names(files[0])
    for path in files[1:]:
        if class_names(path) != names:
            raise UserError(
                f"{path}: its class names differ from those of {files[0]}; correct or remove one of the files"
            )
    return names


def _filled(splits: Mapping[str, Sequence[Pair]]) -> dict[str, list[Labeled]]:
    """The splits with the place of each missing label file."""
    labels = Labels()
    return {name: [(image, label or labels.of(image)) for image, label in split] for name, split in splits.items()}


def _read_objects(
    path: Path, class_indices: Mapping[int, int], reading: Reading, size: tuple[int, int], image: str, faults: Faults
) -> Objects:
    """The objects of a label file, clipped to the image of (height, width)."""
    objects = Objects.empty()
    height, width = size
    for row in read_rows(path, class_indices, reading, faults) if path.is_file() else ():
        left, top, right, bottom = row.box
        corners = [left * width, top * height, right * width, bottom * height]
        place = Place(str(path), row.record, image)
        inside = faults.clip_box(corners, size, place, "box (written in 0..1 of the image, here in pixels)")
        if inside is not None:
            objects.add(inside, class_indices[row.category])
    return objects
