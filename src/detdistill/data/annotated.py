"""Layouts with one annotation file per image, such as Pascal VOC and LabelMe: from the files to the records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detdistill.data.assemble import Item, assemble, in_splits, numbered
from detdistill.data.faults import Faults, Place
from detdistill.data.records import Contents, Objects
from detdistill.data.sidecars import Named, Pair, check_unique, without_annotations
from detdistill.errors import UserError


@dataclass(frozen=True)
class AnnotatedObject:
    """One object as written in an annotation file.

    name: of the class.
    corners: xyxy in pixels.
    record: its position in the file, for messages.
    is_difficult: marked as difficult.
    """

    name: str
    corners: tuple[float, float, float, float]
    record: str
    is_difficult: bool = False


@dataclass(frozen=True)
class AnnotationFile:
    """The content of one annotation file.

    objects: in the order of the file.
    declared: (height, width) of the image, or None if the file does not have them.
    image: the name of the image as the file names it, or an empty text.
    """

    objects: tuple[AnnotatedObject, ...]
    declared: tuple[int, int] | None
    image: str


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
class Kind:
    """What differs between such layouts.

    read: the content of a file, or None if it can't be read.
    image_of: the image of (annotation file, its content or None, the image with its name or None).
    box: name of the box field, for messages.
    no_objects: what to say if no file has an object.
    inclusive: see `Faults.clip_box`.
    """

    read: Callable[[Path, Faults], AnnotationFile | None]
    image_of: Callable[[Path, AnnotationFile | None, Path | None, Named], Path]
    box: str
    no_objects: str
    inclusive: bool = False


def read_annotated(sources: Sources, faults: Faults, kind: Kind) -> Contents:
    """All splits. The classes are the names in all splits, sorted. Their category ids begin at 1.

    A difficult object becomes a crowd. An image in several splits is read once and has one id. Raises UserError if no
    file has an object, or if two files have the same image.
    """
    pairs = dict(sorted(dict(pair for split in sources.splits.values() for pair in split).items()))
    files = {path: kind.read(path, faults) for path in pairs}
    classes = tuple(sorted({each.name for file in files.values() if file for each in file.objects}))
    if not classes:
        folder = min(pairs, default=Path("the splits")).parent
        raise UserError(f"{folder}: {kind.no_objects}")
    class_indices = {name: index for index, name in enumerate(classes)}
    named = Named(sources.folders)
    images = {path: kind.image_of(path, files[path], image, named) for path, image in pairs.items()}
    check_unique(images.items())
    items = {path: _item(path, files[path], image, class_indices, faults, kind) for path, image in images.items()}
    records = assemble(items, faults)
    splits = in_splits({name: [path for path, _ in split] for name, split in sources.splits.items()}, records)
    notes = (*sources.notes, *without_annotations(sources.images, images.values(), "file"))
    return Contents(classes, numbered(classes), splits, notes)


def _item(
    path: Path,
    file: AnnotationFile | None,
    image: Path,
    class_indices: Mapping[str, int],
    faults: Faults,
    kind: Kind,
) -> Item | None:
    """An image with its annotations, or None if they can't be read."""
    if file is None:
        return None

    def objects(size: tuple[int, int]) -> Objects:
        collected = Objects.empty()
        for each in file.objects:
            place = Place(str(path), each.record, image.name)
            inside = faults.clip_box(each.corners, size, place, kind.box, inclusive=kind.inclusive)
            if inside is not None:
                collected.add(inside, class_indices[each.name], each.is_difficult)
        return collected

    boxes = [each.corners for each in file.objects]
    return Item(image, image.name, path.name, file.declared, objects, boxes)
