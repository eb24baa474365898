"""Recipes of runs that take a second: a small GFL, eight built-in images of 64 pixels, one step."""

import json
from pathlib import Path
from typing import Any

from detdistill.recipe import Recipe, merge, parse

MODEL = "gfl:mobilenetv3_small_050"
FIELDS: dict[str, Any] = {
    "model": {"name": MODEL, "strides": [8, 16, 32], "channels": 32, "tower_depth": 2, "backbone_weights": "none"},
    "data": {"path": "shapes:8", "image_size": 64},
    "train": {"batch_size": 4, "max_steps": 1, "device": "cpu"},
}


def small_recipe(**over: Any) -> Recipe:
    """The small recipe with these fields over it."""
    return parse(merge(FIELDS, over), "test")


def distillation_recipe(teacher: Path, /, *methods: str, **over: Any) -> Recipe:
    """The small recipe with a teacher and methods. over: fields over it."""
    fields = {"teacher": {"path": str(teacher)}, "methods": {name: {} for name in methods}}
    return small_recipe(**merge(fields, over))


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())
