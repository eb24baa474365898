"""What the inspection of a student and its teacher measures, prints and writes."""

import itertools
import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from detdistill import run
from detdistill.errors import UserError
from detdistill.recipe import Recipe
from detdistill.run.inspecting_pair import PairInspection

from .recipes import distillation_recipe, read_json, small_recipe


def inspect(recipe: Recipe, width: int | None = None, **options: object) -> tuple[str, PairInspection]:
    """What is printed, on a terminal of this width or into a file, and the result. Nothing is measured twice."""
    stream = StringIO()
    console = Console(
        file=stream, force_terminal=width is not None, width=width, color_system=None, markup=False, soft_wrap=True
    )
    found = run.inspect_pair(recipe, console=console, seconds=0.0, **options)
    return stream.getvalue(), found


def test_models_methods_and_costs_are_reported(teacher_run: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    recipe = distillation_recipe(teacher_run, "pkd", "kd")
    text, found = inspect(recipe, json=numbers)
    lines = text.splitlines()
    assert next(line for line in lines if line.startswith("towers")).count("2 convolutions, 32 wide") == 2
    assert "1 method can't serve this pair:" in lines
    refusal = next(line for line in lines if line.startswith("kd: "))
    assert refusal.endswith(" | nearest: student and teacher both with the head faster_rcnn | instead: dist")
    assert any(line.startswith("pkd ") and "GiB" in line for line in lines)
    assert "whole run: 1 steps (12 epochs of 8 images) and the evaluation of 2 images" in lines
    content = read_json(numbers)
    assert content == json.loads(json.dumps(found.to_json()))
    assert content["methods"]["pkd"]["applies"] and not content["methods"]["kd"]["applies"]
    assert content["methods"]["pkd"]["step"] > content["plain"]["step"] > 0
    assert content["methods"]["pkd"]["memory"] > content["plain"]["memory"]
    assert content["setting"]["image_size"] == [64, 64] and content["setting"]["batch_size"] == 4
    assert content["together"] == {}  # one of the two can't serve
    assert text.endswith(f"written to {numbers}\n")


def test_without_chosen_methods_all_are_tried(teacher_run: Path) -> None:
    from detdistill.methods import METHODS

    _, found = inspect(distillation_recipe(teacher_run))
    assert found.served.keys() == METHODS.keys()
    assert found.costs.methods.keys() == {name for name, entry in found.served.items() if entry.method is not None}


def test_methods_of_a_recipe_are_also_predicted_together(teacher_run: Path) -> None:
    _, found = inspect(distillation_recipe(teacher_run, "pkd", "crosskd"), clock=itertools.count().__next__)
    both = found.to_json()["together"]["pkd+crosskd"]
    assert both["method"] == pytest.approx(
        sum(found.costs.methods[name].method for name in ("pkd", "crosskd")), rel=1e-3
    )


def test_a_pair_that_no_method_serves_is_reported(teacher_run: Path) -> None:
    text, found = inspect(distillation_recipe(teacher_run, "kd", "kddetr"))
    assert "2 methods can't serve this pair:" in text.splitlines()
    assert found.costs.methods == {} and found.costs.plain.hours > 0


def test_the_report_fits_a_terminal(teacher_run: Path) -> None:
    text, _ = inspect(distillation_recipe(teacher_run, "pkd", "detrdistill"), width=80)
    assert [line for line in text.splitlines() if len(line) > 80 and str(teacher_run) not in line] == []


def test_a_teacher_with_random_weights_looks_broken(teacher_run: Path) -> None:
    text, found = inspect(small_recipe(model={"name": ""}, teacher={"path": str(teacher_run)}))
    assert {finding.kind for finding in found.findings} >= {"flat-scores", "weak", "empty"}
    assert found.student is None and found.costs is None
    assert "problem: its scores are nearly the same everywhere" in text


def test_a_teacher_with_nan_or_an_unfinished_run_is_named(teacher_run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(teacher_run, broken)
    (broken / "metrics.json").unlink()
    state = load_file(broken / "model.safetensors")
    next(value for value in state.values() if value.is_floating_point()).view(-1)[0] = torch.nan
    save_file(state, broken / "model.safetensors")
    _, found = inspect(small_recipe(model={"name": ""}, teacher={"path": str(broken)}))
    assert [finding.kind for finding in found.findings] == ["not-finite", "unfinished"]
    assert found.sample is None
    (broken / "model.json").unlink()
    with pytest.raises(UserError, match=r"did not finish.*--resume --out"):
        inspect(small_recipe(teacher={"path": str(broken)}))


def test_a_student_alone_needs_no_data() -> None:
    text, found = inspect(small_recipe(data={"path": ""}))
    assert "80 are assumed" in text and "give --data for the time of a whole run" in text
    assert found.costs.plain.hours is None and found.costs.plain.step > 0


def test_other_classes_are_a_finding_and_stop_nothing(run_with_other_class: Path) -> None:
    _, found = inspect(distillation_recipe(run_with_other_class, "pkd"))
    assert "classes" in {finding.kind for finding in found.findings}


def without_boxes(folder: Path) -> dict[str, str]:
    from tests.inspection.made import picture, write_coco

    return {"path": str(write_coco(folder, {"train": {"a.png": (picture(0), [])}, "val": {"b.png": (picture(1), [])}}))}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"name": ""}}, "no model: give --student, --teacher or both"),
        ({"model": {"name": "gfll:resnet18"}}, "did you mean 'gfl'"),
        ({"model": {"name": "torchvision:fcos_resnet50_fpn"}}, "can only teach"),
        ({"teacher": {"path": "nowhere"}}, "not a run folder"),
        ({"teacher": {"path": "gfl:resnet18=nowhere.pt"}}, "nowhere.pt"),
        ({"methods": {"pdk": {}}}, "did you mean 'pkd'"),
        ({"train": {"batch_size": "auto"}}, "give a number"),
        ({"train": {"accumulate": 3}}, "micro-batches"),
    ],
)
def test_wrong_input_is_one_line(fields: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        inspect(small_recipe(**fields), json=tmp_path / "numbers.json")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_image_size_and_images_without_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --image-size or --data"):
        inspect(Recipe.model_validate({"model": {"name": "gfl:resnet18"}}))
    data = without_boxes(tmp_path / "data")
    with pytest.raises(UserError, match="has an object"):
        inspect(small_recipe(data=data))
