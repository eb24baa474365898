"""splits.json: the images of each split of a run whose data came without splits."""

import json
from collections.abc import Mapping
from pathlib import Path

from detdistill.data import Data, Split
from detdistill.errors import UserError, some
from detdistill.files import write_json

FILE = "splits.json"
SHOWN = 3  # image names in a message


def keep_splits(data: Data, folder: Path) -> None:
    """Write the names of the images of each split, if the splits were made by fractions."""
    if data.divided is not None:
        write_json(folder / FILE, {name: list(images) for name, images in data.divided.items()})


def check_splits(data: Data, folder: Path) -> None:
    """Raise UserError if the splits are not those that the run in `folder` began with."""
    before, now = stored_splits(folder), data.divided or {}
    for name in {**before, **now}:
        changed = sorted(set(before.get(name, ())) ^ set(now.get(name, ())))
        if changed:
            problem = f"the images of the {name} split have changed since the run began ({some(changed, SHOWN)})"
            remedy = "restore the data set and the fractions, or choose another --out"
            raise UserError(f"{folder / FILE}: {problem}; {remedy}")


def trained_on(model: Path, data: Data, split: Split) -> str | None:
    """A warning if images of `split` were training images of the run `model`, whose splits were made by fractions."""
    shared = {record.name for record in split.records} & training_images(model)
    if not shared or data.divided is None or split.name == "train":
        return None
    return (
        f"warning: {len(shared)} of the {len(split)} images of the {split.name} split have the names of training "
        f"images of {model} ({FILE}); for the same data set, give the val_fraction and test_fraction of its recipe.yaml"
    )


def training_images(folder: Path) -> set[str]:
    """Names of the training images of a run whose splits were made by fractions; empty for any other."""
    return set(stored_splits(folder).get("train", ()))


def stored_splits(folder: Path) -> Mapping[str, list[str]]:
    """The content of a run's splits.json, or an empty mapping. Raises UserError if it can't be read."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); restore the file, or choose another --out") from None
