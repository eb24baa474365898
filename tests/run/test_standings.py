"""The table of a comparison: intervals and verdicts by hand, and rows from run folders."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from detdistill.data import Split, open_data
from detdistill.recipe import DataConfig
from detdistill.run.standings import interval, markdown, not_learned, rows, show, verdict


def test_the_interval_over_seeds_is_the_t_interval_of_student() -> None:
    # Gains 1, 2, 3: mean 2, deviation 1. The t quantile of 2 degrees of freedom at 97.5 % is 4.30265.
    bounds = interval([1.0, 2.0, 3.0])
    assert bounds == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert interval([1.0]) is None


@pytest.mark.parametrize(
    ("gain", "over_seeds", "over_images", "words"),
    [
        (2.0, (0.5, 3.5), (1.0, 3.0), "better"),
        (-2.0, (-3.5, -0.5), (-3.0, -1.0), "worse"),
        (2.0, (-0.5, 4.5), (1.0, 3.0), "noise: with other seeds the sign could change"),
        (0.2, (-0.5, 0.9), (-1.0, 1.4), "noise: with other seeds or images the sign could change"),
        (2.0, (0.5, 3.5), (0.0, 4.0), "noise: with other images the sign could change"),
        (2.0, None, (1.0, 3.0), "better on these images; one seed says nothing about other seeds"),
    ],
)
def test_a_gain_counts_if_both_intervals_exclude_zero(
    gain: float, over_seeds: Any, over_images: Any, words: str
) -> None:
    assert verdict(gain, over_seeds, over_images) == words


@pytest.mark.parametrize(("values", "words"), [([0.2, 1.0], "(AP 0.6)"), ([None, None], "(AP 0.0)"), ([0.9, 1.2], "")])
def test_there_is_no_verdict_if_the_plain_student_has_not_learned(values: list[float | None], words: str) -> None:
    reason = not_learned([{"AP": value} for value in values])
    assert words in reason and bool(reason) == bool(words)


def write_run(folder: Path, split: Split, average_precision: float, exact: bool) -> Path:
    """Write the metrics and predictions of a run. exact: its boxes are the ground truth; otherwise it has none."""
    predictions = []
    if exact:
        for record in split.records:
            for (left, top, right, bottom), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
                box = {"bbox": [left, top, right - left, bottom - top], "category_id": split.category_ids[label]}
                predictions.append({"image_id": record.id, "score": 1.0, **box})
    metrics = {
        "AP": average_precision,
        "AP50": average_precision + 1,
        "images_per_second": 8.0,
        "peak_memory_bytes": 3 * 2**20,
        "epochs": 2.0,
        "steps": 12,
    }
    folder.mkdir(parents=True)
    (folder / "predictions.json").write_text(json.dumps(predictions))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_rows_hold_means_gains_and_the_recovered_gap(tmp_path: Path) -> None:
    data = open_data(DataConfig(path="shapes:8"))
    split = data.split("test")
    runs = {
        "none": [write_run(tmp_path / f"none/{seed}", split, 10.0 + seed, exact=False) for seed in range(2)],
        "pkd": [write_run(tmp_path / f"pkd/{seed}", split, 12.0 + 2 * seed, exact=True) for seed in range(2)],
    }
    pkd, plain = rows(runs, 20.5, data, split, batch_size=4, resamples=20)
    assert (pkd["method"], plain["method"]) == ("pkd", "none")  # best first
    assert (pkd["AP"], pkd["AP50"], pkd["by_seed"]) == (13.0, 14.0, [12.0, 14.0])
    assert pkd["deviation"] == pytest.approx(2**0.5)
    assert (pkd["gain"], pkd["gain_by_seed"]) == (2.5, [2.0, 3.0])
    assert pkd["gap_recovered"] == pytest.approx(2.5 / 10)  # 20.5 - 10.5
    assert pkd["gain_over_images"] == pytest.approx((100.0, 100.0))  # every box is found, and none without PKD
    assert (pkd["seconds_per_step"], pkd["peak_memory_bytes"]) == (0.5, 3 * 2**20)
    assert pkd["verdict"] == "noise: with other seeds the sign could change"  # 2.5 +- 6.4
    assert (plain["gain"], plain["gain_over_images"], plain["verdict"]) == (0.0, None, "")
    summary = {
        "student": "gfl:resnet18",
        "teacher": {"AP": 20.5},
        "data": "shapes:8",
        "split": "test",
        "images": 2,
        "training_images": 8,
        "seeds": [0, 1],
        "rows": [pkd, plain],
        "stopped": {"crosskd": "stopped with seed 0: nan"},
    }
    page = markdown(summary)
    assert page.startswith(
        "Student gfl:resnet18 on shapes:8; 8 training images; test split, 2 images; teacher AP 20.5; "
    )
    assert (
        "| pkd | 13.0 | 1.4 | +2.5 | -3.9 .. +8.9 | +100.0 .. +100.0 | 25 % | 2.0 | 12 | 0.500 | 3 MiB | noise: "
        in page
    )
    assert "| plain | 10.5 | 0.7 | - | - | - | - | 2.0 | 12 | 0.500 | 3 MiB |  |" in page
    assert page.endswith("stopped with seed 0: nan |\n")
    console = Console(record=True, width=200)
    show(summary, console)
    printed = console.export_text()
    assert "pkd: +2.5 AP over plain training, noise: with other seeds the sign could change" in printed
    assert "crosskd: stopped with seed 0: nan" in printed
