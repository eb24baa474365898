"""The files of a YOLO data set: images, label files and class names, from `data.yaml`, `obj.data` or the folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detdistill.data.images import images_in
from detdistill.data.locate import Locator, name_parts
from detdistill.data.sidecars import IMAGES
from detdistill.errors import UserError, plural
from detdistill.recipe import yaml_problem
from detdistill.text import read_lines, read_text

YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAMES = ("classes.txt", "obj.names", "classes.names", "names.txt")  # files with one class name per line
SPLITS = ("train", "val", "valid", "test")

LARGEST = 100_000  # bytes of an obj.data

Labeled = tuple[Path, Path]  # an image and its label file, which may be absent


@dataclass(frozen=True)
class Sources:
    """The files of a data set.

    names: class names by class number.
    splits: for each split, (image, label file) of each image. The label file may be absent.
    notes: lines for the user.
    absent: splits that are named but not there, with the message for a run that needs one.
    keypoints: see `yolo_rows.choose_reading`.
    """

    names: Mapping[int, str]
    splits: Mapping[str, Sequence[Labeled]]
    notes: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    keypoints: tuple[int, ...] | None = None


class Labels:
    """Finds the label file of an image: labels/a/b.txt for images/a/b.jpg, or else the text file beside the image."""

    def __init__(self) -> None:
        self._folders: dict[Path, Locator] = {}

    def of(self, image: Path) -> Path:
        """The label file, or where it belongs if there is none."""
        if image.parent not in self._folders:
            self._folders[image.parent] = Locator([_label_folder(image.parent)])
        files, name = self._folders[image.parent], f"{image.stem}.txt"
        return files.find(name) or files.folders[0] / name


def load_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises UserError if it can't be read."""
    try:
        return yaml.safe_load(read_text(path))
    except OSError as error:
        raise UserError(f"{path}: can't read the file ({error.strerror}); correct the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: invalid YAML: {yaml_problem(error)}") from None


def from_yaml(path: Path) -> Sources:
    """The files that a data.yaml names. Raises UserError with the key if something is wrong."""
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: the file is not a YAML mapping; write the keys path, train, val, test and names")
    notes = []
    root = path.parent / str(content.get("path") or "")
    if not root.is_dir():
        notes.append(
            f"{path.name}: path is {content['path']}, which does not exist; "
            f"the splits are looked for beside {path.name}"
        )
        root = path.parent
    entries = {split: content[split] for split in SPLITS if content.get(split)}
    if not entries:
        raise UserError(f"{path}: train, val and test are missing; give the image folders of the splits")
    listed = {split: entry if isinstance(entry, list) else [entry] for split, entry in entries.items()}
    found = _Found(path, notes)
    for split, items in listed.items():
        found.add(split, [(str(item), _place(root, path, split, str(item), notes)) for item in items])
    return found.sources(class_names(path), keypoints(path))


def from_darknet(path: Path) -> Sources:
    """The files that an `obj.data` names: `train`, `valid`, `names`. Raises UserError with the key if one is wrong."""
    content = darknet_keys(path)
    notes: list[str] = []
    files = Locator([path.parent, path.parent.parent])
    names = files.find(content.get("names", ""))
    if names is None:
        raise UserError(
            f"{path}: names: {content.get('names')} does not exist; put the file with the class names there"
        )
    numbered = class_names(names)
    if content.get("classes", str(len(numbered))) != str(len(numbered)):
        raise UserError(
            f"{path}: classes is {content['classes']}, but {names.name} has {plural(len(numbered), 'name')}; "
            "correct one of them"
        )
    entries = {split: content[split] for split in SPLITS if content.get(split)}
    if not entries:
        raise UserError(f"{path}: train and valid are missing; give the lists of images")
    found = _Found(path, notes)
    used: dict[Path, str] = {}
    for split, entry in entries.items():
        place = files.find(entry) or path.parent / entry
        if place in used:
            notes.append(f"{path.name}: {split} is the same list as {used[place]}, so there is no split {split!r}")
            continue
        used[place] = split
        found.add(split, [(entry, place)])
    return found.sources(numbered, None)


def darknet_keys(path: Path) -> dict[str, str]:
    """The lines `key = value` of an obj.data, or nothing if the file is too large to be one."""
    content = {}
    for line in read_lines(path) if path.stat().st_size < LARGEST else []:
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            content[key.strip()] = value.strip()
    return content


class _Found:
    """Collects the splits of a file that names them."""

    def __init__(self, path: Path, notes: list[str]):
        self._path, self._notes, self._labels = path, notes, Labels()
        self._splits: dict[str, list[Labeled]] = {}
        self._absent: dict[str, str] = {}

    def add(self, split: str, entries: Sequence[tuple[str, Path]]) -> None:
        """Add a split. If it can't be used, its message is kept and noted.

        entries: image folders or lists of images, each as it is written and where it is.
        """
        images: list[Path] = []
        for entry, place in entries:
            if place.is_dir():
                images += images_in(place)
            elif place.is_file() and place.suffix.lower() == ".txt":
                images += listed_images(read_lines(place), place.parent, self._path.parent)
            else:
                problem = f"{entry} is neither a folder nor a list of images (looked for {place})"
                self._leave_out(split, problem, "correct or remove it")
                return
        pairs = [(image, self._labels.of(image)) for image in dict.fromkeys(images)]
        if not pairs:
            self._leave_out(split, f"{entries[0][1]} has no image", "correct or remove it")
        elif not any(image.is_file() for image in images):
            problem = f"none of its {len(pairs)} images exists (looked for {images[0]})"
            self._leave_out(split, problem, "put the images there, for example by exporting the data set with images")
        elif not any(label.is_file() for _, label in pairs):
            folder = min(label.parent for _, label in pairs)
            problem = f"none of its {len(pairs)} images has a label file (looked in {folder})"
            self._leave_out(split, problem, "put labels/ beside images/")
        else:
            self._splits[split] = pairs

    def sources(self, names: Mapping[int, str], keypoints: tuple[int, ...] | None) -> Sources:
        """Everything that was added. Raises UserError if no split can be used."""
        if not self._splits:
            raise UserError(next(iter(self._absent.values())))
        return Sources(names, self._splits, tuple(self._notes), self._absent, keypoints)

    def _leave_out(self, split: str, problem: str, remedy: str) -> None:
        self._absent[split] = f"{self._path}: {split}: {problem}; {remedy}"
        self._notes.append(f"{self._path.name}: {split}: {problem}; the split is left out")


def class_names(path: Path) -> dict[int, str]:
    """Class names by class number.

    path: a data.yaml, where `names` is a list or a mapping from numbers, or a text file with one name per line.
    Raises UserError if the names are missing or not unique.
    """
    names: Any
    if path.suffix.lower() not in (".yaml", ".yml"):
        names = read_lines(path)
    else:
        content = load_yaml(path)
        names = content.get("names") if isinstance(content, dict) else None
        count = content.get("nc") if isinstance(content, dict) else None
        if names and count is not None and count != len(names):
            raise UserError(f"{path}: nc is {count}, but 'names' has {len(names)} names; correct one of them")
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not numbered:
        raise UserError(f"{path}: 'names' is missing; list the class names")
    numbered = {int(key) if isinstance(key, str) and key.isdecimal() else key: name for key, name in numbered.items()}
    if not all(isinstance(key, int) and key >= 0 for key in numbered):
        keys = ", ".join(map(str, numbered))
        raise UserError(f"{path}: 'names' has the keys {keys}; use class numbers from 0 as keys")
    sorted_names = {key: str(name) for key, name in sorted(numbered.items())}
    if len(set(sorted_names.values())) < len(sorted_names):
        raise UserError(f"{path}: 'names' has the same name twice; give each class its own name")
    return sorted_names


def keypoints(path: Path) -> tuple[int, ...] | None:
    """kpt_shape of a data.yaml as (key points, numbers per key point), () if it is `none`, or None if it is missing."""
    content = load_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else {}
    if not isinstance(content, dict) or "kpt_shape" not in content:
        return None
    shape = content["kpt_shape"]
    if shape in (None, "none", []):
        return ()
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(isinstance(value, int) and not isinstance(value, bool) for value in shape)
        and shape[0] > 0
        and shape[1] in (2, 3)
    ):
        raise UserError(f"{path}: kpt_shape is {shape!r}; write [key points, 2 or 3], such as [17, 3], or none")
    return tuple(shape)


def listed_images(lines: Sequence[str], *folders: Path) -> list[Path]:
    """The images that a list names. An image that is not found is expected in the first folder."""
    locator = Locator(folders)
    return [locator.find(line) or folders[0] / line for line in lines]


def _place(root: Path, path: Path, split: str, entry: str, notes: list[str]) -> Path:
    """The folder or list of images of a split. It is noted if only the end of the path in the file exists."""
    place = root / entry
    if place.exists():
        return place
    parts = name_parts(entry)
    for start in range(len(parts)):
        tail = Path(*parts[start:])
        if ".." not in tail.parts and (root / tail).exists():
            if parts[0] != "..":  # Roboflow writes ../train/images for a folder beside data.yaml
                notes.append(f"{path.name}: {split} is {entry}, which does not exist; {tail} is read")
            return root / tail
    return place


def _label_folder(folder: Path) -> Path:
    """The folder of the labels of the images in a folder."""
    parts = list(folder.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index].casefold() in IMAGES:
            for name in ("labels", "Labels", "LABELS", "label"):
                labels = Path(*parts[:index], name, *parts[index + 1 :])
                if labels.is_dir():
                    return labels
            beside = Path(*parts[:index], "labels", *parts[index + 1 :])
            has_text = next((True for path in folder.glob("*") if path.suffix.lower() == ".txt"), False)
            return folder if has_text else beside
    return folder
