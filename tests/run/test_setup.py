"""What happens before the first step: the teacher is measured, classes are compared, and parts are inherited."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from detdistill import run
from detdistill.errors import UserError
from detdistill.run import setup, training

from .recipes import distillation_recipe

STILL = {"lr": 1e-12, "weight_decay": 0.0}  # a step that changes no weight


def test_a_weak_teacher_stops_the_run_only_if_its_predictions_are_read(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"teacher\.floor"):
        run.distill(distillation_recipe(teacher_run, "crosskd", teacher={"floor": 100}), out)
    assert not out.exists()
    allowed = distillation_recipe(teacher_run, "crosskd", teacher={"floor": 100, "allow_weak": True})
    run.distill(allowed, out)
    run.distill(distillation_recipe(teacher_run, "pkd", teacher={"floor": 100}), tmp_path / "features")


def test_the_teacher_is_measured_before_the_first_step_and_not_on_the_test_split(
    teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    measure, fit = training.measure, training.fit

    def recorded_measure(detector: Any, data: Any, split: Any, *rest: Any, **keywords: Any) -> Any:
        events.append(f"measure {split.name} {len(split)}")
        return measure(detector, data, split, *rest, **keywords)

    def recorded_fit(*arguments: Any, **keywords: Any) -> Any:
        events.append("fit")
        return fit(*arguments, **keywords)

    monkeypatch.setattr(setup, "measure", recorded_measure)
    monkeypatch.setattr(training, "measure", recorded_measure)
    monkeypatch.setattr(training, "fit", recorded_fit)
    run.distill(distillation_recipe(teacher_run, "pkd", teacher={"sample": 1}), tmp_path / "out")
    assert events == ["measure val 1", "fit", "measure test 2"]


def test_classes_are_matched_by_name_and_a_pair_without_a_common_class_is_refused(
    run_with_other_class: Path, tmp_path: Path
) -> None:
    console = Console(record=True, width=200)
    recipe = distillation_recipe(run_with_other_class, "pkd", "crosskd")
    run.distill(recipe, tmp_path / "out", console=console)  # all classes but one are shared
    assert "its classes differ from those of the data, so its AP is not measured" in console.export_text()
    card = json.loads((run_with_other_class / "model.json").read_text())
    card["classes"] = [f"no {name}" for name in card["classes"]]
    (run_with_other_class / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="no class in common"):
        run.distill(recipe, tmp_path / "unrelated")


def distill(teacher: Path, out: Path, /, resume: bool = False, **over: Any) -> str:
    """Distill with PKD and steps that change no weight. Returns what is printed. over: fields of the recipe."""
    text = io.StringIO()
    recipe = distillation_recipe(teacher, "pkd", **{**over, "train": {**STILL, **over.get("train", {})}})
    run.distill(recipe, out, resume=resume, console=Console(file=text, width=500))
    return text.getvalue()


def test_a_student_inherits_neck_and_head_once(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    both = {"inherit": ["neck", "head"], "sample": 0}
    printed = distill(teacher_run, out, teacher=both)
    assert "inherited 12 of 12 neck tensors from the teacher" in printed
    assert len([line for line in printed.splitlines() if "head tensors" in line]) == 1
    student = run.load(out).state_dict()
    teacher = run.load(teacher_run).state_dict()
    is_close = {
        name: torch.allclose(value, teacher[name], atol=1e-6) for name, value in student.items() if value.ndim > 1
    }
    assert all(close for name, close in is_close.items() if not name.startswith("neck.body."))
    assert not any(close for name, close in is_close.items() if name.startswith("neck.body."))
    assert "inherited" not in distill(teacher_run, out, resume=True, teacher=both, train={"max_steps": 2})
    with pytest.raises(UserError, match=r"inherit was \['neck', 'head'\] and is None"):
        distill(teacher_run, out, resume=True, teacher={"sample": 0}, train={"max_steps": 2})


def test_a_trained_student_inherits_nothing(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"--inherit: the student .* is already trained"):
        distill(teacher_run, out, model={"name": str(teacher_run)}, teacher={"inherit": ["neck"]})
    assert not out.exists()
