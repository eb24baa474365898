"""Splits that are given by explicit paths of annotations and images."""

from collections.abc import Mapping
from pathlib import Path

from detdistill.data import coco, voc, yolo
from detdistill.data.faults import Faults
from detdistill.data.records import Contents
from detdistill.errors import UserError
from detdistill.recipe import SplitPaths


def read_explicit(paths: Mapping[str, SplitPaths], faults: Faults) -> tuple[str, Contents]:
    """The layout and the contents of explicit annotation and image paths per split."""
    layouts = {name: _layout(name, split) for name, split in paths.items()}
    if len(set(layouts.values())) > 1:
        listed = ", ".join(f"data.{name} is {layout}" for name, layout in layouts.items())
        raise UserError(f"the splits have different layouts ({listed}); use the same layout for all splits")
    layout = next(iter(layouts.values()))
    if layout == "coco":
        sources = {name: coco.Source(split.annotations, (split.images,)) for name, split in paths.items()}
        return layout, coco.read(sources, faults)
    if layout == "voc":
        voc_pairs = {name: voc.pairs_in(split.annotations, split.images) for name, split in paths.items()}
        folders = tuple(split.images for split in paths.values())
        return layout, voc.read(voc.Sources(voc_pairs, folders), faults)
    place = _names_file(next(iter(paths.values())).annotations)
    yolo_pairs = {name: yolo.pairs_in(split.annotations, split.images) for name, split in paths.items()}
    files = yolo.Sources(yolo.class_names(place), yolo_pairs, keypoints=yolo.keypoints(place))
    return layout, yolo.read(files, faults)


def _layout(name: str, split: SplitPaths) -> str:
    """The layout of one split with explicit paths. Raises UserError if it has none."""
    if not split.images.is_dir():
        raise UserError(f"data.{name}.images: {split.images} is not a folder; give the folder of the images")
    if split.annotations.is_file():
        return "coco"
    if next(split.annotations.glob("*.[xX][mM][lL]"), None):
        return "voc"
    if next(split.annotations.rglob("*.[tT][xX][tT]"), None):
        return "yolo"
    raise UserError(
        f"data.{name}.annotations: {split.annotations} is neither a COCO JSON file nor a folder of XML or text files; "
        "correct the path"
    )


def _names_file(labels: Path) -> Path:
    """The file of class names inside a folder of YOLO labels, or in one of the two folders above it."""
    places = [labels / name for name in yolo.NAMES]
    for folder in (labels, *list(labels.parents)[:2]):
        places += [folder / name for name in (*yolo.YAMLS, *yolo.NAMES)]
    for place in places:
        if place.is_file():
            return place
    folders = ", ".join(dict.fromkeys(str(place.parent) for place in places))
    raise UserError(
        f"{labels}: the class names are missing (looked for data.yaml and classes.txt in {folders}); "
        "put one of these files there"
    )
