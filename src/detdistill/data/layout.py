"""Opening of a data set: its layout is recognized by its files, and then it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detdistill.data import coco, shapes, voc, yolo
from detdistill.data.faults import Faults
from detdistill.data.images import SUFFIXES, images_in, read_headers, resolve_image
from detdistill.data.records import Contents, Data, Objects, Record, Split
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, SplitPaths


@dataclass(frozen=True)
class Format:
    """A layout of data sets.

    title: name of the layout in messages.
    find: looks into a folder and returns what `read` needs; something empty if the folder does not have this layout.
    read: reads what `find` returned. Unreadable records are reported to `Faults`, which stops or skips them.
    looked_for: what `find` looks for, in words, for the message that no layout was recognized.
    """

    title: str
    find: Callable[[Path], Any]
    read: Callable[[Any, Faults], Contents]
    looked_for: str = ""


FORMATS: dict[str, Format] = {
    "coco": Format(
        "COCO JSON",
        coco.find,
        coco.read,
        f"annotations/instances_<split>*.json or <split>/{coco.ROBOFLOW}",
    ),
    "voc": Format("Pascal VOC", voc.find, voc.read, "Annotations + JPEGImages + ImageSets/Main/*.txt"),
    "yolo": Format("YOLO", yolo.find, lambda file, faults: yolo.read(yolo.sources(file), faults), "data.yaml"),
}
"""Every layout by name. The first one that is found in a folder is read. `--import` adds the user's own."""

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
        layout, contents = _read_explicit(explicit, faults)
    elif shapes.is_shapes(config.path):
        layout, contents = "shapes", shapes.read(config.path)
    else:
        layout, contents, unread = _read_folder(config.path, faults)
    splits = {
        name: Split(name, records, contents.classes, contents.category_ids) for name, records in contents.splits.items()
    }
    for name, split in splits.items():
        if not split.records:
            path = config.path or explicit[name].images
            raise UserError(f"{path}: split {name!r} has no readable image; correct or remove the split")
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    classes = len(contents.classes)
    title = FORMATS[layout].title if layout in FORMATS else SHAPES
    notes = [f"data: {title}; images: {counts}; {classes} class{'es' * (classes > 1)}"]
    if unread:
        titles = " and a ".join(FORMATS[name].title for name in unread)
        notes.append(f"the folder also has a {titles} layout, which is not read")
    notes += [*contents.notes, *faults.notes()]
    return Data(layout, contents.classes, contents.category_ids, splits, tuple(notes), faults)


def read_images(paths: list[Path] | list[str] | tuple[Path | str, ...], config: DataConfig) -> list[Record]:
    """Image files, and the images in folders and their subfolders, as records without objects. The ids begin at 1.

    The images of a folder are sorted by path. Raises UserError with the path if an image can't be read. With
    on_bad_record `skip` the image is left out, with a warning in the log.
    """
    faults = Faults(config.on_bad_record)
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images = images_in(path)
            if not images:
                suffixes = ", ".join(sorted(SUFFIXES))
                raise UserError(f"{path}: the folder has no image (looked for {suffixes}); give a folder of images")
            files += images
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder; give images or folders of images")
    records = []
    for id, (path, header) in enumerate(zip(files, read_headers(files, faults), strict=True), start=1):
        resolved = resolve_image(path, header, None, faults, "")
        if resolved is not None:
            image, size = resolved
            records.append(Objects.empty().to_record(id, path.name, size, image))
    faults.log_notes()
    if not records:
        raise UserError(f"{', '.join(map(str, paths))}: no readable image; give images or folders of images")
    return records


def _read_folder(path: str, faults: Faults) -> tuple[str, Contents, list[str]]:
    """The layout of a folder, its contents, and the names of other layouts in it that are not read."""
    if not path:
        raise UserError("no data set is given; give a folder or shapes:N with --data")
    root = Path(path).expanduser()
    if not root.exists():
        raise UserError(
            f"{path}: no such folder; give a folder in COCO, Pascal VOC or YOLO layout, or shapes:N, with --data"
        )
    sources = {name: format.find(root) for name, format in FORMATS.items()}
    layouts = [name for name, source in sources.items() if source]
    if not layouts:
        looked_for = ", ".join(
            f"{format.looked_for} for {format.title}" for format in FORMATS.values() if format.looked_for
        )
        raise UserError(
            f"{path}: no known layout (looked for {looked_for}); "
            "correct the folder or give explicit paths in the recipe"
        )
    layout, *unread = layouts
    contents = FORMATS[layout].read(sources[layout], faults)
    if not isinstance(contents, Contents):
        raise UserError(
            f"{path}: FORMATS[{layout!r}].read returned {type(contents).__name__}; "
            "return detdistill.data.records.Contents"
        )
    return layout, contents, unread


def _read_explicit(paths: Mapping[str, SplitPaths], faults: Faults) -> tuple[str, Contents]:
    """The layout and the contents of explicit annotation and image paths per split."""
    layouts = {name: _explicit_layout(name, split) for name, split in paths.items()}
    if len(set(layouts.values())) > 1:
        listed = ", ".join(f"data.{name} is {layout}" for name, layout in layouts.items())
        raise UserError(f"the splits have different layouts ({listed}); use the same layout for all splits")
    layout = next(iter(layouts.values()))
    if layout == "coco":
        sources = {name: coco.Source(split.annotations, (split.images,)) for name, split in paths.items()}
        return layout, coco.read(sources, faults)
    if layout == "voc":
        voc_pairs = {name: voc.pairs_in(split.annotations, split.images) for name, split in paths.items()}
        return layout, voc.read(voc_pairs, faults)
    names = _class_names(next(iter(paths.values())).annotations)
    yolo_pairs = {name: yolo.pairs_in(split.annotations, split.images) for name, split in paths.items()}
    return layout, yolo.read(yolo.Sources(names, yolo_pairs), faults)


def _explicit_layout(name: str, split: SplitPaths) -> str:
    """The layout of one split with explicit paths. Raises UserError if it has none."""
    if not split.images.is_dir():
        raise UserError(f"data.{name}.images: {split.images} is not a folder; give the folder of the images")
    if split.annotations.is_file():
        return "coco"
    if next(split.annotations.glob("*.xml"), None):
        return "voc"
    if next(split.annotations.rglob("*.txt"), None):
        return "yolo"
    raise UserError(
        f"data.{name}.annotations: {split.annotations} is neither a COCO JSON file nor a folder of XML or text files; "
        "correct the path"
    )


def _class_names(labels: Path) -> dict[int, str]:
    """The class names in a file inside a folder of YOLO labels, or in one of the two folders above it."""
    places = [labels / "classes.txt"]
    for folder in (labels, *list(labels.parents)[:2]):
        places += [folder / name for name in (*yolo.YAMLS, "classes.txt")]
    for place in places:
        if place.is_file():
            return yolo.class_names(place)
    folders = ", ".join(dict.fromkeys(str(place.parent) for place in places))
    raise UserError(
        f"{labels}: the class names are missing (looked for data.yaml and classes.txt in {folders}); "
        "put one of these files there"
    )
