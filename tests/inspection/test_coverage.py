"""Boxes without a positive cell."""

import numpy as np
import pytest

from detdistill.inspection import coverage
from detdistill.inspection.coverage import ASSIGNERS, HEADS, resize_factors, uncovered

from .made import Box, members_of, record


def count(boxes: list[Box], assigner: str, strides: tuple[int, ...] = (8,)) -> int:
    """How many boxes of an image of 64 x 128 pixels get no positive cell."""
    members = members_of(record("a.png", boxes, (64, 128)))
    counts, looked_at = uncovered(members, members.sizes, strides, [assigner])
    assert looked_at == len(boxes)
    return counts[assigner]


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_a_box_between_the_points_of_the_grid_gets_no_cell(assigner: str) -> None:
    assert count([(0, 9, 9, 15, 15)], assigner) == 1  # the points are at multiples of 8
    assert count([(0, 9, 9, 15, 15)], assigner, (4,)) == 0  # (12, 12) is inside
    assert count([(0, 9, 9, 18, 18)], assigner) == 0  # (16, 16) is inside


def test_of_two_equal_boxes_only_one_gets_cells() -> None:
    assert count([(0, 9, 9, 40, 40), (1, 9, 9, 40, 40)], "atss") == 1


def test_a_box_beyond_the_range_of_its_only_points_gets_no_cell() -> None:
    # Near the center of this box, the farthest side is about 50 pixels away. If there is a coarser level, FCOS takes
    # only points of stride 4 with less than 32. All points of stride 32 are above or below the box.
    box: list[Box] = [(0, 1, 1, 101, 5)]
    assert count(box, "fcos", (4,)) == 0
    assert count(box, "fcos", (4, 32)) == 1


def test_boxes_below_a_pixel_are_not_counted() -> None:
    assert count([(0, 9, 9, 9.5, 15)], "fcos") == 0


def test_boxes_are_resized_with_their_image() -> None:
    members = members_of(record("a.png", [(0, 18, 9, 30, 15)], (64, 128)))  # 6 x 6 between the points at 64 x 64
    assert resize_factors(members, np.array([[64.0, 64.0]])).tolist() == [[0.5, 1.0]]
    assert uncovered(members, np.array([[64.0, 64.0]]), (8,), ["fcos"]) == ({"fcos": 1}, 1)
    assert uncovered(members, np.array([[64.0, 128.0]]), (8,), ["fcos"]) == (
        {"fcos": 1},
        1,
    )  # (24, 8) is on no inner row


def test_a_large_data_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "SAMPLED", 3)
    records = [record(f"{index}.png", [(0, 9, 9, 15, 15)] * 2, (64, 64)) for index in range(9)]
    assert uncovered(members_of(*records), np.full((9, 2), 64.0), (8,), ["fcos"]) == ({"fcos": 6}, 6)


def test_a_data_set_without_boxes() -> None:
    assert uncovered(members_of(record("a.png")), np.array([[64.0, 64.0]]), (8,), ["atss"]) == ({"atss": 0}, 0)


def test_the_heads_are_those_of_the_registry() -> None:
    from detdistill.detectors.registry import names

    assert set(HEADS) < set(names("dense"))
    assert set(HEADS.values()) == set(ASSIGNERS)
