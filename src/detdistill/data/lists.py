"""Text files that list the images of a split: VOC's `ImageSets/Main/*.txt`, and `train.txt` of YOLO and others."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from detdistill.data.images import SUFFIXES
from detdistill.data.locate import name_parts
from detdistill.data.roles import role
from detdistill.text import read_lines

FLAG = re.compile(r"\s+(-1|0|1)$")  # VOC's lists per class say after each image whether it has the class
CLASS_LIST = re.compile(r"_(train|val|trainval|test)$")
PROBED = 20  # lines from which a list of images is recognized


def image_lists(folder: Path, is_image: Callable[[str], bool]) -> dict[str, list[str]]:
    """The lists of images in a folder, by their names without `.txt`: those with a role.

    is_image: whether a line is the name of an image.
    """
    found = {}
    for path in _texts(folder):
        if role(path.stem) is None and path.stem.casefold() != "trainval":
            continue
        lines = read_lines(path)
        probed = lines[:PROBED]
        if lines and 2 * sum(map(is_image, probed)) >= len(probed):  # a wrong line is told later
            found[path.stem] = lines
    return found


def voc_lists(folder: Path, exists: Callable[[str], bool]) -> tuple[dict[str, list[str]], list[str]]:
    """The image names of each list in a folder, by the name of the list, and notes. Names have no suffix.

    VOC's lists per class (`dog_train.txt`, lines such as `000005 -1`) are left out if there is a list of the whole
    split (`train.txt`). Otherwise the split has the images of all lists per class. exists: whether an image name has
    annotations, since a name may end like a flag.
    """
    lines = {path.stem: read_lines(path) for path in _texts(folder)}
    flagged = {stem for stem, names in lines.items() if _are_flagged(names, exists)}
    splits: dict[str, list[str]] = {}
    united = []
    for stem, names in lines.items():
        split, suffix = stem, CLASS_LIST.search(stem)
        if stem in flagged:
            names = [FLAG.sub("", name) for name in names]
            if suffix is not None:
                split = suffix[1]
                if split in lines:
                    continue
                united.append(stem)
        splits.setdefault(split, []).extend(image_name(name) for name in names)
    notes = []
    if len(united) > 1:
        notes.append(f"{folder.name} has only lists per class ({', '.join(united)}); a split has the images of all")
    return {stem: list(dict.fromkeys(names)) for stem, names in splits.items()}, notes


def image_name(line: str) -> str:
    """The name in a line of a list without the suffix of an image or of its annotations, with slashes."""
    name = "/".join(name_parts(line))
    known = Path(name).suffix.lower() in SUFFIXES | {".xml"}
    return name[: -len(Path(name).suffix)] if known else name


def _texts(folder: Path) -> Iterable[Path]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in files if path.suffix.lower() == ".txt" and path.is_file()]


def _are_flagged(lines: list[str], exists: Callable[[str], bool]) -> bool:
    """True if every line ends with a flag, and the lines are not names of images themselves."""
    return bool(lines) and all(FLAG.search(line) for line in lines) and not exists(image_name(lines[0]))
