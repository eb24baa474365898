"""The built-in data set: what is drawn, and that it is always the same."""

import hashlib
import pickle

import numpy as np
import pytest

from detdistill.data import open_data, shapes
from detdistill.data.shapes import CLASSES, OVERLAP, SIDES, _covered_share
from detdistill.errors import UserError
from detdistill.recipe import DataConfig


def digest(record):
    """A hash of the pixels."""
    return hashlib.sha256(record.image().tobytes()).hexdigest()


def test_counts_and_names():
    data = open_data(DataConfig(path="shapes:10"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 10, "val": 2, "test": 2}
    assert (data.layout, data.classes, data.category_ids) == ("shapes", CLASSES, (1, 2, 3, 4, 5, 6))
    ids = [record.id for split in data.splits.values() for record in split.records]
    assert len(set(ids)) == len(ids)


def test_an_image_depends_neither_on_n_nor_on_the_process():
    small, large = open_data(DataConfig(path="shapes:4")), open_data(DataConfig(path="shapes:12"))
    for name in ("train", "test"):
        first, second = small.split(name).records[0], large.split(name).records[0]
        assert digest(first) == digest(second) == digest(pickle.loads(pickle.dumps(second)))
        assert (first.id, first.name, first.corners.tolist()) == (second.id, second.name, second.corners.tolist())


def test_all_images_are_different():
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
            assert all(_covered_share(box, previous) <= OVERLAP for previous in record.corners[:index])
    corners = np.concatenate([record.corners for record in records])
    sides = (corners[:, 2:] - corners[:, :2]).max(1)
    assert np.bincount(np.concatenate([record.class_indices for record in records])).min() > len(corners) / 12
    assert (sides >= SIDES[0] - 1e-6).all()
    assert (sides < 24).sum() > len(corners) / 6
    assert (sides > 48).sum() > len(corners) / 20


@pytest.mark.parametrize("index", range(12))
def test_a_box_fits_what_is_drawn(monkeypatch, index):
    """An image with an object and the same image without it differ inside the box."""
    monkeypatch.setattr(shapes, "FAINT", 0.0)
    item = shapes.scene_items(0, index)[0]
    with_item = np.asarray(shapes._draw([item], np.random.default_rng([1, index])), dtype=int)
    without_item = np.asarray(shapes._draw([], np.random.default_rng([1, index])), dtype=int)
    # The grain of at most 44 differs too, because it is drawn last.
    rows, columns = np.nonzero((np.abs(with_item - without_item) > 45).any(-1))
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert box == pytest.approx(item.box, abs=2)


@pytest.mark.parametrize("path", ["shapes:3", "shapes:", "shapes:many", "shapes:1000000", "shapes:-4"])
def test_a_wrong_count_is_refused(path):
    with pytest.raises(UserError, match=f"{path}: N is not a number from 4 to 999999; write shapes:N"):
        open_data(DataConfig(path=path))
