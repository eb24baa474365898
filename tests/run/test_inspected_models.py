"""The models of `inspect` are those of a run, without downloads."""

from pathlib import Path

import pytest

from detdistill.run.inspected_models import open_models

from .recipes import distillation_recipe, small_recipe


def test_a_new_student_downloads_nothing_but_freezes_what_a_run_freezes() -> None:
    recipe = small_recipe(model={"backbone_weights": "default", "freeze_norms": True})
    models = open_models(recipe, lambda line: None)
    assert any(not parameter.requires_grad for parameter in models.student.parameters())
    assert models.teacher is None and models.model.freeze_norms


def test_classes_and_image_size_come_from_data_or_the_run_folder(teacher_run: Path) -> None:
    lines: list[str] = []
    with_data = open_models(distillation_recipe(teacher_run), lines.append)
    assert with_data.student.info.classes == with_data.data.classes
    recipe = distillation_recipe(teacher_run)
    bare = recipe.model_copy(update={"data": type(recipe.data)()})
    alone = open_models(bare, lines.append)
    assert alone.student.info.classes == alone.teacher.info.classes
    assert alone.recipe.data.image_size == 64
    assert "image size: 64 x 64, as the run folder's; another with --image-size" in lines
    assert alone.schedule is None


def test_the_schedule_is_that_of_the_run() -> None:
    recipe = small_recipe(data={"path": "shapes:40"}, train={"epochs": 3, "max_steps": None})
    schedule = open_models(recipe, lambda line: None).schedule
    assert (schedule.steps, schedule.per_epoch, schedule.evaluated) == (30, 10, 10)
    few = small_recipe(data={"path": "shapes:40"}, train={"max_steps": 7})
    assert open_models(few, lambda line: None).schedule.steps == 7


@pytest.mark.parametrize("path", ["", "shapes:8"])
def test_a_student_can_be_a_run_folder(teacher_run: Path, path: str) -> None:
    models = open_models(small_recipe(model={"name": str(teacher_run)}, data={"path": path}), lambda line: None)
    assert models.model.name == "gfl:mobilenetv3_small_050"
