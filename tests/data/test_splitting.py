"""Stratification, on records that have only names and classes."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detdistill.data.splitting import hold_out

FRACTIONS = {"val": 0.1, "test": 0.2}


def records(classes: list[list[int]], folder: str = "") -> list:
    return [
        SimpleNamespace(name=f"{number}.jpg", path=f"{folder}/{number}.jpg", class_indices=np.array(labels, dtype=int))
        for number, labels in enumerate(classes)
    ]


def images_of_classes(part: tuple) -> Counter:
    return Counter(label for record in part for label in set(record.class_indices.tolist()))


def test_a_long_tail_of_classes_keeps_its_shares() -> None:
    random = np.random.default_rng(0)
    frequencies = 0.9 / np.arange(1, 41)
    made = records([np.flatnonzero(random.uniform(size=40) < frequencies).tolist() for _ in range(2000)])
    parts = hold_out(made, FRACTIONS)
    total, test = images_of_classes(tuple(made)), images_of_classes(parts["test"])
    errors = [abs(test[label] - 0.2 * count) for label, count in total.items()]
    assert np.mean(errors) < 2.5  # a random choice gives 4 images
    assert abs(len(parts["test"]) - 400) < 20


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=60), st.randoms())
def test_every_image_is_in_one_part_whatever_the_order(classes: list[list[int]], random) -> None:
    made = records(classes)
    parts = hold_out(made, FRACTIONS)
    assert sorted(record.name for part in parts.values() for record in part) == sorted(record.name for record in made)
    moved = records(classes, "/elsewhere")
    random.shuffle(moved)
    again = hold_out(moved, FRACTIONS)
    names = [{name: {record.name for record in part} for name, part in each.items()} for each in (parts, again)]
    assert names[0] == names[1]
