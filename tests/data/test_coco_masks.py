"""Masks and polygons, compared with pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as reference

from detdistill.data.coco_masks import decode_counts, read_shape

masks = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1))


def runs(mask: np.ndarray) -> list[int]:
    """The lengths of the runs of zeros and ones by turns, down one column after the other, beginning with zeros."""
    pixels = [0, *mask.flatten(order="F").tolist()]
    ends = [index for index in range(1, len(pixels)) if pixels[index] != pixels[index - 1]]
    edges = [1, *ends, len(pixels)]
    return np.diff(edges).tolist()


@given(masks)
def test_masks_have_the_box_and_the_area_that_pycocotools_gives(mask):
    encoded = reference.encode(np.asfortranarray(mask))
    left, top, width, height = reference.toBbox(encoded).tolist()
    text = encoded["counts"].decode()
    assert decode_counts(text) == runs(mask)
    for counts in (text, runs(mask)):
        shape = read_shape({"size": list(mask.shape), "counts": counts})
        assert shape.area == mask.sum() == reference.area(encoded)
        assert shape.size == mask.shape
        if mask.any():
            assert shape.corners == (left, top, left + width, top + height)
        else:
            assert shape.corners == (0, 0, 0, 0)


def test_long_runs_are_decoded():
    mask = np.zeros((700, 900), dtype=np.uint8, order="F")
    mask[100:650, 300:800] = 1
    encoded = reference.encode(mask)
    assert decode_counts(encoded["counts"].decode()) == runs(mask)


@given(st.integers(0, 30), st.integers(0, 20), st.integers(1, 30), st.integers(1, 20))
def test_polygons_have_the_box_and_the_area_that_pycocotools_gives(left, top, width, height):
    right, bottom = left + width, top + height  # with whole corners the pixels fill the rectangle
    row = [left, top, right, top, right, bottom, left, bottom]
    shape = read_shape([row])
    (encoded,) = reference.frPyObjects([row], 41, 61)
    assert shape.corners == (left, top, right, bottom)
    assert reference.toBbox(encoded).tolist() == [left, top, width, height]
    assert shape.area == reference.area(encoded)


def test_the_area_of_polygons_worked_by_hand():
    triangle = [0, 0, 4, 0, 4, 3]  # 4 * 3 / 2, whatever its direction
    assert read_shape([triangle]).area == read_shape([[0, 0, 4, 3, 4, 0]]).area == 6
    assert read_shape([triangle, [10, 10, 12, 10, 12, 12, 10, 12]]).area == 6 + 4


@pytest.mark.parametrize("text", ["\x2f", "p", "é", "P", "PPPPPPPPPPPPPP1"])
def test_a_text_that_is_no_mask_is_refused(text):
    with pytest.raises(ValueError, match="has counts that"):
        decode_counts(text)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "is neither"),
        (3, "is neither"),
        ([[1, 2, 3, 4, 5, 6, 7]], "polygon of 7 numbers"),
        ([[1, 2, 3, 4, 5, "x"]], "not a finite number"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not a finite number"),
        ({"size": [0, 4], "counts": [1]}, r"has the size \[0, 4\]"),
        ({"counts": [1]}, "has the size None"),
        ({"size": [4, 4], "counts": [4, -1]}, "neither a list of numbers from 0"),
        ({"size": [4, 4]}, "neither a list of numbers from 0"),
        ({"size": [4, 4], "counts": [4, 13]}, "counts of 17 pixels, but the size 4 x 4"),
    ],
)
def test_a_segmentation_that_cannot_be_read_is_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        read_shape(segmentation)
