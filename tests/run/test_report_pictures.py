"""Which images a report shows, and what happens if one can't be read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detdistill import evaluation
from detdistill.data import Split, open_data
from detdistill.errors import UserError
from detdistill.run.report_models import Judged, Truth, judge
from detdistill.run.report_pictures import SHOWN, gallery
from detdistill.run.report_runs import Group, find_groups

from .made_runs import recipe, write_run


def opened(*folders: Path, split: Split | None = None) -> tuple[Group, Truth, dict[Path, Judged]]:
    (group,) = find_groups(folders)
    data = group.first.recipe.data
    split = split or open_data(data).evaluation_split(data)
    truth = Truth(split, evaluation.resample(len(split), 2))
    runs = [run for each in group.runs.values() for run in each]
    return group, truth, {run.folder: judge(run.results or [], truth, run.folder) for run in runs}


def test_the_images_that_changed_are_shown_and_no_others(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "a", recipe(), moved=0.4, every=4)  # images 0, 4, 8 are bad
    taught = write_run(tmp_path / "b", recipe("pkd"), moved=0.4, every=5)  # images 0, 5 are bad
    group, truth, judged = opened(plain, taught)
    names = [record.name for record in truth.split.records]
    found = gallery(group, "pkd", truth, judged, None)
    with_objects = {record.name for record in truth.split.records if (~record.crowds).any()}
    assert {each.name for each in found.helped} == {names[4], names[8]} & with_objects
    assert {each.name for each in found.hurt} == {names[5]} & with_objects
    for each in [*found.helped, *found.hurt]:
        assert [picture.title for picture in each.pictures] == ["ground truth", "plain", "pkd"]
        assert all(picture.uri.startswith("data:image/jpeg;base64,") for picture in each.pictures)
    helped = found.helped[0]
    assert helped.values["pkd"] == pytest.approx(100) and helped.values["plain"] < 50
    assert found.problem == ""


def test_an_image_on_which_the_seeds_disagree_is_not_shown(tmp_path: Path) -> None:
    plain = [write_run(tmp_path / f"p{seed}", recipe(seed=seed), moved=0.4, every=4) for seed in (0, 1)]
    taught = [write_run(tmp_path / "d0", recipe("pkd", seed=0), moved=0.4, every=8)]  # better on image 4
    taught.append(write_run(tmp_path / "d1", recipe("pkd", seed=1), moved=0.4, every=1))  # worse on all but 0, 4, 8
    group, truth, judged = opened(*plain, *taught)
    found = gallery(group, "pkd", truth, judged, None)
    assert (found.helped, found.hurt) == ([], [])
    group, truth, judged = opened(*plain, taught[0])  # one pair of seeds: image 4 was helped
    found = gallery(group, "pkd", truth, judged, None)
    assert [each.name for each in found.helped] == [truth.split.records[4].name] and found.hurt == []


def test_a_lone_run_shows_its_worst_images(tmp_path: Path) -> None:
    group, truth, judged = opened(write_run(tmp_path / "a", recipe(), moved=0.4, every=4))
    teacher = next(iter(judged.values()))
    found = gallery(group, "plain", truth, judged, teacher)
    assert found.helped == [] and len(found.hurt) == min(SHOWN, len(truth.split))
    worst = min(evaluation.image_precision(teacher.matches)[np.isfinite(evaluation.image_precision(teacher.matches))])
    assert found.hurt[0].values == {"plain": pytest.approx(worst)}
    assert [picture.title for picture in found.hurt[0].pictures] == ["ground truth", "plain", "teacher"]


class Lost:
    """An image that can't be read."""

    def open(self) -> Image.Image:
        raise UserError("a.jpg: can't decode the image")


def test_an_image_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", recipe(), moved=0.4)
    data = recipe().data
    split = open_data(data).evaluation_split(data)
    lost: Any = Lost()
    records = tuple(replace(record, source=lost) for record in split.records)
    group, truth, judged = opened(folder, split=replace(split, records=records))
    found = gallery(group, "plain", truth, judged, None)
    assert found.hurt == [] and "images can't be shown: a.jpg: can't decode the image" in found.problem


def test_without_boxes_nothing_is_drawn(tmp_path: Path) -> None:
    group, truth, _ = opened(write_run(tmp_path / "a", recipe()))
    assert "no predictions.json" in gallery(group, "plain", truth, {}, None).problem
