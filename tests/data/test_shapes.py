import hashlib
import pickle

import numpy as np
import pytest

from detdistill.data import open_data, shapes
from detdistill.data.shapes import CLASSES, OVERLAP, SIDES, _covered
from detdistill.errors import UserError
from detdistill.recipe import DataConfig


def digest(record):
    return hashlib.sha256(record.image().tobytes()).hexdigest()


def test_counts_and_names():
    data = open_data(DataConfig(path="shapes:10"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 10, "val": 2, "test": 2}
    assert (data.layout, data.classes, data.category_ids) == ("shapes", CLASSES, (1, 2, 3, 4, 5, 6))
    ids = [record.id for split in data.splits.values() for record in split.records]
    assert len(set(ids)) == len(ids)


def test_an_image_is_the_same_whatever_n_and_whoever_draws_it():
    small, large = open_data(DataConfig(path="shapes:4")), open_data(DataConfig(path="shapes:12"))
    for name in ("train", "test"):
        one, other = small.split(name).records[0], large.split(name).records[0]
        assert digest(one) == digest(other) == digest(pickle.loads(pickle.dumps(other)))
        assert (one.id, one.name, one.corners.tolist()) == (other.id, other.name, other.corners.tolist())


def test_no_image_is_another():
    data = open_data(DataConfig(path="shapes:12"))
    images = [digest(record) for split in data.splits.values() for record in split.records]
    assert len(set(images)) == len(images)


def test_boxes_are_inside_and_visible_and_all_classes_and_sizes_occur():
    records = open_data(DataConfig(path="shapes:200")).split("train").records
    for record in records:
        assert 1 <= len(record.corners) <= 8
        assert (record.corners >= 0).all()
        assert (record.corners <= [record.width, record.height] * 2).all()
        for index, box in enumerate(record.corners):
            assert all(_covered(box, other) <= OVERLAP for other in record.corners[:index])
    corners = np.concatenate([record.corners for record in records])
    sides = (corners[:, 2:] - corners[:, :2]).max(1)
    assert np.bincount(np.concatenate([record.kinds for record in records])).min() > len(corners) / 12
    assert (sides >= SIDES[0] - 1e-6).all()
    assert (sides < 24).sum() > len(corners) / 6
    assert (sides > 48).sum() > len(corners) / 20


@pytest.mark.parametrize("index", range(12))
def test_a_box_fits_what_is_drawn(monkeypatch, index):
    """What differs between a picture with an object and the same picture without it is where the box says."""
    monkeypatch.setattr(shapes, "FAINT", 0.0)
    item = shapes.layout(0, index)[0]
    drawn, bare = (
        np.asarray(shapes._draw(items, np.random.default_rng([1, index])), dtype=int) for items in ([item], [])
    )
    rows, columns = np.nonzero(
        (np.abs(drawn - bare) > 45).any(-1)
    )  # the grain, at most 44, is not the same: its draws come last
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found == pytest.approx(item.box, abs=2)


@pytest.mark.parametrize("path", ["shapes:3", "shapes:", "shapes:many", "shapes:1000000", "shapes:-4"])
def test_a_wrong_count_is_refused(path):
    with pytest.raises(UserError, match=f"{path}: the built-in set is shapes:N"):
        open_data(DataConfig(path=path))
