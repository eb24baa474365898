"""Opening of a data set: its layout is recognized by its files, and then it is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detdistill.data import coco, cvat, labelme, shapes, unknown, voc, yolo
from detdistill.data.checks import class_notes, shared_notes, without_repetitions
from detdistill.data.explicit import read_explicit
from detdistill.data.faults import Faults
from detdistill.data.records import Contents, Data, Record, Split
from detdistill.data.splitting import divide
from detdistill.data.tree import only_folder, tree
from detdistill.errors import UserError, plural
from detdistill.recipe import DataConfig


@dataclass(frozen=True)
class Format:
    """A layout of data sets.

    title: name of the layout in messages.
    find: looks into a folder, or at a file, and returns what `read` needs; something empty if it has not this layout.
        It looks for fixed names.
    read: reads what `find` or `search` returned. Unreadable records are reported to `Faults`, which stops or skips
        them.
    looked_for: what `find` looks for, in words, for the message that no layout was recognized.
    search: the same as `find` for a folder without fixed names, by looking at all its files. It is called only if no
        layout finds anything.
    """

    title: str
    find: Callable[[Path], Any]
    read: Callable[[Any, Faults], Contents]
    looked_for: str = ""
    search: Callable[[Path], Any] | None = None


def _read_yolo(found: Any, faults: Faults) -> Contents:
    return yolo.read(yolo.sources(found), faults)


FORMATS: dict[str, Format] = {
    "coco": Format(
        "COCO JSON",
        coco.find,
        coco.read,
        f"annotations/instances_<split>*.json or <split>/{coco.ROBOFLOW}",
    ),
    "voc": Format("Pascal VOC", voc.find, voc.read, "Annotations + ImageSets/Main/*.txt, or XML files", voc.search),
    "yolo": Format("YOLO", yolo.find, _read_yolo, "data.yaml, obj.data, or label files and classes.txt", yolo.search),
    "cvat": Format("CVAT", cvat.find, cvat.read, "annotations.xml", cvat.search),
    "labelme": Format("LabelMe", lambda path: None, labelme.read, "JSON files with shapes", labelme.search),
}
"""Every layout by name. The first one that is found in a folder is read. `--import` adds the user's own."""

NESTED = 3  # folders around a data set that unpacking may have added
SHAPES = "built-in shapes"


def open_data(config: DataConfig, *, decode: bool = True) -> Data:
    """Every split of a data set. The layout is recognized by the files.

    No pixel is decoded, except with on_bad_record `skip`: then every image is decoded, so that a damaged one is left
    out here and does not stop the training later. `skip` leaves out the smallest unit that can't be read: a box, a
    label line, or an image with its annotations. decode: False reads only the headers of images with `skip`, too.
    Raises UserError with file, record, field and remedy.
    """
    faults = Faults(config.on_bad_record, decode)
    explicit = {name: paths for name in ("train", "val", "test") if (paths := getattr(config, name)) is not None}
    if explicit and config.path:
        raise UserError(f"data.path is {config.path!r}, but data.{next(iter(explicit))} is also set; keep one of them")
    unread: list[str] = []
    if explicit:
        layout, contents = read_explicit(explicit, faults)
    elif shapes.is_shapes(config.path):
        layout, contents = "shapes", shapes.read(config.path)
    else:
        layout, contents, unread = _read_path(config.path, faults)
    place = config.path or str(next(iter(explicit.values())).images)
    records, absent, notes = _checked(place, layout, contents, faults)
    division = divide(records, config)
    if division is not None:
        records = division.splits
    splits = {
        name: Split(name, tuple(split), contents.classes, contents.category_ids) for name, split in records.items()
    }
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    title = FORMATS[layout].title if layout in FORMATS else SHAPES
    lines = [f"data: {title}; images: {counts}; {plural(len(contents.classes), 'class')}", *unread, *contents.notes]
    lines += [*notes, *([division.note] if division is not None else []), *faults.notes()]
    divided = (
        {name: tuple(record.name for record in records[name]) for name in division.made}
        if division is not None
        else None
    )
    return Data(layout, contents.classes, contents.category_ids, splits, tuple(lines), faults, absent, divided)


def _checked(
    place: str, layout: str, contents: Contents, faults: Faults
) -> tuple[Mapping[str, Sequence[Record]], dict[str, str], list[str]]:
    """The splits that have images, the messages of the others, and notes about all. place: of the data, for messages.

    Raises UserError if no split has images.
    """
    absent, notes = dict(contents.absent), []
    for name, records in contents.splits.items():
        if not records:
            absent[name] = f"{place}: split {name!r} has no readable image; correct or remove the split"
            notes.append(f"split {name!r} has no readable image and is left out")
    splits = {name: records for name, records in contents.splits.items() if records}
    if not splits:
        raise UserError(next(iter(absent.values()), f"{place}: the data set has no split"))
    if layout == "shapes":
        return splits, absent, notes
    splits = without_repetitions(splits, faults)
    return splits, absent, [*notes, *class_notes(contents, splits), *shared_notes(splits)]


def _read_path(path: str, faults: Faults) -> tuple[str, Contents, list[str]]:
    """The layout of a folder or file, its contents, and notes about what is not read."""
    if not path:
        raise UserError("no data set is given; give a folder, a file or shapes:N with --data")
    root = Path(path).expanduser()
    if not root.exists():
        raise UserError(
            f"{path}: no such folder or file; give a folder or file of a data set, or shapes:N, with --data"
        )
    tree.cache_clear()  # the files may have changed since the last data set
    try:
        sources, notes = _find(root)
    finally:
        tree.cache_clear()
    layout, *unread = sources
    if unread:
        titles = " and a ".join(FORMATS[name].title for name in unread)
        notes.append(f"the folder also has a {titles} layout, which is not read")
    contents = FORMATS[layout].read(sources[layout], faults)
    if not isinstance(contents, Contents):
        raise UserError(
            f"{path}: FORMATS[{layout!r}].read returned {type(contents).__name__}; "
            "return detdistill.data.records.Contents"
        )
    return layout, contents, notes


def _found(format: Format, path: Path) -> Any:
    """What a layout finds. A format of the user's own may expect a folder; it finds nothing in a file."""
    try:
        return format.find(path)
    except NotADirectoryError:
        return None


def _find(root: Path) -> tuple[dict[str, Any], list[str]]:
    """What the layouts found, by layout, and notes. Raises UserError if no layout found anything."""
    folder: Path | None = root
    inside: list[str] = []
    while folder is not None:
        sources = {name: source for name, format in FORMATS.items() if (source := _found(format, folder))}
        if sources:
            return sources, [f"the data set is in {'/'.join(inside)}"] if inside else []
        folder = only_folder(folder) if len(inside) < NESTED else None  # unpacking often adds a folder
        inside += [folder.name] if folder is not None else []
    if root.is_file():
        raise UserError(unknown.file_message(root))
    searched = {name: source for name, format in FORMATS.items() if format.search and (source := format.search(root))}
    if searched:
        return searched, []
    if (path := yolo.unread_yaml(root)) is not None:
        yolo.sources(path)  # raises UserError that says what is wrong with the file
    raise UserError(unknown.message(root, {format.title: format.looked_for for format in FORMATS.values()}))
