"""The facts for `detdistill list`, stored in a file of the package, so that a list does not wait for torch.

`make docs` writes the file; a test compares it with the code. If there are methods or detectors of the user's own, the
facts are collected from the code instead.
"""

import json
import sys
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from detdistill.cli import facts
from detdistill.files import write_text
from detdistill.recipe import DataConfig

FILE = "index.json"


@cache
def _stored() -> dict[str, Any]:
    return json.loads(files("detdistill.cli").joinpath(FILE).read_text(encoding="utf-8"))


def detectors() -> list[facts.Facts]:
    """The facts about every family of detectors."""
    return facts.all_detectors() if _has_additions() else _stored()["detectors"]


def methods() -> list[facts.Facts]:
    """The facts about every method."""
    return facts.all_methods() if _has_additions() else _stored()["methods"]


def torchvision_names() -> list[str]:
    """The detectors of torchvision that can teach."""
    return _stored()["torchvision"]


def backbones(image_size: tuple[int, int]) -> list[facts.Facts] | None:
    """The facts about a small backbone of each family; None if they are not stored for this size of images, or if the
    installed timm is older than the one that they are of.
    """
    stored = _stored()["backbones"]
    is_older = _release(version("timm")) < _release(stored["timm"])
    return None if list(image_size) != stored["image_size"] or is_older else stored["rows"]


def write_index() -> None:
    """Write the file from the code. The backbones are run again only if their list or timm has changed."""
    from detdistill.data.transforms import sides
    from detdistill.detectors.timm.examples import EXAMPLES

    path = Path(str(files("detdistill.cli").joinpath(FILE)))
    before = json.loads(path.read_text(encoding="utf-8"))["backbones"] if path.exists() else {}
    size = sides(DataConfig.model_fields["image_size"].default)
    settings = {"timm": version("timm"), "image_size": list(size)}
    is_same = {**before, "rows": [row["name"] for row in before.get("rows", ())]} == {**settings, "rows": [*EXAMPLES]}
    rows = before["rows"] if is_same else facts.backbones(EXAMPLES, size)
    content = {
        "detectors": facts.all_detectors(),
        "methods": facts.all_methods(),
        "torchvision": facts.torchvision_names(),
        "backbones": {**settings, "rows": rows},
    }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _has_additions() -> bool:
    """True if a plugin has added or replaced a method or a detector. Nothing is imported for that."""
    loaded = sys.modules.get("detdistill.methods")
    registry = sys.modules.get("detdistill.detectors.registry")
    if loaded is not None:
        names = {entry["name"] for entry in _stored()["methods"]}
        ours = all(method.__module__.startswith("detdistill.") for method in loaded.METHODS.values())
        if not ours or set(loaded.METHODS) != names:
            return True
    if registry is None:
        return False
    ours = all(isinstance(record.builder, str) for record in registry.DETECTORS.values())
    return not ours or set(registry.DETECTORS) != {entry["name"] for entry in _stored()["detectors"]}


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version such as 1.0.31 or 1.1.0.dev0."""
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())
