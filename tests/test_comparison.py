"""Comparing methods: the intervals and words by hand, and a small comparison of real runs that is stopped, resumed and extended."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from detdistill import comparison
from detdistill.comparison import Entry, compare, interval, verdict
from detdistill.engine.watch import NotFiniteError
from detdistill.errors import UserError
from detdistill.recipe import Recipe, load

FIELDS = {
    "model": {"name": "fcos:mobilenetv2_035", "strides": [8, 16, 32], "channels": 16, "tower_depth": 2, "backbone_weights": "none"},
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
def test_a_difference_counts_where_both_intervals_leave_out_nothing(gain: float, seeds: Any, images: Any, words: str) -> None:
    assert verdict(gain, seeds, images) == words


def recipes(*labels: str, teacher: Path | None = None) -> list[Entry]:
    over = FIELDS | {"teacher": {"sample": 0, "path": str(teacher)}}
    return [Entry(label, load(None, over, [] if label == "none" else label.split("+"))) for label in labels]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from detdistill.run import train

    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train(Recipe.model_validate(FIELDS), folder)
    return folder


def test_a_comparison_is_resumed_and_extended_and_keeps_what_is_done(teacher: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "table"
    told = compare(recipes("pkd", teacher=teacher), 1, out, resamples=20)
    assert [path.name for path in sorted(out.iterdir())] == ["comparison.json", "comparison.md", "none", "pkd"]
    assert {row["method"] for row in told["rows"]} == {"none", "pkd"}  # plain training is always there
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed-0/model.safetensors")}
    console = Console(record=True, width=200)
    more = compare(recipes("none", "pkd", "pkd+crosskd", teacher=teacher), 2, out, resamples=20, resume=True, console=console)
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


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    for entries, seeds, message in [
        (recipes("pkd", teacher=teacher), 0, "--seeds 0"),
        (recipes("none", teacher=teacher), 1, "nothing to compare"),
        (recipes("pkd", "pkd", teacher=teacher), 1, "names pkd twice"),
        (recipes("pkd", "kdp", teacher=teacher), 1, "unknown method 'kdp'"),
        (recipes("pkd", teacher=tmp_path / "nowhere"), 1, "nowhere"),
    ]:
        with pytest.raises(UserError, match=message):
            compare(entries, seeds, out)
    assert not out.exists()
