"""Runs that the tests of this folder share."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run_with_other_class(teacher_run: Path, tmp_path: Path) -> Path:
    """A copy of `teacher_run` whose first class has another name, `ring`."""
    copy = tmp_path / "run_with_other_class"
    shutil.copytree(teacher_run, copy)
    card = json.loads((copy / "model.json").read_text())
    card["classes"][0] = "ring"
    (copy / "model.json").write_text(json.dumps(card))
    return copy
