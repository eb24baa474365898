"""`--batch-size auto`: where it is refused, and the number that it becomes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from detdistill.data import open_data
from detdistill.engine.distillation import Distillation
from detdistill.errors import UserError
from detdistill.recipe import Recipe
from detdistill.run import batch_size
from detdistill.run.batch_size import check_batch_size, with_batch_size
from detdistill.run.folder import RunFolder

from .recipes import small_recipe


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A pretended GPU with room for seven images. The list gets the images and the objects of each trial."""
    trials: list[tuple[int, int]] = []

    def step_fits(distillation: Any, teacher: Any, batch: Any, targets: Any, config: Any, available: int) -> bool:
        trials.append((len(batch), sum(len(labels) for labels in targets.labels)))
        return len(batch) <= available

    monkeypatch.setattr(batch_size, "find_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(batch_size, "free_memory", lambda device: 7)
    monkeypatch.setattr(batch_size, "step_fits", step_fits)
    return trials


def resolved(folder: Path, images: int, **train: Any) -> tuple[Recipe, list[str]]:
    """The recipe with its batch size, and what was said."""
    recipe = small_recipe(data={"path": f"shapes:{images}"}, train={"batch_size": "auto", **train})
    check_batch_size(recipe)
    said: list[str] = []
    distillation: Any = Distillation.__new__(Distillation)
    return with_batch_size(recipe, distillation, None, open_data(recipe.data), folder, said.append), said


def test_the_largest_batch_that_fits_becomes_the_batch_size(tmp_path: Path, gpu: list) -> None:
    recipe, said = resolved(tmp_path, 200)
    assert recipe.train.batch_size == 6
    assert said == ["batch size: 6, as much as fits into memory; the learning rate stays 0.001"]
    assert [images for images, _ in gpu] == [1, 2, 3, 4, 6, 8]
    recipe, _ = resolved(tmp_path, 200, accumulate=3)
    assert recipe.train.batch_size == 6


def test_a_small_data_set_keeps_ten_steps_an_epoch(tmp_path: Path, gpu: list) -> None:
    recipe, said = resolved(tmp_path, 40)
    assert recipe.train.batch_size == 4
    assert "so that 40 images give at least 10 steps an epoch" in said[0]


def test_a_resumed_run_keeps_its_batch_size(tmp_path: Path, gpu: list) -> None:
    RunFolder(tmp_path).begin(small_recipe(train={"batch_size": 5}), overwrite=False)
    recipe, said = resolved(tmp_path, 200)
    assert (recipe.train.batch_size, said, gpu) == (5, [], [])


def test_too_little_memory_is_told(tmp_path: Path, gpu: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "free_memory", lambda device: 0)
    with pytest.raises(
        UserError, match="not even one image fits into the memory of the GPU; try a smaller --image-size"
    ):
        resolved(tmp_path, 200)


def test_it_is_refused_on_a_cpu_and_with_several_processes(gpu: list, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(train={"batch_size": "auto"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="works with one process; under torchrun give a number"):
        check_batch_size(recipe)
    monkeypatch.undo()
    with pytest.raises(UserError, match="needs a GPU"):
        check_batch_size(recipe)
    check_batch_size(small_recipe())
