"""A comparison of methods over seeds: how it is resumed and extended, and what it refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from detdistill import run
from detdistill.engine.watch import NotFiniteError
from detdistill.errors import UserError
from detdistill.recipe import Recipe, merge
from detdistill.run import comparison_runs
from detdistill.run.comparison import compare
from detdistill.run.comparison_runs import Entry, seconds_left

from .recipes import distillation_recipe, small_recipe

BASE = {"teacher": {"sample": 0}, "train": {"epochs": 1}}


def entry(label: str, teacher: Path, /, **over: Any) -> Entry:
    """The entry of a label such as `none` or `pkd+crosskd`. over: fields of its recipe."""
    methods = [] if label == "none" else label.split("+")
    return Entry(label, distillation_recipe(teacher, *methods, **merge(BASE, over)))


def entries(teacher: Path, *labels: str) -> list[Entry]:
    """One entry per label."""
    return [entry(label, teacher) for label in labels]


def contents(folder: Path) -> dict[Path, bytes]:
    """The content of every file in a folder and its subfolders."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_resumed_comparison_keeps_finished_runs_and_can_be_extended(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    summary = compare(entries(teacher_run, "pkd"), 1, out, resamples=20)
    files = ["comparison.json", "comparison.md", "comparison.yaml", "none", "pkd", "report.html"]
    files.append("teacher_predictions.json")
    assert [path.name for path in sorted(out.iterdir())] == files
    assert {row["method"] for row in summary["rows"]} == {"none", "pkd"}  # plain training is added
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed-0/model.safetensors")}
    console = Console(record=True, width=200)
    extended = entries(teacher_run, "none", "pkd", "pkd+crosskd")
    summary = compare(extended, 2, out, resamples=20, resume=True, console=console)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.glob("*/seed-*/metrics.json"))) == 6
    rows = summary["rows"]
    assert json.loads((out / "comparison.json").read_text())["rows"] == json.loads(json.dumps(rows))
    assert [len(row["by_seed"]) for row in rows] == [2, 2, 2]
    assert rows == sorted(rows, key=lambda row: -row["AP"])
    plain = next(row for row in rows if row["method"] == "none")
    for row in rows:
        assert row["gain"] == pytest.approx(row["AP"] - plain["AP"])
    printed = console.export_text()
    assert "no verdict: the plain student has not learned (AP 0.0)" in printed  # after one step
    assert "warning: each run has 1 steps" in printed and "of training left in all" in printed
    assert "pkd+crosskd" in printed and "teacher AP" in printed
    page = (out / "comparison.md").read_text()
    assert page.count("\n| ") == 4 and "seeds 0, 1" in page


def test_a_resumed_comparison_keeps_stored_methods_seeds_and_options(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    compare([entry("pkd", teacher_run, methods={"pkd": {"weight": 2.0}})], 2, out, resamples=5)
    summary = compare(entries(teacher_run, "none", "mimicking"), None, out, resamples=5, resume=True)
    assert {row["method"]: len(row["by_seed"]) for row in summary["rows"]} == {"none": 2, "mimicking": 2, "pkd": 2}
    assert "weight: 2.0" in (out / "pkd/seed-0/recipe.yaml").read_text()
    with pytest.raises(UserError, match="--seeds 1: give at least 2, which the table already has"):
        compare(entries(teacher_run, "none"), 1, out, resume=True)


def test_a_method_that_diverges_is_in_the_table_and_the_others_continue(
    teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill = comparison_runs.distill

    def diverge(recipe: Recipe, *rest: Any, **options: Any) -> Any:
        if "crosskd" in recipe.methods:
            raise NotFiniteError("step 1: crosskd_box is nan")
        return distill(recipe, *rest, **options)

    monkeypatch.setattr(comparison_runs, "distill", diverge)
    summary = compare(entries(teacher_run, "crosskd", "pkd"), 1, tmp_path / "table", resamples=5)
    assert {row["method"] for row in summary["rows"]} == {"none", "pkd"}
    assert summary["stopped"] == {"crosskd": "stopped with seed 0: step 1: crosskd_box is nan"}
    assert "| crosskd |" in (tmp_path / "table" / "comparison.md").read_text()


def test_the_time_left_is_that_of_the_runs_to_come() -> None:
    assert seconds_left(["none", "pkd"], {}) == ""
    spent = {"none": [10.0, 20.0], "pkd": [45.0]}
    assert seconds_left(["none", "pkd", "crosskd"], spent) == ", 0:01:30 of training left in all"  # 15 + 45 + 30


@pytest.mark.parametrize(
    ("labels", "over", "seeds", "message"),
    [
        (["pkd"], {}, 0, "--seeds 0"),
        (["none"], {}, 1, "nothing to compare"),
        (["pkd", "pkd"], {}, 1, "names pkd twice"),
        (["pkd", "kdp"], {}, 1, "unknown method 'kdp'"),
        (["pkd+crosskd", "crosskd+pkd"], {}, 1, r"names crosskd\+pkd twice, once as pkd\+crosskd"),
        (["crosskd"], {"teacher": {"sample": 4}}, 1, r"below teacher\.floor"),
        (["crosskd"], {"train": {"device": "tpu"}}, 1, "--device tpu"),
        (["crosskd"], {"data": {"eval_split": "tst"}}, 1, "no split 'tst'"),
        (["pkd"], {"teacher": {"path": "nowhere"}}, 1, "nowhere"),
    ],
)
def test_a_wrong_comparison_is_refused_before_the_first_run(
    teacher_run: Path, tmp_path: Path, labels: list[str], over: dict[str, Any], seeds: int, message: str
) -> None:
    out = tmp_path / "table"
    with pytest.raises(UserError, match=message):
        compare([entry(label, teacher_run, **over) for label in labels], seeds, out)
    assert not out.exists()


def test_a_comparison_is_not_resumed_with_other_settings_or_another_teacher(teacher_run: Path, tmp_path: Path) -> None:
    out, teacher, other_teacher = tmp_path / "table", tmp_path / "teacher", tmp_path / "other_teacher"
    shutil.copytree(teacher_run, teacher)
    shutil.copytree(teacher_run, other_teacher)
    stored = [entry("pkd", teacher, train={"max_steps": 2})]
    compare(stored, 1, out, resamples=5)
    before = contents(out)
    unlimited = {"train": {"max_steps": None}}
    for over, message in [
        ({"train": {"max_steps": None, "epochs": 2}}, "train.epochs was 1 and is 2"),
        ({"train": {"max_steps": 1}}, "train.max_steps was 2 and is 1"),
        ({"train": {"max_steps": None, "seed": 1}}, "train.seed was 0 and is 1"),
        (unlimited | {"data": {"path": "shapes:12"}}, "data.path was 'shapes:8' and is 'shapes:12'"),
        (unlimited | {"model": {"name": "fcos:resnet18"}}, "model.name was"),
        (unlimited | {"teacher": {"path": str(other_teacher)}}, "teacher.path was"),
        ({"methods": {"pkd": {"weight": 2.0}}}, "methods.pkd was {} and is {'weight': 2.0}"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            compare([entry("pkd", teacher, **over)], 1, out, resume=True)
    assert contents(out) == before
    run.train(small_recipe(train={"seed": 3}), other_teacher, overwrite=True)
    shutil.copy(other_teacher / "model.safetensors", teacher)
    with pytest.raises(UserError, match="differ from those of this table"):
        compare(stored, 1, out, resume=True)


def test_overwrite_removes_the_earlier_runs_and_no_other_files(teacher_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    compare(entries(teacher_run, "pkd", "mimicking"), 1, out, resamples=5)
    (out / "mimicking/seed-0/notes.txt").write_text("keep")
    (out / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="RoI head"):
        compare(entries(teacher_run, "kd"), 1, out, overwrite=True)
    assert (out / "pkd/seed-0/metrics.json").exists()  # a refused comparison removes nothing
    compare(entries(teacher_run, "crosskd"), 1, out, resamples=5, overwrite=True)
    assert not (out / "pkd").exists()
    assert sorted(path.name for path in (out / "mimicking/seed-0").iterdir()) == ["notes.txt", "recipe.yaml"]
    assert sorted(path.parts[-3] for path in out.glob("*/seed-0/metrics.json")) == ["crosskd", "none"]
    compare(entries(teacher_run, "mimicking"), 1, out, resamples=5, overwrite=True)
    assert (out / "mimicking/seed-0/notes.txt").exists() and (out / "notes.txt").exists()
