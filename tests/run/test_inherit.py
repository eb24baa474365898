"""`--inherit` from the command line to the weights that a run begins with."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from detdistill import run
from detdistill.cli import flags
from detdistill.errors import UserError
from detdistill.recipe import Recipe, load, merge, parse
from detdistill.run.folder import RunFolder

BASE: dict[str, Any] = {
    "model": {
        "name": "gfl:mobilenetv3_small_050",
        "strides": [8, 16, 32],
        "channels": 32,
        "tower_depth": 2,
        "backbone_weights": "none",
    },
    "data": {"path": "shapes:8", "image_size": 64},
    "teacher": {"sample": 0},
    "methods": {"pkd": {}},
    "train": {"batch_size": 4, "max_steps": 1, "device": "cpu", "lr": 1e-12, "weight_decay": 0.0},
}


def recipe(**over: Any) -> Recipe:
    return parse(merge(BASE, over), "test")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = recipe(train={"seed": 1, "lr": 0.001}).model_copy(update={"methods": {}})
    return run.train(plain, tmp_path_factory.mktemp("runs") / "teacher").out


def distill(path: Path, out: Path, resume: bool = False, **over: Any) -> str:
    said = io.StringIO()
    run.distill(
        recipe(**merge({"teacher": {"path": str(path)}}, over)),
        out,
        resume=resume,
        console=Console(file=said, width=500),
    )
    return said.getvalue()


def test_a_run_begins_with_the_teachers_neck_and_head_and_resumes_with_its_own(teacher: Path, tmp_path: Path):
    said = distill(teacher, tmp_path / "run", teacher={"inherit": ["neck", "head"]})
    assert "inherited 12 of 12 neck tensors from the teacher" in said
    head = [line for line in said.splitlines() if "head tensors" in line]
    assert len(head) == 1
    trained, taught = (run.load(folder).state_dict() for folder in (tmp_path / "run", teacher))
    close = {name: torch.allclose(value, taught[name], atol=1e-6) for name, value in trained.items() if value.ndim > 1}
    assert all(fits for name, fits in close.items() if not name.startswith("neck.body."))
    assert not any(fits for name, fits in close.items() if name.startswith("neck.body."))
    again = distill(
        teacher, tmp_path / "run", resume=True, teacher={"inherit": ["neck", "head"]}, train={"max_steps": 2}
    )
    assert "inherited" not in again
    with pytest.raises(UserError, match=r"inherit was \['neck', 'head'\] and is None"):
        distill(teacher, tmp_path / "run", resume=True, train={"max_steps": 2})


def test_a_trained_student_keeps_what_it_has(teacher: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"--inherit: the student .* has been trained"):
        distill(teacher, tmp_path / "run", model={"name": str(teacher)}, teacher={"inherit": ["neck"]})
    assert not RunFolder(tmp_path / "run").path.exists()


@pytest.mark.parametrize(("text", "parts"), [("neck", ("neck",)), ("neck,head", ("neck", "head"))])
def test_the_flag_is_a_list(text: str, parts: tuple[str, ...]):
    assert load(None, flags.overrides({"teacher.inherit": text})).teacher.inherit == parts


def test_other_parts_are_refused():
    with pytest.raises(UserError, match=r"teacher.inherit.* 'neck' or 'head'"):
        load(None, flags.overrides({"teacher.inherit": "body"}))
