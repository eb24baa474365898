"""Annotation files with the name of their image: beside it, or in folders of the same structure; and their splits.

Examples for the image `a.jpg`: images/a.jpg and images/a.xml; images/train/a.jpg and labels/train/a.txt;
train/images/a.jpg and train/labels/a.txt; Annotations/a.xml and images/test/a.jpg.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from detdistill.data.faults import names_of
from detdistill.data.locate import Locator
from detdistill.data.roles import role
from detdistill.data.tree import Tree
from detdistill.errors import UserError, plural

IMAGES = ("jpegimages", "images", "image", "imgs", "img")
ANNOTATIONS = ("annotations", "annotation", "xmls", "xml")
LABELS = ("labels", "label")
KINDS = frozenset({*IMAGES, *ANNOTATIONS, *LABELS, "jsons", "json", "txts", "txt"})  # folders that say what is in them

Pair = tuple[Path, Path | None]  # a file and its partner, or None if it has none


class Siblings:
    """Finds, among `files`, the file with the name of another file: an image by its annotations or the reverse.

    folders: the names of the folders above a file, from the root of the data set.
    """

    def __init__(self, files: Iterable[Path], folders: Callable[[Path], tuple[str, ...]]):
        self._folders = folders
        self._by_stem: dict[str, list[Path]] = {}
        for path in files:
            self._by_stem.setdefault(path.stem.casefold(), []).append(path)

    def find(self, path: Path) -> Path | None:
        """The file of the same name, without its suffix, that lies nearest, or None if there is none.

        The nearest one is in the same folder, or else in a folder of the same structure (`labels/train` for
        `images/train`), or else the only one whose folder does not contradict. Raises UserError if there are several.
        """
        found = self._by_stem.get(path.stem.casefold(), [])
        found = [other for other in found if other.stem == path.stem] or found
        here = self._place(path)
        for nearest in (
            [other for other in found if other.parent == path.parent],
            [other for other in found if self._place(other) == here],
        ):
            if nearest:
                return nearest[0]
        fitting = [other for other in found if _agree(self._place(other), here)]
        if len(fitting) > 1:
            files = " and ".join(map(str, fitting))
            raise UserError(f"{path}: {files} belong to it by their names; put it beside one of them, or rename one")
        return fitting[0] if fitting else None

    def _place(self, path: Path) -> tuple[str, ...]:
        """The folders of a file in lower case, without those that only say what is in them."""
        return tuple(part.casefold() for part in self._folders(path) if part.casefold() not in KINDS)


class Named:
    """Finds images by the names in annotation files. folders: where they may be, the most likely folder first."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = tuple(folders)
        self._everywhere, self._beside = Locator(folders), dict[Path, Locator]()

    def anywhere(self, name: str) -> Path | None:
        """The image in one of the folders."""
        return self._everywhere.find(name)

    def beside(self, annotation: Path, name: str) -> Path | None:
        """The image in the folder of an annotation file, or at the place that the name gives from there."""
        folder = annotation.parent
        if folder not in self._beside:
            self._beside[folder] = Locator([folder])
        return self._beside[folder].find(name)


def _agree(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """True if the shorter sequence is the beginning or the end of the longer one."""
    short, long = sorted((first, second), key=len)
    return short in (long[: len(short)], long[len(long) - len(short) :])


def grouped(tree: Tree, pairs: Sequence[Pair]) -> tuple[dict[str, list[Pair]], list[str]]:
    """The pairs by split, and notes. Without folders that are splits, all pairs are in the split "".

    A pair is in the split of the first folder with a role above its first file, or else above its second file. A
    folder whose name has other words too, such as `test_tubes`, is a split only if there is a training split.
    """
    check_unique(pairs)
    folders = {part for pair in pairs for path in pair if path is not None for part in tree.parts(path)}
    trained = any(role(part) == "train" for part in folders)
    splits = {part for part in folders if role(part) and (trained or role(part, exact=True))}
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        parts = [part for path in pair if path is not None for part in tree.parts(path)]
        groups.setdefault(next((part for part in parts if part in splits), ""), []).append(pair)
    notes = []
    if len(groups) > 1 and "" in groups:
        outside = groups.pop("")
        names = names_of([str(path) for path, _ in outside])
        count = plural(len(outside), "file")
        notes.append(f"{count} in no folder of a split ({', '.join(sorted(groups))}), left out: {names}")
    return dict(sorted(groups.items())), notes


def image_folders(tree: Tree) -> tuple[Path, ...]:
    """The folders with images, the largest first."""
    counts = Counter(image.parent for image in tree.images)
    return tuple(folder for folder, _ in counts.most_common())


def without_annotations(images: Iterable[Path], annotated: Iterable[Path], what: str) -> list[str]:
    """A note about the images without annotations, if there are any. what: the annotations are in, such as a file."""
    used = set(annotated)
    unused = [str(image) for image in images if image not in used]
    return (
        [f"{plural(len(unused), 'image')} without an annotation {what}, left out: {names_of(unused)}"] if unused else []
    )


def check_unique(pairs: Iterable[Pair]) -> None:
    """Raise UserError if two files have the same partner."""
    owners: dict[Path, Path] = {}
    for path, partner in pairs:
        if partner is not None and (owner := owners.setdefault(partner, path)) != path:
            raise UserError(f"{partner}: both {owner} and {path} belong to it by their names; rename or remove one")
