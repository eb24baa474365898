"""Finding COCO files, the split that each belongs to, and the folders where its images may be."""

import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detdistill.errors import UserError, some
from detdistill.text import read_text

ROBOFLOW = "_annotations.coco.json"
PILE = "all"  # the split of a file whose name says neither train, val nor test; it can be cut into splits
WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "trainval",
    "val": "val",
    "valid": "valid",
    "validation": "val",
    "test": "test",
    "testing": "test",
}  # words in names of files and folders, and the split that they mean
PLAIN = re.compile(rf"(?:{'|'.join(WORDS)})[-_]?\d*")  # a name that is only a split, such as val or train2017
KEYS = [re.compile(rb'"%b"\s*:\s*\[' % key) for key in (b"images", b"categories", b"annotations")]
PANOPTIC = b'"segments_info"'  # COCO's panoptic files have segments of images and no boxes
MANY = 100  # a folder with more JSON files than this has one per image
HINTS = ("coco", "annotation", "instance", "label", "result", *WORDS)  # in the names of COCO files in such a folder
FOLDERS = 100  # a folder with more subfolders than this is not searched for images
ORDER = ("train", "trainval", "val", "valid", "test")  # of the splits; others follow
OTHER_LAYOUTS = ("data.y*ml", "dataset.y*ml", "obj.data", "ImageSets/Main")  # of YOLO, Darknet and VOC, with splits
BESIDE = ("images", "data", "JPEGImages")  # usual folders of images beside a COCO file
APART = ("annotations", "annotation", "labels", "json")  # folders of COCO files; the images are beside the folder
OBJECTS = "instances_"  # begins the name of COCO's own files of objects; others beside them are of key points and so on


@dataclass(frozen=True)
class Source:
    """The files of one split.

    annotations: the JSON file.
    folders: where its images may be, the most likely folder first.
    others: more folders. An image is taken from them only if its name can't mean another image.
    notes: lines for the user.
    """

    annotations: Path
    folders: tuple[Path, ...]
    others: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A COCO file.

    split: that its name or its folder says, or None.
    is_usual: the name is one that only a file of object annotations has. Other files yield to it.
    """

    source: Source
    split: str | None
    is_usual: bool

    @property
    def path(self) -> Path:
        return self.source.annotations


def find(root: Path) -> dict[str, Source]:
    """The splits of a folder in COCO layout by name, or {} if it has another layout.

    root: a folder, or a single JSON file. Files whose names say no split are the split `all` if there is one of them,
    and splits with the names of the files if there are several. If other files have splits, these are not read.
    In a folder of another layout that has splits, only the usual names of COCO files count.
    Raises UserError if two files belong to the same split.
    """
    if root.is_file():
        return _single(root) if root.suffix.lower() == ".json" else {}
    listed, notes = _in_annotations(root)
    candidates = [*_in_split_folders(root), *listed, *_beside_images(root)]
    if not any(candidate.is_usual for candidate in candidates) and any(
        found for pattern in OTHER_LAYOUTS for found in root.glob(pattern)
    ):
        return {}
    own = [candidate.path.name for candidate in candidates if candidate.path.name.startswith(OBJECTS)]
    if own and not all(candidate.is_usual for candidate in candidates):
        files = some(candidate.path.name for candidate in candidates if not candidate.is_usual)
        notes.append(f"not read: {files}, because {own[0]} has COCO's own name; name all files of objects like it")
        candidates = [candidate for candidate in candidates if candidate.is_usual]
    named = [candidate for candidate in candidates if candidate.split is not None]
    unnamed = [candidate for candidate in candidates if candidate.split is None]
    if named and unnamed:
        files = some(candidate.path.name for candidate in unnamed)
        notes.append(f"not read: {files}, whose name says neither train, val nor test")
    if not named and len(unnamed) == 1:
        named = [replace(unnamed[0], split=PILE)]
    elif not named:
        named = [replace(candidate, split=candidate.path.stem) for candidate in unnamed]
    sources: dict[str, Source] = {}
    splits = dict.fromkeys(candidate.split or "" for candidate in named)
    for split in sorted(splits, key=lambda split: ORDER.index(split) if split in ORDER else len(ORDER)):
        chosen, yielding = _choose([candidate for candidate in named if candidate.split == split])
        sources[split] = chosen.source
        if yielding:
            files = some(candidate.path.name for candidate in yielding)
            notes.append(f"not read: {files}, because {chosen.path.name} has the split {split!r}")
    if sources and notes:
        first = next(iter(sources))
        sources[first] = replace(sources[first], notes=tuple(notes))
    return sources


def split_name(name: str) -> str | None:
    """The split that a word in the name of a file or a folder means, or None if no word or several words do."""
    splits = {WORDS[word] for word in re.findall(r"[a-z]+", name.casefold()) if word in WORDS}
    return splits.pop() if len(splits) == 1 else None


def is_coco(path: Path) -> bool:
    """True if a file has the lists images, annotations and categories of a COCO file with objects.

    The file is searched for these keys and not parsed, because it may be large.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if b"\0" in start:  # UTF-16
                text = read_text(path).lstrip()
                return text.startswith("{") and _has_keys(text.encode())
            if not start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _has_keys(content)
    except (OSError, ValueError):
        return False


def _has_keys(content: bytes | mmap.mmap) -> bool:
    return all(key.search(content) for key in KEYS) and content.find(PANOPTIC) < 0


def _single(path: Path) -> dict[str, Source]:
    """The split of a COCO file that is given alone."""
    suffix, split, _ = _meaning(path.stem)
    folder = path.parent
    name = folder.name.casefold()
    is_of_split = PLAIN.fullmatch(name) is not None
    split = split or (split_name(name) if is_of_split else None)
    is_apart = name in APART or is_of_split
    folders, others = _image_folders(folder.parent if is_apart else folder, suffix, split)
    folders = tuple(dict.fromkeys([folder, *(folder / name for name in BESIDE), *folders]))
    return {split or PILE: Source(path, folders, tuple(other for other in others if other not in folders))}


def _in_split_folders(root: Path) -> list[Candidate]:
    """The COCO files in folders such as `train` or `images/valid`, beside the images of the split."""
    candidates = []
    for folder in [*subfolders(root), *subfolders(root / "images")]:
        split = split_name(folder.name)
        if split is None:
            continue
        inside = (folder, *(folder / name for name in BESIDE))
        folders, others = _image_folders(root, folder.name, split)
        folders = tuple(dict.fromkeys([*inside, *folders]))
        for path in _coco_files(folder):
            source = Source(path, folders, tuple(other for other in others if other not in folders))
            candidates.append(Candidate(source, split, path.name == ROBOFLOW))
    return candidates


def _in_annotations(root: Path) -> tuple[list[Candidate], list[str]]:
    """The COCO files in `annotations`, and a note about the other files there."""
    candidates, unread = [], []
    for path in _promising(root / "annotations"):
        suffix, split, is_usual = _meaning(path.stem)
        if is_usual or is_coco(path):
            folders, others = _image_folders(root, suffix, split)
            candidates.append(Candidate(Source(path, folders, others), split, is_usual))
        else:
            unread.append(path)
    names = some(path.name for path in unread)
    notes = [f"not read: {names}, because it has no objects of COCO's format"] if unread else []
    return candidates, notes


def _beside_images(root: Path) -> list[Candidate]:
    """The COCO files in the folder itself."""
    candidates = []
    for path in _coco_files(root):
        suffix, split, is_usual = _meaning(path.stem)
        folders, others = _image_folders(root, suffix, split)
        candidates.append(Candidate(Source(path, folders, others), split, is_usual))
    return candidates


def _meaning(stem: str) -> tuple[str, str | None, bool]:
    """What the name of a COCO file says.

    Returns the name that its image folder may have (such as train2017), the split or None, and whether only a file of
    object annotations has such a name.
    """
    if not PLAIN.fullmatch(stem) and not stem.startswith(OBJECTS):
        return stem, split_name(stem), False
    suffix = stem.removeprefix(OBJECTS)
    split = split_name(suffix) or re.sub(r"[-_]?\d{4}$", "", suffix) or suffix
    return suffix, None if split in (PILE, "default") else split, True  # CVAT writes instances_default.json


def _image_folders(root: Path, own: str, split: str | None) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The folders below `root` that belong to a file, the most likely first, and the other folders of images.

    own: the name that the file's own folder may have. split: of the file, or None.
    """
    images = root / "images"
    folders = [root / own, images / own]
    if split is not None:
        folders += [root / split, images / split]
    others = [*subfolders(root), *subfolders(images)]
    if split is not None and not any(folder.is_dir() for folder in folders):
        folders += [folder for folder in others if _same_split(split_name(folder.name), split)]
    folders += [images, root, *(root / name for name in BESIDE[1:])]
    return tuple(dict.fromkeys(folders)), tuple(folder for folder in others if folder not in folders)


def _same_split(one: str | None, other: str) -> bool:
    return one == other or {one, other} == {"val", "valid"}


def _choose(candidates: Sequence[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """The file of a split, and the files that yield to it. Raises UserError if two have the same right."""
    usual = [candidate for candidate in candidates if candidate.is_usual] or list(candidates)
    if len(usual) > 1:
        split = usual[0].split
        key = "val" if split == "valid" else split if split in ("train", "val", "test") else "train"
        raise UserError(
            f"{usual[1].path}: {usual[0].path.name} also belongs to split {split!r}; "
            f"remove one of the files or give explicit paths with data.{key}"
        )
    return usual[0], [candidate for candidate in candidates if candidate is not usual[0]]


def _coco_files(folder: Path) -> list[Path]:
    """The COCO files directly in a folder. A file with Roboflow's name is not looked into."""
    return [path for path in _promising(folder) if path.name == ROBOFLOW or is_coco(path)]


def _promising(folder: Path) -> list[Path]:
    """The JSON files in a folder; if there is one per image, those with a name of a COCO file."""
    files = sorted(folder / name for name in _names(folder) if name.casefold().endswith(".json"))
    if len(files) > MANY:
        files = [path for path in files if any(hint in path.name.casefold() for hint in HINTS)]
    return files


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that may have images; none if there are too many."""
    names = [name for name in _names(folder, folders=True) if name.casefold() != "annotations"]
    return sorted(folder / name for name in names) if len(names) <= FOLDERS else []


def _names(folder: Path, folders: bool = False) -> list[str]:
    """The names of the files, or of the folders, in a folder that may not exist; without hidden ones."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:  # knows what is a folder without a look at each file
        return [entry.name for entry in entries if entry.is_dir() == folders and not entry.name.startswith(".")]
