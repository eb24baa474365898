"""Which layout a data set is in, found out by looking, and its reading."""

from collections.abc import Mapping
from pathlib import Path

from detdistill.data import coco, shapes, voc, yolo
from detdistill.data.faults import Faults
from detdistill.data.images import SUFFIXES, images_in, look_all, settle
from detdistill.data.records import Contents, Data, Objects, Record, Split
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, SplitPaths

TITLES = {"coco": "COCO JSON", "voc": "Pascal VOC", "yolo": "YOLO", "shapes": "built-in shapes"}


def open_data(config: DataConfig) -> Data:
    """Every split of a data set, its layout found out by looking. No pixel is decoded, except with on_bad_record: skip, where every
    image is, so that a broken one is left out here and not met in training.

    With `skip` the unit that is left out is what can't be read: a box, a label line, or an image with its annotations.
    Raises UserError naming file, field and remedy.
    """
    faults = Faults(config.on_bad_record)
    explicit = {name: paths for name in ("train", "val", "test") if (paths := getattr(config, name)) is not None}
    if explicit and config.path:
        raise UserError(f"data.path is {config.path!r} and data.{next(iter(explicit))} is given too; keep one of them")
    also: list[str] = []
    if explicit:
        layout, contents = _explicit(explicit, faults)
    elif shapes.named(config.path):
        layout, contents = "shapes", shapes.read(config.path)
    else:
        layout, contents, also = _folder(config.path, faults)
    splits = {
        name: Split(name, records, contents.classes, contents.category_ids) for name, records in contents.splits.items()
    }
    empty = next((name for name, split in splits.items() if not split.records), None)
    if empty is not None:
        raise UserError(
            f"{config.path or explicit[empty].images}: split {empty!r} has no image that can be read; correct or remove it"
        )
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    count = len(contents.classes)
    notes = [
        f"data: {TITLES[layout]}; images: {counts}; {count} class{'es' * (count > 1)}",
        *contents.notes,
        *faults.notes(),
    ]
    if also:
        notes.insert(
            1, f"the folder also has a {' and a '.join(TITLES[other] for other in also)} layout, which is not read"
        )
    return Data(layout, contents.classes, contents.category_ids, splits, tuple(notes), faults)


def read_images(paths: list[Path] | list[str] | tuple[Path | str, ...], config: DataConfig) -> list[Record]:
    """Plain image files, and those of folders (by name, with those below), as records without objects; ids from 1.

    Raises UserError naming the path; with on_bad_record: skip a file that can't be read is left out, with a warning in the log.
    """
    faults = Faults(config.on_bad_record)
    files: list[Path] = []
    for path in map(Path, paths):
        found = images_in(path) if path.is_dir() else [path]
        if not found:
            raise UserError(
                f"{path}: no image in this folder (looked for {', '.join(sorted(SUFFIXES))}); give a folder of images"
            )
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder; give images or folders of images")
        files += found
    records = []
    for id, (path, header) in enumerate(zip(files, look_all(files, faults), strict=True), start=1):
        settled = settle(path, header, None, faults, "")
        if settled is not None:
            picture, size = settled
            records.append(Objects.none().record(id, path.name, size, picture))
    faults.warn()
    if not records:
        raise UserError(f"{', '.join(map(str, paths))}: no image that can be read; give images or folders of images")
    return records


def _folder(path: str, faults: Faults) -> tuple[str, Contents, list[str]]:
    root = Path(path).expanduser()
    if not path:
        raise UserError("no data: give a folder or shapes:N with --data")
    if not root.exists():
        raise UserError(
            f"{path}: there is no such folder; --data is a folder in COCO, Pascal VOC or YOLO layout, or shapes:N"
        )
    files, lists, sheet = coco.find(root), voc.find(root), yolo.find(root)
    found = [name for name, there in (("coco", files), ("voc", lists), ("yolo", sheet)) if there]
    if files:
        return "coco", coco.read(files, faults), found[1:]
    if lists:
        return "voc", voc.read(lists, faults), found[1:]
    if sheet:
        return "yolo", yolo.read(yolo.sources(sheet), faults), []
    raise UserError(
        f"{path}: no layout found; looked for annotations/instances_<split>*.json or <split>/{coco.ROBOFLOW} (COCO), "
        "Annotations + JPEGImages + ImageSets/Main/*.txt (Pascal VOC), data.yaml (YOLO); or give explicit paths in the recipe"
    )


def _explicit(paths: Mapping[str, SplitPaths], faults: Faults) -> tuple[str, Contents]:
    layouts = {name: _layout(name, split) for name, split in paths.items()}
    if len(set(layouts.values())) > 1:
        raise UserError(
            f"the splits are in different layouts ({', '.join(f'data.{n}: {kind}' for n, kind in layouts.items())}); keep to one"
        )
    layout = next(iter(layouts.values()))
    if layout == "coco":
        return layout, coco.read(
            {name: coco.Source(split.annotations, (split.images,)) for name, split in paths.items()}, faults
        )
    if layout == "voc":
        return layout, voc.read(
            {name: voc.listed(split.annotations, split.images) for name, split in paths.items()}, faults
        )
    names = _names(next(iter(paths.values())).annotations)
    splits = {name: yolo.listed(split.annotations, split.images) for name, split in paths.items()}
    return layout, yolo.read(yolo.Sources(names, splits), faults)


def _layout(name: str, split: SplitPaths) -> str:
    if not split.images.is_dir():
        raise UserError(f"data.{name}.images: {split.images} is no folder; give the folder of the images")
    if split.annotations.is_file():
        return "coco"
    if next(split.annotations.glob("*.xml"), None):
        return "voc"
    if next(split.annotations.rglob("*.txt"), None):
        return "yolo"
    raise UserError(
        f"data.{name}.annotations: {split.annotations} is neither a COCO JSON file nor a folder of XML or text files; correct it"
    )


def _names(labels: Path) -> dict[int, str]:
    """Class names that stand beside a folder of YOLO labels, or above it."""
    places = [
        labels / "classes.txt",
        *(folder / name for folder in (labels, *list(labels.parents)[:2]) for name in (*yolo.YAMLS, "classes.txt")),
    ]
    for place in places:
        if place.is_file():
            return yolo.class_names(place)
    looked = ", ".join(dict.fromkeys(str(place.parent) for place in places))
    raise UserError(f"{labels}: no class names (looked for data.yaml and classes.txt in {looked}); put them there")
