"""Comparing methods: the intervals and words by hand, and a small comparison of real runs that is stopped, resumed and extended."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from detdistill.engine.watch import NotFiniteError
from detdistill.errors import UserError
from detdistill.recipe import Recipe, load, merge
from detdistill.run import comparison, train
from detdistill.run.comparison import Entry, compare
from detdistill.run.standings import interval, verdict

FIELDS: dict[str, Any] = {
    "model": {
        "name": "fcos:mobilenetv2_035",
        "strides": [8, 16, 32],
        "channels": 16,
        "tower_depth": 2,
        "backbone_weights": "none",
    },
    "data": {"path": "shapes:8", "image_size": 64},
    "teacher": {"sample": 0},
    "train": {"epochs": 1, "batch_size": 4, "max_steps": 1},
}


def test_the_interval_over_seeds_is_students() -> None:
    # Gains 1, 2, 3: mean 2, deviation 1; t of 2 degrees of freedom at 97.5 % is 4.30265.
    low, high = interval([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert low == pytest.approx(2 - 4.30265 / 3**0.5, abs=1e-4)
    assert high == pytest.approx(2 + 4.30265 / 3**0.5, abs=1e-4)
    assert interval([1.0]) is None


@pytest.mark.parametrize(
    ("gain", "seeds", "images", "words"),
    [
        (2.0, (0.5, 3.5), (1.0, 3.0), "better"),
        (-2.0, (-3.5, -0.5), (-3.0, -1.0), "worse"),
        (2.0, (-0.5, 4.5), (1.0, 3.0), "noise: other seeds could turn it"),
        (0.2, (-0.5, 0.9), (-1.0, 1.4), "noise: other seeds or images could turn it"),
        (2.0, (0.5, 3.5), (0.0, 4.0), "noise: other images could turn it"),
        (2.0, None, (1.0, 3.0), "better on these images; one seed tells nothing of others"),
    ],
)
def test_a_difference_counts_where_both_intervals_leave_out_nothing(
    gain: float, seeds: Any, images: Any, words: str
) -> None:
    assert verdict(gain, seeds, images) == words


def recipes(*labels: str, teacher: Path | None = None) -> list[Entry]:
    over = FIELDS | {"teacher": {"sample": 0, "path": str(teacher)}}
    return [Entry(label, load(None, over, [] if label == "none" else label.split("+"))) for label in labels]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train(Recipe.model_validate(FIELDS), folder)
    return folder


def test_a_comparison_is_resumed_and_extended_and_keeps_what_is_done(
    teacher: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "table"
    told = compare(recipes("pkd", teacher=teacher), 1, out, resamples=20)
    assert [path.name for path in sorted(out.iterdir())] == [
        "comparison.json",
        "comparison.md",
        "comparison.yaml",
        "none",
        "pkd",
    ]
    assert {row["method"] for row in told["rows"]} == {"none", "pkd"}  # plain training is always there
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed-0/model.safetensors")}
    console = Console(record=True, width=200)
    more = compare(
        recipes("none", "pkd", "pkd+crosskd", teacher=teacher), 2, out, resamples=20, resume=True, console=console
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.glob("*/seed-*/metrics.json"))) == 6
    assert json.loads((out / "comparison.json").read_text())["rows"] == json.loads(json.dumps(more["rows"]))
    assert [len(row["by_seed"]) for row in more["rows"]] == [2, 2, 2]
    assert more["rows"] == sorted(more["rows"], key=lambda row: -row["AP"])
    for row in more["rows"]:
        plain = next(one for one in more["rows"] if one["method"] == "none")
        assert row["gain"] == pytest.approx(row["AP"] - plain["AP"])
    shown = console.export_text()
    assert "noise" in shown and "pkd+crosskd" in shown and "teacher AP" in shown
    page = (out / "comparison.md").read_text()
    assert page.count("\n| ") == 4 and "seeds 0, 1" in page


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = comparison.distill

    def diverging(recipe: Recipe, *rest: Any, **options: Any) -> Any:
        if "crosskd" in recipe.methods:
            raise NotFiniteError("step 1: crosskd_box is nan")
        return honest(recipe, *rest, **options)

    monkeypatch.setattr(comparison, "distill", diverging)
    told = compare(recipes("crosskd", "pkd", teacher=teacher), 1, tmp_path / "table", resamples=5)
    assert {row["method"] for row in told["rows"]} == {"none", "pkd"}
    assert told["stopped"] == {"crosskd": "stopped with seed 0: step 1: crosskd_box is nan"}
    assert "| crosskd |" in (tmp_path / "table" / "comparison.md").read_text()


def test_what_can_not_be_compared_is_refused_before_the_first_run(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"

    def changed(field: str, **values: Any) -> list[Entry]:
        over = FIELDS | {"teacher": {"sample": 0, "path": str(teacher)}}
        return [Entry("crosskd", load(None, over | {field: over.get(field, {}) | values}, ["crosskd"]))]

    weak, elsewhere, fixed = (
        changed("teacher", sample=4),
        changed("train", device="tpu"),
        changed("data", eval_split="tst"),
    )
    for entries, seeds, message in [
        (recipes("pkd", teacher=teacher), 0, "--seeds 0"),
        (recipes("none", teacher=teacher), 1, "nothing to compare"),
        (recipes("pkd", "pkd", teacher=teacher), 1, "names pkd twice"),
        (recipes("pkd", "kdp", teacher=teacher), 1, "unknown method 'kdp'"),
        (recipes("pkd+crosskd", "crosskd+pkd", teacher=teacher), 1, "names crosskd\\+pkd twice, once as pkd\\+crosskd"),
        (weak, 1, "below teacher.floor"),
        (elsewhere, 1, "--device tpu"),
        (fixed, 1, "no split 'tst'"),
        (recipes("pkd", teacher=tmp_path / "nowhere"), 1, "nowhere"),
    ]:
        with pytest.raises(UserError, match=message):
            compare(entries, seeds, out)
    assert not out.exists()


def test_a_table_is_not_made_of_two_recipes(teacher: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "table", tmp_path / "other"
    two = [
        Entry(
            "pkd",
            load(None, merge(recipes("pkd", teacher=teacher)[0].recipe.model_dump(), {"train": {"max_steps": 2}})),
        )
    ]
    compare(two, 1, out, resamples=5)
    shutil.copytree(teacher, other)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    def changed(field: str, **values: Any) -> list[Entry]:
        recipe = recipes("pkd", teacher=teacher)[0].recipe
        return [Entry("pkd", load(None, merge(recipe.model_dump(), {"train": {"max_steps": None}, field: values})))]

    weighted = load(
        None, FIELDS | {"teacher": {"sample": 0, "path": str(teacher)}, "methods": {"pkd": {"weight": 2.0}}}
    )
    for entries, seeds, message in [
        (changed("train", epochs=2), 1, "train.epochs was 1 and is 2"),
        (changed("train", max_steps=1), 1, "train.max_steps was 2 and is 1"),
        (changed("train", seed=1), 1, "train.seed was 0 and is 1"),
        (changed("data", path="shapes:12"), 1, "data.path was 'shapes:8' and is 'shapes:12'"),
        (changed("model", name="fcos:resnet18"), 1, "model.name was"),
        (changed("teacher", path=str(other)), 1, "teacher.path was"),
        ([Entry("pkd", weighted)], 1, "methods.pkd was {} and is {'weight': 2.0}"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            compare(entries, seeds, out, resume=True)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before
    train(Recipe.model_validate(FIELDS | {"train": FIELDS["train"] | {"seed": 3}}), other, overwrite=True)
    (teacher / "model.safetensors").rename(tmp_path / "kept")
    try:
        shutil.copy(other / "model.safetensors", teacher)
        with pytest.raises(UserError, match="has other weights than the one of this table"):
            compare(two, 1, out, resume=True)
    finally:
        (tmp_path / "kept").replace(teacher / "model.safetensors")


def test_resuming_keeps_the_methods_seeds_and_options_that_nobody_names(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    over = FIELDS | {"teacher": {"sample": 0, "path": str(teacher)}, "methods": {"pkd": {"weight": 2.0}}}
    compare([Entry("pkd", load(None, over))], 2, out, resamples=5)
    told = compare(recipes("none", "mimicking", teacher=teacher), None, out, resamples=5, resume=True)
    assert {row["method"]: len(row["by_seed"]) for row in told["rows"]} == {"none": 2, "mimicking": 2, "pkd": 2}
    assert "weight: 2.0" in (out / "pkd/seed-0/recipe.yaml").read_text()
    with pytest.raises(UserError, match="--seeds 1: at least 2, as the table has them already"):
        compare(recipes("none", teacher=teacher), 1, out, resume=True)


def test_overwrite_takes_the_old_runs_away_and_nothing_else(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    compare(recipes("pkd", "mimicking", teacher=teacher), 1, out, resamples=5)
    (out / "mimicking/seed-0/notes.txt").write_text("mine")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="RoI head"):
        compare(recipes("kd", teacher=teacher), 1, out, overwrite=True)
    assert (out / "pkd/seed-0/metrics.json").exists()  # a refusal comes before anything is taken away
    compare(recipes("crosskd", teacher=teacher), 1, out, resamples=5, overwrite=True)
    assert not (out / "pkd").exists()
    assert sorted(path.name for path in (out / "mimicking/seed-0").iterdir()) == ["notes.txt", "recipe.yaml"]
    assert sorted(path.parts[-3] for path in out.glob("*/seed-0/metrics.json")) == ["crosskd", "none"]
    compare(recipes("mimicking", teacher=teacher), 1, out, resamples=5, overwrite=True)
    assert (out / "mimicking/seed-0/notes.txt").exists() and (out / "notes.txt").exists()
