"""splits.json: written for data without splits, and compared when a run is resumed."""

from pathlib import Path

import pytest
from rich.console import Console

from detdistill import run
from detdistill.errors import UserError
from tests.data.cases.builders import PICTURE, voc, write

from .recipes import distillation_recipe, read_json, small_recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten images without splits."""
    files = {f"{number}.ppm": PICTURE for number in range(10)}
    return write(tmp_path / "data", {**files, **{f"{number}.xml": voc(("a", 3, 3, 30, 18)) for number in range(10)}})


def test_a_resumed_run_has_the_same_splits(data: Path, tmp_path: Path) -> None:
    out, fields = tmp_path / "out", {"path": str(data), "test_fraction": 0.3}
    run.train(small_recipe(data=fields), out)
    splits = read_json(out / "splits.json")
    assert {name: len(images) for name, images in splits.items()} == {"train": 6, "val": 1, "test": 3}
    assert sorted(name for images in splits.values() for name in images) == [f"{number}.ppm" for number in range(10)]
    longer = small_recipe(data=fields, train={"max_steps": 2})
    write(data, {"new.ppm": PICTURE, "new.xml": voc(("a", 3, 3, 30, 18))})
    with pytest.raises(UserError, match=r"splits.json: the images of the \w+ split have changed since the run began"):
        run.train(longer, out, resume=True)
    for name in ("new.ppm", "new.xml"):
        (data / name).unlink()
    run.train(longer, out, resume=True)
    assert read_json(out / "splits.json") == splits


def test_evaluation_on_training_images_of_the_run_is_told(data: Path, tmp_path: Path) -> None:
    run.train(small_recipe(data={"path": str(data)}), tmp_path / "out")
    printed = {}
    for fraction in (0.2, 0.8):
        console = Console(record=True, width=300)
        config = small_recipe(data={"path": str(data), "test_fraction": fraction}).data
        run.evaluate(tmp_path / "out", config, console=console)
        printed[fraction] = console.export_text()
    assert "warning" not in printed[0.2]
    assert "warning: 6 of the 8 images of the test split have the names of training images of " in printed[0.8]


def test_a_teacher_that_was_trained_on_test_images_is_told(data: Path, tmp_path: Path) -> None:
    run.train(small_recipe(data={"path": str(data)}), tmp_path / "teacher")
    console = Console(record=True, width=300)
    fields = {"path": str(data), "test_fraction": 0.8}
    recipe = distillation_recipe(tmp_path / "teacher", "pkd", data=fields, teacher={"sample": 0})
    run.distill(recipe, tmp_path / "out", console=console)
    assert "warning: 6 of the 8 images of the test split have the names of training images of " in console.export_text()


def test_data_with_splits_has_no_splits_file(teacher_run: Path) -> None:
    assert not (teacher_run / "splits.json").exists()
