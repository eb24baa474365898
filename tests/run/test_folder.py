"""The run folder: its files, its name, and what may be overwritten."""

import json
import shutil
from pathlib import Path

import pytest

from detdistill import run
from detdistill.errors import UserError
from detdistill.run.folder import FILES, RunFolder, choose_folder, require_empty

from .recipes import distillation_recipe, read_json, small_recipe

ACCURACY = {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "per_class"}
COSTS = {"params", "flops", "latency_ms", "train_seconds", "images_per_second"}


def test_a_finished_run_has_all_files(teacher_run: Path) -> None:
    assert set(FILES) - {"splits.json"} <= {path.name for path in teacher_run.iterdir()}  # its data come with splits
    assert (teacher_run / "checkpoint").is_dir()
    metrics = read_json(teacher_run / "metrics.json")
    assert metrics.keys() >= ACCURACY | COSTS
    assert set(metrics["per_class"]) == set(read_json(teacher_run / "model.json")["classes"])
    assert read_json(teacher_run / "environment.json")["versions"]["torch"]
    assert [path.name for path in teacher_run.iterdir() if path.name.startswith(".")] == []  # no temporary files


def test_a_folder_with_files_is_not_changed(teacher_run: Path, tmp_path: Path) -> None:
    before = (teacher_run / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="is not empty: continue it with --resume, replace it with --overwrite"):
        run.train(small_recipe(), teacher_run)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not a run folder, so nothing is deleted"):
        run.train(small_recipe(), tmp_path, overwrite=True)
    with pytest.raises(UserError, match="the model it reads"):
        run.distill(distillation_recipe(teacher_run, "pkd"), teacher_run, overwrite=True)
    assert (teacher_run / "metrics.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_the_files_of_the_run_only(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for seed in (0, 1):
        run.train(small_recipe(train={"seed": seed}), out, overwrite=True)
        (out / "notes.txt").write_text("keep")
    assert "seed: 1" in (out / "recipe.yaml").read_text()
    assert (out / "notes.txt").exists()
    assert len((out / "log.jsonl").read_text().splitlines()) == 1


def test_clear_keeps_the_recipe_if_other_files_are_in_the_folder(teacher_run: Path, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        shutil.copytree(teacher_run, folder)
    (shared / "notes.txt").write_text("keep")
    RunFolder(alone).clear()
    RunFolder(shared).clear()
    assert not alone.exists()
    assert sorted(path.name for path in shared.iterdir()) == ["notes.txt", "recipe.yaml"]


def test_default_folders_are_named_by_model_and_methods_and_numbered(
    teacher_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run.train(small_recipe())
    run.distill(distillation_recipe(teacher_run, "pkd", teacher={"sample": 0}))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "gfl-mobilenetv3_small_050",
        "gfl-mobilenetv3_small_050-2",
        "gfl-mobilenetv3_small_050-pkd",
    ]


def test_a_default_folder_needs_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a run with several processes needs --out DIR"):
        choose_folder(None, "run", resume=False, overwrite=False)


def test_a_file_is_refused_as_output_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="is a file: name a folder"):
        choose_folder(file, "run", resume=False, overwrite=False)
    with pytest.raises(UserError, match="is a file: name a folder"):
        require_empty(file, overwrite=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": ["a"]}, r"model\.json: field 'model'"),
        (None, r"is not a run folder with a trained model: it has no model\.json"),
    ],
)
def test_a_missing_or_wrong_card_is_refused(tmp_path: Path, content: dict | None, message: str) -> None:
    if content is not None:
        (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        RunFolder(tmp_path).card()
