"""The image entries of a COCO file, and the files that they name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detdistill.data.coco_find import Source, subfolders
from detdistill.data.faults import Faults, number_in
from detdistill.data.ids import file_id, id_key
from detdistill.data.locate import Locator, name_parts
from detdistill.errors import UserError, some


@dataclass(frozen=True)
class Entry:
    """One image as written in a COCO file.

    id: as in the file. key: what annotations have in common with it; see `data.ids`.
    name: of the image file, as in the file.
    declared: (height, width), or None if they are not given.
    record: its position in the file, for messages.
    """

    id: int | str
    key: int | str
    name: str
    declared: tuple[int, int] | None
    record: str


@dataclass(frozen=True)
class Located:
    """The image files of one split.

    entries: the images that are kept.
    paths: of each of them; None if the file does not exist.
    missing_in: the folder where a missing file is expected.
    notes: lines for the user.
    """

    entries: tuple[Entry, ...]
    paths: tuple[Path | None, ...]
    missing_in: Path
    notes: tuple[str, ...]


def read_entries(path: Path, images: Sequence[Mapping[str, Any]], faults: Faults) -> list[Entry]:
    """The image entries that can be read. An entry that stands twice is kept once.

    path: the COCO file, for messages.
    """
    readable: dict[int | str, Entry] = {}
    for position, image in enumerate(images):
        id, record = file_id(image.get("id")), f"images[{position}]"
        name = _file_name(image)
        key = id_key(id)
        if id is None or key is None:
            problem = f"{record}: id {image.get('id')!r} is neither a whole number nor a text"
            faults.reject(str(path), problem, "give each image its own id")
        elif name is None:
            faults.reject(
                str(path), f"{record}: file_name is {image.get('file_name')!r}", "write the name of the image file"
            )
        elif (previous := readable.get(key)) is not None:
            if previous.name != name:
                problem = f"{record}: id {id} is also the id of {previous.name}"
                faults.reject(str(path), problem, "give each image its own id")
        else:
            sides = [_side(image.get(side)) for side in ("height", "width")]
            if None in sides:
                written = f"{image.get('width')!r} and {image.get('height')!r}"
                problem = f"{record} ({name}): width and height are {written}"
                faults.reject(str(path), problem, "write two numbers of pixels or leave them out")
                continue
            height, width = (side or 0 for side in sides)
            declared = (height, width) if height > 0 and width > 0 else None
            readable[key] = Entry(id, key, name, declared, record)
    return list(readable.values())


def _file_name(image: Mapping[str, Any]) -> str | None:
    """The name of the image file, or None. LVIS has only its address, which ends with the folder and the name."""
    name = image.get("file_name")
    if name is None and isinstance(url := image.get("coco_url"), str):
        name = "/".join(name_parts(url)[-2:])
    return name if isinstance(name, str) and name.strip() else None


def _side(value: object) -> int | None:
    """A width or height in pixels; 0 if it is not given, and None if it is not a number."""
    if value is None or value == "":
        return 0
    side = number_in(value)
    return None if side is None else int(side)


def locate(sources: Mapping[str, Source], entries: Mapping[str, Sequence[Entry]], faults: Faults) -> dict[str, Located]:
    """The image files of all splits.

    Raises UserError if no image of a split is found. A name that leads to the file of another name is rejected.
    """
    found: dict[str, list[Path | None]] = {}
    for split, source in sources.items():
        locator = Locator(source.folders)
        found[split] = [locator.find(entry.name) for entry in entries[split]]
    claimed = {split: {path for path in paths if path is not None} for split, paths in found.items()}
    located = {}
    for split, source in sources.items():
        taken = set().union(*(paths for other, paths in claimed.items() if other != split))
        notes = _find_elsewhere(source, entries[split], found[split], taken)
        if entries[split] and not any(found[split]):
            folders = ", ".join(dict.fromkeys(map(str, source.folders)))
            raise UserError(
                f"{source.annotations}: images: no image was found (looked for {entries[split][0].name} in {folders}); "
                "move the images or give explicit paths in the recipe"
            )
        located[split] = _without_collisions(source, entries[split], found[split], notes, faults)
    return located


def _find_elsewhere(source: Source, entries: Sequence[Entry], paths: list[Path | None], taken: set[Path]) -> list[str]:
    """Look in the other folders of a source for the images that are missing. Returns a note about those found there.

    paths: of the entries; changed in place. taken: files that other splits have in their own folders.
    Where names begin again in each folder (1.jpg, 2.jpg, ...), a name that is missing in one folder is another image in
    the next. So a folder is only used if none of its files has the name of an image that was found, and an image only
    if one folder has it.
    """
    others = source.others or subfolders(source.folders[0])  # of a folder that the recipe names
    if all(paths) or not others:
        return []
    names = {path.name for path in paths if path is not None}
    folders = [folder for folder in others if folder.is_dir() and names.isdisjoint(os.listdir(folder))]
    locators, counts = [Locator([folder]) for folder in folders], dict[Path, int]()
    for index, (entry, path) in enumerate(zip(entries, paths, strict=True)):
        if path is None:
            matches = {match for locator in locators if (match := locator.find(entry.name)) is not None} - taken
            if len(matches) == 1:
                (found,) = matches
                paths[index] = found
                counts[found.parent] = counts.get(found.parent, 0) + 1
    if not counts:
        return []
    listed = " and ".join(f"{count} in {folder}" for folder, count in counts.items())
    return [f"{source.annotations.name}: of {len(entries)} images, {listed}"]


def _without_collisions(
    source: Source, entries: Sequence[Entry], paths: Sequence[Path | None], notes: list[str], faults: Faults
) -> Located:
    """The images without those whose name leads to the file of another name. Images that stand twice are noted."""
    first: dict[Path, Entry] = {}
    kept: list[tuple[Entry, Path | None]] = []
    repeated = []
    for entry, path in zip(entries, paths, strict=True):
        previous = None if path is None else first.setdefault(path, entry)
        if previous is not None and previous is not entry:
            if name_parts(previous.name) != name_parts(entry.name):
                problem = f"{entry.record}: file_name {entry.name} leads to {path}, which is also {previous.name}"
                faults.reject(str(source.annotations), problem, "put each image where its name says")
                continue
            repeated.append(entry.name)
        kept.append((entry, path))
    if repeated:
        names = some(dict.fromkeys(repeated))
        notes.append(
            f"{source.annotations.name}: {len(repeated)} image{'s' * (len(repeated) > 1)} listed again with another id "
            f"({names}); each entry has only its own objects, so join the entries"
        )
    own = next((path.parent for path in paths if path is not None), source.folders[0])
    return Located(tuple(entry for entry, _ in kept), tuple(path for _, path in kept), own, tuple(notes))
