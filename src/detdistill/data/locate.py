"""Finding an image by the name that an annotation file gives it.

The name may have backslashes, be a URL, or be an absolute path of another machine. The image is then found by the
longest tail of the name that exists below one of the folders.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
DRIVE = re.compile(r"[A-Za-z]:")
LOCAL_FILES = "/data/local-files/"  # Label Studio's URL of a file; the path is its parameter `d`


def name_parts(name: str) -> list[str]:
    """The parts of a path that is written for any system, or of a URL, without its root."""
    if URL.match(name) or name.startswith(LOCAL_FILES):
        url = urlsplit(name)
        query = parse_qs(url.query).get("d")
        name = query[0] if query else unquote(url.path)
    name = DRIVE.sub("", name, count=1) if DRIVE.match(name) else name
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


class Locator:
    """Finds images below folders by name. It lists a folder once, the first time that an exact name is not found there.

    folders: where images may be, the most likely folder first.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = tuple(dict.fromkeys(folders))
        self._listings: dict[Path, dict[str, Path]] = {}

    def find(self, name: str) -> Path | None:
        """The file with the longest matching tail of `name`, or None.

        Case is ignored if no file has the exact name.
        """
        if (exact := self._exact(name)) is not None:
            return exact
        parts = name_parts(name)
        for start in range(len(parts)):
            for folder in self.folders:
                path = folder.joinpath(*parts[start:])
                if path.is_file():
                    return path
        for start in range(len(parts)):
            for folder in self.folders:
                path = folder.joinpath(*parts[start:])
                if (similar := self._listing(path.parent).get(path.name.casefold())) is not None:
                    return similar
        return None

    def _exact(self, name: str) -> Path | None:
        """The file of exactly this name below a folder, even if the name contains a backslash or looks like a URL."""
        for folder in self.folders:
            path = folder / name
            # A name is an absolute path if a tool wrote it so; it is used only if that file exists on this machine.
            if name and path.is_file():
                return path
        return None

    def _listing(self, folder: Path) -> dict[str, Path]:
        """The files of a folder by their names in lower case."""
        if folder not in self._listings:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            self._listings[folder] = {path.name.casefold(): path for path in files if path.is_file()}
        return self._listings[folder]
