"""The categories of COCO files, which become the classes of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detdistill.data.coco_find import ROBOFLOW
from detdistill.data.ids import file_id, id_key
from detdistill.errors import UserError


@dataclass(frozen=True)
class Categories:
    """The classes in the order of the category ids, numbers before texts.

    keys: what a category id of an annotation is compared with; see `data.ids`.
    ids: the category ids as in the files.
    names: of the classes.
    notes: lines for the user.
    """

    keys: tuple[int | str, ...]
    ids: tuple[int | str, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def read_categories(contents: Mapping[Path, Mapping[str, Any]]) -> Categories:
    """The categories of all files. Raises UserError if an entry can't be read or the files contradict each other."""
    names: dict[int | str, str] = {}
    ids: dict[int | str, int | str] = {}
    origin: dict[int | str, Path] = {}
    parents: dict[int | str, object] = {}
    used: set[int | str | None] = set()
    for path, content in contents.items():
        for position, category in enumerate(content["categories"]):
            id, name = file_id(category.get("id")), category.get("name")
            key = id_key(id)
            record = f"{path}: categories[{position}]"
            if id is None or key is None:
                raise UserError(f"{record}: id is {category.get('id')!r}; write a whole number or a text")
            if not isinstance(name, str) or not name:
                raise UserError(f"{record}: name is {name!r}; write the name of the class")
            if names.setdefault(key, name) != name:
                raise UserError(
                    f"{record}: id {id} is {name!r}, but {names[key]!r} in {origin[key]}; "
                    "give an id the same name in all files"
                )
            ids.setdefault(key, id)
            origin.setdefault(key, path)
            parents.setdefault(key, category.get("supercategory"))
        used |= {id_key(annotation.get("category_id")) for annotation in content["annotations"]}
    is_roboflow = any(path.name == ROBOFLOW for path in contents)
    notes = []
    for key in _headings(names, parents, is_roboflow):
        if key not in used and len(names) > 1:
            notes.append(f"category {ids[key]} ({names.pop(key)!r}) is left out: it is a heading without objects")
    _check_names(next(iter(contents)), list(names.values()))
    keys = sorted(names, key=lambda key: (isinstance(key, str), key))
    return Categories(tuple(keys), tuple(ids[key] for key in keys), tuple(names[key] for key in keys), tuple(notes))


def _headings(
    names: Mapping[int | str, str], parents: Mapping[int | str, object], is_roboflow: bool
) -> list[int | str]:
    """The categories that only group others.

    Roboflow's exports begin with a category for the project. In a file that has lost Roboflow's name, it is known by
    id 0 and by its name, which is the supercategory of all others.
    """
    if is_roboflow:
        return [key for key, name in names.items() if any(name == parents[other] for other in names if other != key)]
    others = [parent for key, parent in parents.items() if key != 0]
    return [0] if others and 0 in names and all(parent == names[0] for parent in others) else []


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise UserError if there is no category or if two categories have the same name."""
    if not names:
        raise UserError(f"{path}: field 'categories' has no category; add the classes")
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{path}: field 'categories' has several categories with the name {name!r}; give each its own name"
            )
