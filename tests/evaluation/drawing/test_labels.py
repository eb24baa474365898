"""place_labels: where a label goes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detdistill.evaluation.drawing.labels import Memory, Rectangle, overlaps, place_labels

PICTURE = (400.0, 300.0)
SIZE = (60.0, 15.0)


def placed(*boxes: list[float]) -> list[Rectangle | None]:
    """The places of one label of SIZE per box."""
    found = place_labels(np.array(boxes, dtype=float), [[SIZE]] * len(boxes), PICTURE)
    return [None if each is None else each[1] for each in found]


@pytest.mark.parametrize(
    ("box", "corner"),
    [
        ([100, 100, 200, 200], (100, 85)),  # above, at the left
        ([100, 0, 200, 200], (100, 200)),  # at the top border: below
        ([380, 100, 400, 200], (340, 85)),  # at the right border: moved to the left
        ([100, 0, 200, 300], (200, 0)),  # as high as the picture: beside it
        ([0, 0, 400, 300], (0, 0)),  # the whole picture: inside
    ],
)
def test_the_usual_place_and_what_borders_change(box: list[float], corner: tuple[float, float]) -> None:
    assert placed(box) == [(*corner, corner[0] + SIZE[0], corner[1] + SIZE[1])]


def test_a_label_avoids_another_object_and_another_label() -> None:
    above, box = [90, 60, 210, 99], [100, 100, 200, 200]
    (label, _) = placed(box, above)
    assert label == (100, 200, 160, 215)
    first, second = placed([100, 100, 200, 200], [100, 100, 200, 200])
    assert first is not None and second is not None
    assert overlaps(np.array([first]), np.array([second])).sum() == 0


def test_a_label_is_shortened_or_left_out_where_there_is_no_place() -> None:
    crowd = np.array([[x, y, x + 30, y + 16] for y in range(0, 300, 16) for x in range(0, 400, 30)], dtype=float)
    found = place_labels(crowd, [[SIZE, (10.0, 8.0)]] * len(crowd), PICTURE)
    assert {each[0] for each in found if each is not None} == {1}
    wide = place_labels(crowd, [[(500.0, 15.0)]] * len(crowd), PICTURE)
    assert set(wide) == {None}


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=20))
def test_labels_are_inside_and_hide_no_label_and_no_object(shares: list[tuple[float, ...]]) -> None:
    boxes = np.array(
        [[min(a, c) * 400, min(b, d) * 300, max(a, c) * 400, max(b, d) * 300] for a, b, c, d in shares], dtype=float
    )
    found = [each[1] for each in place_labels(boxes, [[SIZE]] * len(boxes), PICTURE) if each is not None]
    for number, (left, top, right, bottom) in enumerate(found):
        assert left >= 0 and top >= 0 and right <= 400 + 1e-9 and bottom <= 300 + 1e-9
        on_earlier = overlaps(np.array([found[number]]), np.array(found[:number]).reshape(-1, 4)).sum()
        assert on_earlier <= 0.05 * SIZE[0] * SIZE[1] + 1e-6
        areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1)
        assert (overlaps(np.array([found[number]]), boxes)[0] / areas).max() <= 0.5 + 1e-6


def test_a_label_keeps_its_place_in_a_video_while_it_is_good() -> None:
    memory = Memory()

    def frame(*boxes: list[float]) -> list[int]:
        corners = np.array(boxes, dtype=float).reshape(-1, 4)
        places = place_labels(corners, [[SIZE]] * len(boxes), PICTURE, memory.recall([0] * len(boxes), corners))
        memory.keep([0] * len(boxes), corners, places)
        return [-1 if place is None else place.position for place in places]

    box, above = [100.0, 100, 200, 200], [90.0, 60, 210, 99]
    assert frame(box) == [0]
    assert frame(box, above)[0] == 2  # below, because another object is above
    assert frame(box) == [2]  # still good
    assert frame([box[0] + 4, *box[1:]]) == [2]
    assert frame([300.0, 100, 380, 200]) == [0]  # another object
    assert frame() == [] and frame(box) == [0]
