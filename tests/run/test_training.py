"""`train` and `distill`: what they depend on, and what they refuse before training."""

import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from detdistill import run
from detdistill.errors import UserError
from detdistill.run import training
from detdistill.run.folder import RunFolder

from .recipes import distillation_recipe, small_recipe


def test_equal_seeds_give_equal_weights(teacher_run: Path, tmp_path: Path) -> None:
    torch.rand(3)  # an earlier random draw must not matter
    recipe = RunFolder(teacher_run).recipe()
    assert recipe is not None
    same = run.train(recipe, tmp_path / "same").out
    different = run.train(small_recipe(train={"max_steps": 2, "seed": 0}), tmp_path / "different").out
    weights = [(folder / "model.safetensors").read_bytes() for folder in (teacher_run, same, different)]
    assert weights[0] == weights[1] != weights[2]


def test_train_refuses_methods_and_distill_needs_them(teacher_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="detdistill distill"):
        run.train(distillation_recipe(teacher_run, "pkd"), tmp_path / "out")
    with pytest.raises(UserError, match="detdistill train"):
        run.distill(small_recipe(), tmp_path / "out")


def test_a_missing_evaluation_split_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fit", lambda *arguments, **keywords: pytest.fail("it trained"))
    with pytest.raises(UserError, match="'tset'"):
        run.train(small_recipe(data={"eval_split": "tset"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resuming_a_finished_run_trains_nothing(
    teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(teacher_run, tmp_path / "run")
    monkeypatch.setattr(training, "fit", lambda *arguments, **keywords: pytest.fail("it trained"))
    recipe = RunFolder(teacher_run).recipe()
    assert recipe is not None
    console = Console(record=True, width=200)
    outcome = run.train(recipe, tmp_path / "run", resume=True, console=console)
    assert outcome.metrics == RunFolder(teacher_run).metrics()
    assert "this run is finished; nothing is left to do" in console.export_text()
