"""Data without splits, and splits that are held out by data.val_fraction and data.test_fraction."""

from collections import Counter
from pathlib import Path

import pytest

from detdistill.data import Data
from detdistill.errors import UserError
from detdistill.recipe import DataConfig

from .builders import PICTURE, note, opened, voc, write

COUNT = 100


def objects(number: int) -> list[tuple]:
    """The objects of image `number`: every image has a cell, each third a plate, each twentieth a worm."""
    names = ["cell"] + ["plate"] * (number % 3 == 0) + ["worm"] * (number % 20 == 0)
    return [(name, 1, 1, 10 + place, 10) for place, name in enumerate(names)]


def files(folder: str = "", count: int = COUNT) -> dict:
    """A data set without splits."""
    made = {}
    for number in range(count):
        made |= {f"{folder}{number}.ppm": PICTURE, f"{folder}{number}.xml": voc(*objects(number))}
    return made


def names(data: Data) -> dict[str, set[str]]:
    return {name: {record.name for record in split.records} for name, split in data.splits.items()}


def shares(data: Data) -> dict[str, Counter]:
    """The images of each class, per split."""
    counts = {}
    for name, split in data.splits.items():
        counts[name] = Counter(data.classes[label] for record in split.records for label in set(record.labels.tolist()))
    return counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("set"), files())


def test_data_without_splits_get_three_with_the_same_share_of_each_class(folder: Path) -> None:
    data = opened(folder)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 70, "val": 10, "test": 20}
    assert shares(data) == {
        "train": {"cell": 70, "plate": 24, "worm": 3},
        "val": {"cell": 10, "plate": 3, "worm": 1},
        "test": {"cell": 20, "plate": 7, "worm": 1},
    }
    assert note(data, "the data set has no splits") == (
        "the data set has no splits: train 70, val 10, test 20 of 100 images, chosen by their names, with equal shares "
        "of each class (--data.val-fraction, --data.test-fraction)"
    )
    assert data.divided is not None
    assert {name: set(images) for name, images in data.divided.items()} == names(data)


def test_the_splits_depend_on_the_names_alone(folder: Path, tmp_path: Path) -> None:
    before = names(opened(folder))
    assert names(opened(write(tmp_path, files("photos/new/")))) == before
    extended = names(
        opened(write(tmp_path, {"photos/new/x.ppm": PICTURE, "photos/new/x.xml": voc(("plate", 1, 1, 5, 5))}))
    )
    moved = {name for split, images in before.items() for name in images if name not in extended[split]}
    assert len(moved) <= 4


def test_fractions_of_the_users_own(folder: Path) -> None:
    data = opened(folder, val_fraction=0, test_fraction=0.5)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 50, "test": 50}
    assert {name: len(split) for name, split in opened(folder, test_fraction=1).splits.items()} == {"test": 100}
    assert {name: len(split) for name, split in opened(folder, test_fraction=0, val_fraction=0).splits.items()} == {
        "train": 100
    }
    with pytest.raises(
        UserError, match=r"data.val_fraction and data.test_fraction are more than 1 together; lower one"
    ):
        opened(folder, val_fraction=0.6, test_fraction=0.6)


def test_a_class_of_two_images_is_in_training_and_test(tmp_path: Path) -> None:
    made = files("", 20) | {f"{number}.xml": voc(("rare", 1, 1, 9, 9), ("cell", 1, 1, 9, 9)) for number in (4, 5)}
    counts = shares(opened(write(tmp_path, made)))
    assert sum(part["rare"] for part in counts.values()) == 2
    assert counts["train"]["rare"] == 1


def test_splits_of_the_data_stay_unless_a_fraction_is_set(tmp_path: Path) -> None:
    path = write(tmp_path, files("train/", 40))
    data = opened(path)
    assert names(data).keys() == {"train"}
    assert data.divided is None
    message = "neither a test nor a val split; choose one of train with --data.eval-split, or hold out a part of the "
    with pytest.raises(UserError, match=message):
        data.evaluation_split(DataConfig())
    data = opened(path, test_fraction=0.25)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "test": 10}
    assert note(data, "test taken from train: train 30, test 10 of 40 images")
    write(tmp_path, {"valid/x.ppm": PICTURE, "valid/x.xml": voc(*objects(0))})
    data = opened(path, test_fraction=0.25)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "test": 10, "valid": 1}
    with pytest.raises(UserError, match=r"data.val_fraction is 0.1, but the data set has a split 'valid'; leave out"):
        opened(path, val_fraction=0.1)


def test_a_single_list_of_another_name_is_divided_unless_it_is_named(tmp_path: Path) -> None:
    made = {**files("", 10), "ImageSets/Main/all.txt": "\n".join(map(str, range(10)))}
    made = {
        name if "/" in name else f"{'Annotations' if 'xml' in name else 'JPEGImages'}/{name}": content
        for name, content in made.items()
    }
    path = write(tmp_path, made)
    assert names(opened(path)).keys() == {"train", "val", "test"}
    assert names(opened(path, train_split="all", eval_split="all")).keys() == {"all"}
