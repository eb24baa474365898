"""The numbers of a report, from runs whose boxes are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detdistill import evaluation
from detdistill.data import open_data
from detdistill.errors import UserError
from detdistill.reporting import Member
from detdistill.run.report_models import Judged, Truth, bounds, judge, members
from detdistill.run.report_runs import find_groups
from detdistill.run.standings import interval

from .made_runs import boxes, recipe, write_comparison, write_run


def truth_of(settings: Any, samples: int = 50) -> Truth:
    split = open_data(settings.data).evaluation_split(settings.data)
    return Truth(split, evaluation.resample(len(split), samples))


def made(*folders: Path, teacher: list | None = None) -> dict[str, Member]:
    """The models of the only group in these folders, by label."""
    (group,) = find_groups(folders)
    truth = truth_of(group.first.recipe)
    runs = [run for each in [*group.runs.values(), group.teachers] for run in each]
    judged = {run.folder: judge(run.results, truth, run.folder) for run in runs if run.results is not None}
    stored = None if teacher is None else judge(teacher, truth, "teacher")
    return {member.label: member for member in members(group, truth, judged, stored)}


def test_a_gain_is_the_mean_of_the_pairs_of_one_seed(tmp_path: Path) -> None:
    table = write_comparison(tmp_path / "t", {"none": (0.3, 0.1), "pkd": (0.0, 0.05)})
    found = made(table)
    plain, pkd = found["plain"], found["pkd"]
    gain = pkd.gain
    assert gain is not None and plain.gain is None
    by_seed = [after - before for before, after in zip(averages(table, "none"), averages(table, "pkd"), strict=True)]
    assert list(gain.by_seed.values()) == pytest.approx(by_seed)
    assert gain.value == pytest.approx(np.mean(by_seed)) and gain.over_seeds == pytest.approx(interval(by_seed))
    assert gain.over_images is not None and gain.over_images[0] - 1e-6 <= gain.value <= gain.over_images[1] + 1e-6
    assert gain.recovered == pytest.approx(gain.value / (90.0 - plain.metrics["AP"]))  # 90: the stored teacher
    assert plain.seeds == (0, 1) and plain.deviation == pytest.approx(np.std(averages(table, "none"), ddof=1))


def averages(table: Path, label: str) -> list[float]:
    """AP of each run of a label."""
    (group,) = find_groups([table])
    return [run.metrics["AP"] for run in group.runs["plain" if label == "none" else label]]


def test_runs_of_other_seeds_have_no_interval_over_seeds(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"p{seed}", recipe(seed=seed), 0.2) for seed in (0, 1)]
    folders += [write_run(tmp_path / f"d{seed}", recipe("pkd", seed=seed)) for seed in (5, 6)]
    gain = made(*folders)["pkd"].gain
    assert gain is not None and gain.by_seed == {} and gain.over_seeds is None and gain.over_images is not None
    assert gain.value > 0


def test_only_common_seeds_count(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"p{seed}", recipe(seed=seed), 0.2) for seed in (0, 1)]
    folders += [write_run(tmp_path / f"d{seed}", recipe("pkd", seed=seed), 0.1) for seed in (1, 6)]
    gain = made(*folders)["pkd"].gain
    assert gain is not None and list(gain.by_seed) == [1]


def test_a_teacher_of_a_comparison_is_measured_from_its_boxes(tmp_path: Path) -> None:
    table = write_comparison(tmp_path / "t", {"none": (0.3, 0.3), "pkd": (0.2, 0.2)}, "torchvision:x")
    assert made(table)["teacher"].quality is None
    split = truth_of(recipe()).split
    teacher = made(table, teacher=boxes(split))["teacher"]
    assert teacher.model == "torchvision:x" and teacher.quality is not None
    assert teacher.metrics["AP"] == pytest.approx(100) and teacher.metrics["latency_ms"] == 9.0
    assert set(teacher.metrics["per_class"]) == set(split.classes)


def test_quality_is_that_of_the_boxes(tmp_path: Path) -> None:
    found = made(write_run(tmp_path / "a", recipe(), moved=0.5, every=2))["plain"].quality
    assert found is not None and found.interval is not None
    objects = len(boxes(truth_of(recipe()).split))
    matrix = np.array(found.confusion.counts)
    assert matrix[:-1].sum() == objects and np.trace(matrix) < objects
    assert found.counts["badly placed"] == matrix[:-1, -1].sum() > 0  # half a width to the side: IoU 1/3
    assert found.lost["badly placed"] > 5 > found.lost["duplicate"]
    exact = made(write_run(tmp_path / "b", recipe()))["plain"].quality
    assert exact is not None and max(exact.lost.values()) == pytest.approx(0) and exact.precision[0.75] == [1.0] * 101


def test_an_interval_is_moved_by_the_bias_of_the_resamples() -> None:
    values = np.array([20.0, 22.0, 24.0, np.nan])
    assert bounds(values, 21.0) == pytest.approx((20.1 - 1, 23.9 - 1))
    assert bounds(np.array([np.nan]), 21.0) is None and bounds(np.array([0.0, 2.0]), 0.5) == pytest.approx((0.0, 1.45))


def test_a_log_is_the_mean_over_the_seeds(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"p{seed}", recipe(seed=seed)) for seed in (0, 1)]
    (folders[1] / "log.jsonl").write_text('{"step": 1, "task_box": 2, "total": null}\n{"step": 7, "task_box": 5}\n')
    log = made(*folders)["plain"].log
    assert log.values == {"task_box": ([1], [1.5])}  # step 1 is the only common one; a null has no mean


def test_boxes_of_other_classes_are_refused(tmp_path: Path) -> None:
    truth = truth_of(recipe())
    wrong = [{**each, "category_id": 99} for each in boxes(truth.split)]
    with pytest.raises(UserError, match="runs/a: the boxes do not fit the data set"):
        judge(wrong, truth, "runs/a")
    assert isinstance(judge([], truth, "runs/a"), Judged)
