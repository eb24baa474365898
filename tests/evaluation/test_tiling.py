"""Tiles of a large picture, and the boxes of all tiles as those of the picture."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detdistill.evaluation import merge_windows, tile_windows
from detdistill.types import Detections


def found(*rows: tuple[list[float], float, int]) -> Detections:
    """Detections from (box, score, label)."""
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]).long())


def merged(*parts: Detections) -> list[tuple[list[float], float, int]]:
    """The boxes of a picture of 180 x 100 pixels in tiles of 100: the whole, the left and the right tile."""
    windows = [(0, 0, 180, 100), (0, 0, 100, 100), (80, 0, 180, 100)]
    assert tile_windows((100, 180), 100) == windows
    result = merge_windows(parts, windows, (100, 180))
    rows = zip(result.boxes.tolist(), result.scores.tolist(), result.labels.tolist(), strict=True)
    return [([round(side, 3) for side in box], round(score, 3), label) for box, score, label in rows]


@given(st.integers(1, 900), st.integers(1, 900), st.integers(32, 300))
def test_tiles_cover_the_picture_and_share_a_fifth(height: int, width: int, tile: int) -> None:
    whole, *tiles = tile_windows((height, width), tile)
    assert whole == (0, 0, width, height)
    assert bool(tiles) == (max(height, width) > tile)
    for axis, length in ((0, width), (1, height)):
        spans = sorted({(window[axis], window[axis + 2]) for window in tiles})
        for start, end in spans:
            assert start >= 0 and end <= length and end - start == min(tile, length)
        if spans:
            assert (spans[0][0], spans[-1][1]) == (0, length)
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= round(0.2 * tile) - 1  # rounded starts


def test_boxes_come_back_in_pixels_of_the_picture_best_first() -> None:
    left, right = found(([10, 10, 40, 40], 0.5, 0)), found(([50, 20, 90, 60], 0.9, 1))
    assert merged(found(), left, right) == [([130, 20, 170, 60], 0.9, 1), ([10, 10, 40, 40], 0.5, 0)]


def test_an_object_in_several_windows_is_found_once() -> None:
    whole = found(([82, 30, 97, 50], 0.4, 0))
    left, right = found(([82, 31, 97, 50], 0.7, 0)), found(([2, 30, 17, 51], 0.6, 0))
    assert merged(whole, left, right) == [([82, 31, 97, 50], 0.7, 0)]
    # Boxes of different classes do not suppress each other.
    assert len(merged(whole, found(([82, 31, 97, 50], 0.7, 1)), right)) == 2


def test_a_piece_of_an_object_that_is_found_whole_is_dropped() -> None:
    piece, whole = ([85, 30, 100, 50], 0.8, 0), ([5, 30, 60, 50], 0.5, 0)  # IoU of 0.27
    assert merged(found(), found(piece), found(whole)) == [([85, 30, 140, 50], 0.5, 0)]
    # Another class does not show the same object, and a box of less than half the score is too uncertain.
    for box, score, label in (([5, 30, 60, 50], 0.5, 1), ([5, 30, 60, 50], 0.39, 0)):
        assert len(merged(found(), found(piece), found((box, score, label)))) == 2


def test_a_piece_that_nothing_else_shows_stays() -> None:
    assert merged(found(), found(([60, 30, 100, 50], 0.8, 0)), found()) == [([60, 30, 100, 50], 0.8, 0)]


@pytest.mark.parametrize("box", [[0, 30, 30, 50], [60, 0, 99, 20], [60, 70, 90, 100]])
def test_a_box_at_the_border_of_the_picture_is_not_cut(box: list[float]) -> None:
    inside = ([box[0] + 1, box[1] + 1, box[2] - 12, box[3] - 12], 0.7, 0)  # covers no half of it
    covering = ([max(box[0] - 30, 0), max(box[1] - 30, 0), box[2] + 30, min(box[3] + 30, 100)], 0.9, 0)
    rows = merged(found(covering), found((box, 0.8, 0), inside), found())
    is_cut = box[2] >= 99
    assert ((box, 0.8, 0) in rows) == (not is_cut)


def test_nothing_found() -> None:
    assert merged(found(), found(), found()) == []
