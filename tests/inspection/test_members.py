"""The images and boxes of a data set as arrays, and the splits that are compared."""

import pytest

from detdistill.errors import UserError
from detdistill.inspection.members import members, roles, separate, sums
from detdistill.recipe import DataConfig

from .made import CLASSES, data_of, record


def test_boxes_know_their_image_and_crowds_are_left_out() -> None:
    one = record("one.png", [(0, 0, 0, 10, 20), (1, 5, 5, 9, 9)], crowds=[(0, 0, 0, 99, 99)])
    empty, two = record("empty.png"), record("two.png", [(1, 1, 2.25, 3, 4)])
    flat = members(data_of({"train": [one, empty], "test": [two]}).splits, CLASSES)
    assert flat.image.tolist() == [0, 0, 2]
    assert flat.labels.tolist() == [0, 1, 1]
    assert flat.sides.tolist() == [[10, 20], [4, 4], [2, 1.75]]
    assert flat.areas.tolist() == [200, 16, 3.5]
    assert flat.describe(2) == "two.png (test): dog (1, 2.2, 3, 4)"


def test_a_record_in_two_splits_is_counted_once() -> None:
    one, two = record("one.png", [(0, 0, 0, 9, 9)]), record("two.png", [(0, 0, 0, 9, 9)])
    flat = members(data_of({"train": [one], "trainval": [one, two]}).splits, CLASSES)
    assert flat.splits == ("train", "trainval")
    assert len(flat.corners) == 2


def test_a_split_that_consists_of_others_is_not_compared_with_them() -> None:
    one, two, three = record("one.png"), record("two.png"), record("three.png")
    data = data_of({"test": [three], "train": [one], "trainval": [one, two], "val": [two]})
    assert sums(data) == {"trainval": ("train", "val")}
    assert list(separate(data, ("train", "test"))) == ["train", "test", "val"]
    assert list(separate(data, ("trainval", "test"))) == ["trainval", "test"]


def test_a_test_split_inside_the_training_split_is_compared() -> None:
    one, two = record("one.png"), record("two.png")
    assert sums(data_of({"train": [one, two], "test": [two]})) == {}
    assert sums(data_of({"train": [one, two], "test": [one, two]})) == {}


def test_the_roles_of_the_splits() -> None:
    data = data_of({"train": [record("a")], "valid": [record("b")], "mine": [record("c")]})
    assert roles(data, DataConfig()) == ("train", "valid")
    assert roles(data, DataConfig(train_split="mine", eval_split="val")) == ("mine", "valid")
    assert roles(data_of({"mine": [record("a")]}), DataConfig()) == ("train", None)
    cards = data_of({"cards_train": [record("a")], "cards_test": [record("b")], "validation": [record("c")]})
    assert roles(cards, DataConfig()) == ("cards_train", "validation")
    with pytest.raises(UserError, match="has no split 'tset'"):
        roles(data, DataConfig(eval_split="tset"))
