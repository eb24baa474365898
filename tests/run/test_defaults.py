"""Defaults that follow from the teacher, the data and the device, and what is said about them."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import detdistill as dd
from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig, Recipe, load, parse
from detdistill.run.defaults import with_image_size, with_known_size, with_levels, with_saved_data
from detdistill.run.setup import check_teacher
from tests.cli.commands import detdistill

from .recipes import MODEL, distillation_recipe, read_json


def card(folder: Path, name: str, size: Any, **fields: Any) -> Path:
    """A run folder that only has a model.json."""
    content = {"model": {"name": name, **fields}, "classes": ["a"], "category_ids": [1], "image_size": size}
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(content))
    return folder


def recipe(teacher: object = "", **over: Any) -> Recipe:
    """A recipe in which only model, data and teacher are set."""
    fields = {"model": {"name": MODEL}, "data": {"path": "shapes:8"}, "teacher": {"path": str(teacher)}}
    return parse({**fields, **over}, "test")


def test_the_student_takes_image_size_and_levels_of_its_teacher(tmp_path: Path) -> None:
    teacher = card(tmp_path / "teacher", "fcos:resnet18", [96, 128], strides=[8, 16, 32])
    lines: list[str] = []
    settled = with_image_size(with_levels(recipe(teacher), lines.append), open_data(recipe().data), lines.append)
    assert settled.model.strides == (8, 16, 32) and settled.data.image_size == (96, 128)
    assert lines == [
        "levels: strides 8,16,32, as the teacher's; others with --model.strides",
        "image size: 96 x 128, as the teacher's; another with --image-size",
    ]


def test_what_the_recipe_sets_is_kept_and_another_size_is_said(tmp_path: Path) -> None:
    teacher = card(tmp_path / "teacher", "fcos:resnet18", [96, 128], strides=[8, 16, 32])
    own = recipe(teacher, model={"name": MODEL, "strides": [16, 32]}, data={"path": "shapes:8", "image_size": 64})
    lines: list[str] = []
    assert with_image_size(with_levels(own, lines.append), open_data(own.data), lines.append) == own
    assert lines == ["image size: 64 x 64, but the teacher was trained on 96 x 128; its predictions may be worse"]


@pytest.mark.parametrize(
    ("teacher", "strides"),
    [
        ("faster_rcnn:resnet18", [4, 8, 16, 32]),  # of another kind
        ("gfl:resnet18", [2, 4, 8]),  # the student's backbone has no map of stride 2
        ("gfl:resnet18", [8, 16, 32, 64, 128]),  # its own
    ],
)
def test_a_student_that_cannot_have_these_levels_keeps_its_own(
    teacher: str, strides: list[int], tmp_path: Path
) -> None:
    student = recipe(card(tmp_path / "run", teacher, 64, strides=strides), model={"name": "gfl:convnext_atto"})
    lines: list[str] = []
    assert with_levels(student, lines.append) == student
    assert lines == (
        ["levels: the student can't have the teacher's strides 2,4,8, so it keeps 8,16,32,64,128"]
        if 2 in strides
        else []
    )


def test_a_torchvision_teacher_has_known_levels() -> None:
    student = recipe("torchvision:fasterrcnn_resnet50_fpn", model={"name": "faster_rcnn:resnet18"})
    assert with_levels(student, print).model.strides == (4, 8, 16, 32, 64)


def test_a_cpu_gets_small_images() -> None:
    data = open_data(DataConfig(path="shapes:8"))
    side = max(data.splits["train"].records[0].width, data.splits["train"].records[0].height)
    lines: list[str] = []
    on_cpu = recipe(train={"device": "cpu"})
    assert with_image_size(on_cpu, data, lines.append).data.image_size == -(-side // 32) * 32 < 320
    assert len(lines) == 1 and "because this machine trains on its CPU" in lines[0]


def test_training_goes_on_at_the_size_of_the_run(tmp_path: Path) -> None:
    run = card(tmp_path / "run", MODEL, 96)
    lines: list[str] = []
    settled = with_image_size(recipe(model={"name": str(run)}), open_data(recipe().data), lines.append)
    assert settled.data.image_size == 96 and "as in" in lines[0]


def test_a_run_is_measured_on_its_own_data(teacher_run: Path, tmp_path: Path) -> None:
    saved = with_saved_data(DataConfig(), teacher_run)
    assert (saved.path, saved.image_size) == ("shapes:8", 64)
    other = with_saved_data(DataConfig(path="elsewhere"), teacher_run)
    assert (other.path, other.image_size) == ("elsewhere", 64)
    for flags in (f"--model {teacher_run}", f"--recipe {teacher_run}", f"--recipe {teacher_run} --model {teacher_run}"):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        assert detdistill(f"evaluate {flags} --device cpu --out {out}") == 0
        assert read_json(out / "metrics.json")["per_class"] == read_json(teacher_run / "metrics.json")["per_class"]


def test_the_size_of_a_state_dict_is_asked_for() -> None:
    with pytest.raises(UserError, match="does not hold the image size it was trained with; give --image-size"):
        with_known_size(DataConfig(), f"{MODEL}=weights.pt", print)
    lines: list[str] = []
    assert with_known_size(DataConfig(), "torchvision:fcos_resnet50_fpn", lines.append).image_size == 640
    assert lines == ["image size: 640 x 640, the default; another with --image-size"]
    given = DataConfig(image_size=64)
    assert with_known_size(given, f"{MODEL}=weights.pt", print) == given


def test_architecture_flags_for_a_run_folder_are_refused(teacher_run: Path, tmp_path: Path) -> None:
    over = distillation_recipe(teacher_run, "pkd", teacher={"model": {"channels": 96}})
    with pytest.raises(UserError, match=r"^--teacher\.model\.channels: .* is a run folder, which stores its own"):
        dd.distill(over, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("trained_on", "evaluated_on", "words"),
    [
        ("train", None, "of the val split, held out"),
        ("train", "val", "of the val split, on which the student is measured, too"),
        ("val", None, "of the val split, no image is held out: the teacher is trained on them, so this AP is too high"),
        ("?", None, "of the val split, held out; which images the teacher was trained on is not known"),
    ],
)
def test_the_teacher_is_measured_on_held_out_images(
    teacher_run: Path, tmp_path: Path, trained_on: str, evaluated_on: str | None, words: str
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(teacher_run, teacher)
    stored = (teacher / "recipe.yaml").read_text()
    (teacher / "recipe.yaml").write_text(stored.replace("train_split: null", f"train_split: {trained_on}"))
    if trained_on == "?":
        (teacher / "recipe.yaml").unlink()
    lines: list[str] = []
    over = distillation_recipe(teacher, "pkd", data={"eval_split": evaluated_on})
    data = open_data(over.data)
    check_teacher(dd.load(teacher), data, over, predictions_are_read=False, say=lines.append)
    assert len(lines) == 1 and lines[0].endswith(words)


def test_a_run_that_fails_in_its_first_step_leaves_no_folder(
    teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("a method of the user's own failed")

    monkeypatch.setattr(dd.methods.PKD, "forward", fail)
    with pytest.raises(RuntimeError, match="own failed"):
        dd.distill(distillation_recipe(teacher_run, "pkd", teacher={"sample": 0}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_detector_of_ones_own_loop_becomes_a_run_folder(tmp_path: Path) -> None:
    student = dd.build(MODEL, ["disc", "box"], strides=(8, 16, 32), channels=32, tower_depth=2, backbone_weights="none")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = dd.save(student, tmp_path / "run", image_size=(64, 96), category_ids=(3, 7))
    restored = dd.load(folder)
    assert restored.info == student.info
    for name, value in student.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name])
    card = read_json(folder / "model.json")
    assert (card["category_ids"], card["image_size"], card["model"]["name"]) == ([3, 7], [64, 96], MODEL)
    again = dd.save(restored, tmp_path / "again", image_size=64)
    assert read_json(again / "model.json")["model"] == card["model"]


def test_a_saved_detector_is_exported(tmp_path: Path) -> None:
    student = dd.build(
        "rt_detr:resnet18",
        ["disc"],
        channels=32,
        queries=5,
        encoder_layers=1,
        decoder_layers=2,
        backbone_weights="none",
    )
    folder = dd.save(student, tmp_path / "run", image_size=64)
    assert (dd.export(folder, tmp_path / "host") / "config.json").is_file()


def test_what_cannot_be_saved_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student: Any = dd.build(MODEL, ["disc"], channels=32, backbone_weights="none")
    with pytest.raises(UserError, match="2 category ids for 1 classes"):
        dd.save(student, tmp_path / "run", category_ids=(1, 2))
    with caplog.at_level(logging.WARNING, "detdistill"):
        dd.save(student, tmp_path / "run")
    assert "no image_size is given; 640 is stored" in caplog.text
    with pytest.raises(UserError, match="is not empty"):
        dd.save(student, tmp_path / "run", image_size=64)
    stranger: Any = nn.Linear(1, 1)
    stranger.info = student.info
    with pytest.raises(UserError, match="it is not known how this detector was built"):
        dd.save(stranger, tmp_path / "other", image_size=64)
    assert not (tmp_path / "other").exists()


def test_levels_and_size_are_stored_in_the_recipe(teacher_run: Path, tmp_path: Path) -> None:
    fields = {"model": {"name": MODEL, "channels": 32, "tower_depth": 1, "backbone_weights": "none"}}
    fields |= {"data": {"path": "shapes:8"}, "train": {"batch_size": 4, "max_steps": 1, "device": "cpu"}}
    fields |= {"teacher": {"path": str(teacher_run), "sample": 0}, "methods": {"pkd": {}}}
    dd.distill(parse(fields, "test"), tmp_path / "out")
    stored = load(str(tmp_path / "out"))
    assert stored.model.strides == (8, 16, 32) and stored.data.image_size == 64
