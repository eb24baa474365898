"""All files below a folder, listed once, for layouts that are recognized by their files and not by fixed names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from detdistill.data.images import SUFFIXES
from detdistill.errors import UserError

PROBED = 5  # at least so many files are looked at, and less than twice as many
IGNORED = frozenset({"__MACOSX"})  # folders that unpacking leaves behind; hidden files and folders are ignored too


@dataclass(frozen=True)
class Tree:
    """The files of a data set. files: of the folder and its subfolders, sorted."""

    root: Path
    files: tuple[Path, ...]

    @cached_property
    def images(self) -> list[Path]:
        """The image files."""
        return self.ending(*SUFFIXES)

    def ending(self, *suffixes: str) -> list[Path]:
        """The files with one of these suffixes, such as `.xml`, in any case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def parts(self, path: Path) -> tuple[str, ...]:
        """The names of the folders between the root and a file."""
        return path.relative_to(self.root).parts[:-1]


@lru_cache(maxsize=1)
def tree(root: Path) -> Tree:
    """The files below a folder. The last result is kept: call `tree.cache_clear` before a folder is opened."""
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not _is_ignored(name)]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return Tree(root, tuple(sorted(files)))


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: can't list the folder ({error.strerror}); correct its permissions")


def probed(paths: Sequence[Path]) -> Sequence[Path]:
    """A few of the files, spread evenly, from which a layout is recognized."""
    return paths[:: max(1, len(paths) // PROBED)]


def child(root: Path, names: tuple[str, ...]) -> Path | None:
    """The subfolder of `root` with the first of these names (lower case) that exists, in any case."""
    if not root.is_dir():
        return None
    folders = {path.name.casefold(): path for path in sorted(root.iterdir()) if path.is_dir()}
    return next((folders[name] for name in names if name in folders), None)


def only_folder(root: Path) -> Path | None:
    """The subfolder of `root` if there is exactly one, hidden ones not counted."""
    folders = [path for path in root.iterdir() if path.is_dir() and not _is_ignored(path.name)] if root.is_dir() else []
    return folders[0] if len(folders) == 1 else None


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in IGNORED
