"""The message for a folder that has no known layout: what is there, and what the nearest layouts lack."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from detdistill.data.tree import Tree, tree
from detdistill.data.xml import first_element
from detdistill.errors import plural, some

SHOWN = 6  # kinds of files, and folders
NEAREST = 2  # layouts
IMAGES = "images"
PARTS: dict[str, tuple[str, str]] = {  # layout: its annotations (a key of `_has`), and what to put there
    "YOLO": ("txt", "label files (*.txt, one per image)"),
    "Pascal VOC": ("xml", "annotation files (*.xml, one per image)"),
    "COCO JSON": ("json", "annotations/instances_<split>.json or a COCO file beside the images"),
    "LabelMe": ("json", "JSON files of LabelMe, one per image"),
    "CVAT": ("xml", "annotations.xml of CVAT for images 1.1"),
}


def message(root: Path, looked_for: Mapping[str, str]) -> str:
    """One line. looked_for: what each layout is recognized by, by its title."""
    listed = tree(root)
    if not listed.files:
        return f"{root}: the folder has no files; give the folder of a data set"
    kinds = Counter(path.suffix.lower() or "without an ending" for path in listed.files)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(SHOWN))
    folders = sorted({listed.parts(path)[0] for path in listed.files if listed.parts(path)})
    inside = f" in the folders {some(folders, SHOWN)}" if folders else ""
    near = "; ".join(f"{title} lacks {' and '.join(lacks)}" for title, lacks in _nearest(listed))
    others = [f"{text} ({title})" for title, text in looked_for.items() if title not in PARTS and text]
    own = f"; also looked for {', '.join(others)}" if others else ""
    return (
        f"{root}: no known layout. Found {found}{inside}. Nearest layouts: {near}{own}; "
        "correct the folder or give explicit paths in the recipe (docs/data.md)"
    )


def file_message(path: Path) -> str:
    """One line for a file that no layout can take."""
    return (
        f"{path}: not a file of a data set; give a COCO JSON file, data.yaml, obj.data, CVAT's annotations.xml, "
        "or the folder of a data set"
    )


def _nearest(listed: Tree) -> list[tuple[str, list[str]]]:
    """The layouts that lack least, with what they lack."""
    has_images, lacking = bool(listed.images), []
    for title, (kind, wanted) in PARTS.items():
        lacks = [] if has_images else [IMAGES]
        files = listed.ending(f".{kind}")
        if not files:
            lacks.append(wanted)
        elif (problem := _problem(title, files, listed)) is not None:
            lacks.append(problem)
        weight = len(lacks) - (0.5 if files else 0)  # files of the right kind are near, although something is wrong
        lacking.append((weight, title, lacks or ["annotation files with the names of images"]))
    lacking.sort(key=lambda item: item[0])
    return [(title, lacks) for _, title, lacks in lacking[:NEAREST]]


def _problem(title: str, files: Sequence[Path], listed: Tree) -> str | None:
    """What is wrong with files of the right kind, or None."""
    if title == "YOLO":
        stems = {path.stem for path in listed.images or files}
        count = sum(path.stem in stems for path in files)
        if count == 0:
            return "label files with the names of images"
        return f"class names (data.yaml or classes.txt; {plural(count, 'label file')} found)"
    if title in ("Pascal VOC", "CVAT"):
        wanted = {"Pascal VOC": "annotation", "CVAT": "annotations"}[title]
        root = first_element(files[0])
        return (
            f"XML files that begin with <{wanted}> ({files[0].name} begins with <{root}>)" if root != wanted else None
        )
    if title == "COCO JSON":
        return f"a file with images, annotations and categories beside its images ({files[0].name} is none)"
    return f"files with shapes and imagePath ({files[0].name} has none)"
