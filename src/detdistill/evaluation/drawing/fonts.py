"""A font that has the letters of the class names."""

import logging
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from detdistill.errors import some

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SUFFIXES = frozenset({".ttf", ".ttc", ".otf"})
PREFERRED = ("notosans-", "notosanscjk", "dejavusans.", "arial", "segoeui", "pingfang", "msyh", "malgun", "yugoth")
MISSING = "\U0010fffe"  # not a character, so that every font shows its sign for a missing glyph
PROBE = 24  # size in pixels at which glyphs are compared

logger = logging.getLogger("detdistill.evaluation")


@lru_cache(maxsize=64)
def font(path: str | None, size: int) -> Font:
    """The font file at this size in pixels. path: None means Pillow's own font, which has Latin letters only."""
    return ImageFont.load_default(size=size) if path is None else ImageFont.truetype(path, size)


@lru_cache(maxsize=16)
def choose(names: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The font file to write these class names with (None: Pillow's own font), and the names as they can be shown.

    Pillow's own font, which has few letters besides those of English, is taken if it has all of them. Otherwise it is
    the font of this machine that shows most names; fonts are looked for in the usual folders of the system. A name with
    a letter that the font lacks is shown without accents, or else as `class 3`, instead of as empty boxes, and a
    warning says so.
    """
    letters = {letter for name in names for letter in name}
    if _lacking(None, letters) == set():
        return None, names
    path, lacking = None, _lacking(None, letters)
    for candidate in font_files():
        missing = _lacking(str(candidate), letters)
        if _shown(names, missing) > _shown(names, lacking):
            path, lacking = str(candidate), missing
        if not lacking:
            break
    shown = tuple(_writable(name, index, lacking, path) for index, name in enumerate(names))
    changed = [(name, other) for name, other in zip(names, shown, strict=True) if name != other]
    if changed:
        logger.warning(
            "drawings: no font of this machine has the letters of %s; the labels show %s. Install one that has them, "
            "such as Noto Sans",
            some(name for name, _ in changed),
            some(other for _, other in changed),
        )
    return path, shown


def font_files() -> Iterator[Path]:
    """The font files of this machine; those of plain, widespread families first."""
    files = [
        file
        for folder in font_folders()
        if folder.is_dir()
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    yield from sorted(files, key=_rank)


def font_folders() -> Sequence[Path]:
    """The folders in which the system keeps its fonts."""
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", home / "AppData/Local/Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts", home / ".local/share/fonts"]


def _rank(file: Path) -> tuple[bool, int, str]:
    """Upright regular fonts first, then by the place in PREFERRED."""
    name = file.name.lower()
    is_styled = any(word in name for word in ("bold", "italic", "oblique", "light", "thin", "black", "mono", "serif"))
    place = next((index for index, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))
    return is_styled, place, name


def _lacking(path: str | None, letters: set[str]) -> set[str]:
    """The letters that the font shows with its sign for a missing glyph; all of them if it can't be read."""
    try:
        face = font(path, PROBE)
        blank = bytes(face.getmask(MISSING))
        return {letter for letter in letters if not letter.isspace() and bytes(face.getmask(letter)) == blank}
    except (OSError, ValueError):
        return set(letters)


def _writable(name: str, index: int, lacking: set[str], path: str | None) -> str:
    """The name as the font can show it: as it is, without accents, or its number."""
    if not set(name) & lacking:
        return name
    parts = unicodedata.normalize("NFKD", name)  # an accent is a character of its own
    bare = "".join(letter for letter in parts if not unicodedata.combining(letter))
    return f"class {index}" if _lacking(path, set(bare)) else bare


def _shown(names: Sequence[str], lacking: set[str]) -> int:
    return sum(not set(name) & lacking for name in names)
