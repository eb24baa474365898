"""`train` and `distill`: what they depend on, and what they refuse before training."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from detdistill import run
from detdistill.engine import effect
from detdistill.errors import UserError
from detdistill.recipe import merge, parse
from detdistill.run import training
from detdistill.run.folder import RunFolder

from .recipes import FIELDS, distillation_recipe, small_recipe

TIMES = ("images_per_second", "data_seconds")  # columns of a log row that differ between equal runs


def read_log(folder: Path) -> list[dict]:
    """The rows of log.jsonl, without the times."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


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


STRONG = {
    "data": {
        "mosaic": 0.7,
        "mixup": 0.5,
        "close_mosaic": 0.25,
        "scale": [0.6, 1.5],
        "photometric": True,
        "multiscale": [0.5, 2.0],
    },
    "train": {"epochs": 4, "max_steps": None, "accumulate": 2, "ema": 0.9, "log_every": 1, "warmup_steps": 2},
}


def test_a_strong_run_resumes_bit_for_bit_with_any_number_of_workers(teacher_run: Path, tmp_path: Path) -> None:
    """Mosaic, mixup, multi-scale batches, micro-batches and a moving average. A step is half an epoch."""
    methods = {"pkd": {"balance": 0.5}, "mimicking": {}}

    def distill(out: str, resume: bool = False, **train: object) -> Path:
        recipe = distillation_recipe(
            teacher_run, **merge(STRONG, {"train": train, "methods": methods, "teacher": {"sample": 0}})
        )
        return run.distill(recipe, tmp_path / out, resume=resume).out

    whole = distill("whole", workers=0)
    distill("stopped", workers=1, max_steps=3)
    distill("stopped", resume=True, workers=0, max_steps=7)
    resumed = distill("stopped", resume=True, workers=1)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    rows = [read_log(folder) for folder in (whole, resumed)]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(1, 9))


def test_micro_batches_that_do_not_divide_the_batch_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.accumulate is 3, but 4 images per step"):
        run.train(small_recipe(train={"accumulate": 3}), tmp_path / "out")
    with pytest.raises(UserError, match=r"train\.accumulate is 3, but 8 images per step"):  # all there are
        run.train(small_recipe(train={"accumulate": 3, "batch_size": 12}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_automatic_batch_size_is_refused_without_a_gpu_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--batch-size auto needs a GPU of NVIDIA or AMD.*; give a number$"):
        run.train(small_recipe(train={"batch_size": "auto"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_detr_with_many_times_its_published_rate_is_warned_of(tmp_path: Path) -> None:
    model = {"name": "detr:mobilenetv3_small_050", "queries": 5, "encoder_layers": 1, "decoder_layers": 1}
    fields = {"strides": [32], "channels": 32, "backbone_weights": "none"}
    recipe = parse({"model": model | fields, "data": FIELDS["data"], "train": FIELDS["train"]}, "test")
    console = Console(record=True, width=400)
    run.train(recipe, tmp_path / "out", console=console)
    assert "warning: the learning rate 0.001 is 10 times the one that detr was published with" in console.export_text()


def test_a_method_that_drowns_the_task_is_named_and_changes_nothing(
    teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = {"teacher": {"sample": 0}, "train": {"max_steps": 3, "epochs": 2}, "methods": {"pkd": {"weight": 1e4}}}
    recipe = distillation_recipe(teacher_run, "pkd", **over)
    run.distill(recipe, tmp_path / "unchecked")
    monkeypatch.setattr(effect, "CHECKED", (1, 2, 3))
    console = Console(record=True, width=300)
    run.distill(recipe, tmp_path / "checked", console=console)
    printed = console.export_text()
    assert printed.count("warning: method pkd: its gradient at the student's neck is") == 1
    assert "drowns the task" in printed
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("unchecked", "checked")]
    assert weights[0] == weights[1]
    assert "ratio_pkd" not in (tmp_path / "checked/log.jsonl").read_text()
