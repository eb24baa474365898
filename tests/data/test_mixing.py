"""Mosaic and mixup: by hand, and as a property that pixels and boxes move together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from detdistill.data.mixing import FILL, Mix, blend_ratio, mixup, mosaic
from detdistill.data.transforms import Sample, drop_small_boxes, make_sample, seeded_generator
from detdistill.recipe import DataConfig

CANVAS = (40, 60)


def flat_sample(value: int, size: tuple[int, int], boxes: list[list[float]]) -> Sample:
    """An image of one gray value. Each box has the label `value`."""
    image = tv_tensors.Image(torch.full((3, *size), value, dtype=torch.uint8))
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return make_sample(image, corners, torch.full((len(boxes),), value), size)


def painted_sample(value: int, size: tuple[int, int], box: tuple[int, int, int, int]) -> Sample:
    """A black image with one box, in which every pixel has `value`. The label of the box is `value`."""
    sample = flat_sample(0, size, [list(box)])
    left, top, right, bottom = box
    sample.image[:, top:bottom, left:right] = value
    return Sample(sample.image, sample.boxes, torch.tensor([value]))


# Mosaic.


def test_the_four_images_meet_at_one_point_in_reading_order() -> None:
    tiles = [flat_sample(value, CANVAS, []) for value in (10, 20, 30, 40)]
    for seed in range(20):
        image = mosaic(tiles, CANVAS, seeded_generator(seed)).image
        assert image.shape == (3, *CANVAS)
        row, column = int((image[0, :, 0] == 10).sum()), int((image[0, 0] == 10).sum())
        assert 10 <= row <= 30
        assert 15 <= column <= 45
        for value, rows, columns in (
            (10, slice(row), slice(column)),
            (20, slice(row), slice(column, None)),
            (30, slice(row, None), slice(column)),
            (40, slice(row, None), slice(column, None)),
        ):
            assert image[:, rows, columns].eq(value).all()


def test_small_images_touch_the_point_and_the_rest_is_gray() -> None:
    tiles = [flat_sample(value, (6, 8), [[0, 0, 8, 6]]) for value in (10, 20, 30, 40)]
    sample = mosaic(tiles, CANVAS, seeded_generator(3))
    assert sample.labels.tolist() == [10, 20, 30, 40]
    first = sample.boxes[0].tolist()
    column, row = first[2], first[3]
    assert sample.boxes.tolist() == [
        [column - 8, row - 6, column, row],
        [column, row - 6, column + 8, row],
        [column - 8, row, column, row + 6],
        [column, row, column + 8, row + 6],
    ]
    assert sample.image.eq(FILL).sum() == 3 * (40 * 60 - 4 * 6 * 8)
    left, top, right, bottom = [int(side) for side in sample.boxes[3]]
    assert sample.image[:, top:bottom, left:right].eq(40).all()


def test_a_box_whose_center_is_cut_off_is_dropped() -> None:
    corner = flat_sample(10, (80, 120), [[0, 0, 4, 4], [116, 76, 120, 80]])
    for seed in range(20):
        sample = mosaic([corner] * 4, CANVAS, seeded_generator(seed))
        # A part has at most 30 x 45 of 80 x 120 pixels, so at most one of the two corners is in it.
        assert len(sample.boxes) <= 4
        assert (sample.boxes[:, 2:] - sample.boxes[:, :2]).eq(4).all()


sides = st.integers(1, 90)


@st.composite
def painted(draw, value: int) -> Sample:
    """A painted sample of a random size with a random box of whole pixels."""
    height, width = draw(sides), draw(sides)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return painted_sample(value, (height, width), (left, top, right, bottom))


@settings(deadline=None, max_examples=80)
@given(st.tuples(*(painted(value) for value in (50, 100, 150, 200))), st.integers(0, 2**31), sides, sides)
def test_the_pixels_of_an_object_are_exactly_those_of_its_box(
    tiles: tuple[Sample, ...], seed: int, height: int, width: int
) -> None:
    sample = drop_small_boxes(mosaic(tiles, (height, width), seeded_generator(seed)))
    assert sample.image.shape == (3, height, width)
    for box, label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
        left, top, right, bottom = [int(side) for side in box]
        assert box == [left, top, right, bottom]
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        inside = sample.image[:, top:bottom, left:right]
        assert inside.eq(label).all()
        assert sample.image.eq(label).sum() == inside.numel()  # no pixel of the object lies outside its box


# Mixup.


def test_mixup_by_hand() -> None:
    first, second = flat_sample(200, (2, 4), [[0, 0, 2, 2]]), flat_sample(100, (3, 2), [[1, 1, 2, 3]])
    sample = mixup(first, second, 0.75)
    assert sample.boxes.tolist() == [[0, 0, 2, 2], [1, 1, 2, 3]]
    assert sample.labels.tolist() == [200, 100]
    both, only_first, only_second, none = 175, 178.5, 110.5, FILL  # 0.75 a + 0.25 b, with 114 where an image ends
    expected = [[both] * 2 + [only_first] * 2] * 2 + [[only_second] * 2 + [none] * 2]
    assert torch.equal(sample.image.float(), torch.tensor(expected).round().expand(3, 3, 4))


@settings(deadline=None, max_examples=40)
@given(painted(100), painted(200), st.floats(0.2, 0.8))
def test_mixup_keeps_the_place_of_every_object(first: Sample, second: Sample, ratio: float) -> None:
    sample = mixup(first, second, ratio)
    assert sample.boxes.tolist() == first.boxes.tolist() + second.boxes.tolist()
    other = mixup(Sample(torch.zeros_like(first.image), first.boxes, first.labels), second, ratio)
    left, top, right, bottom = [int(side) for side in first.boxes[0]]
    changed = (sample.image != other.image)[0].nonzero()
    assert changed.amin(0).tolist() == [top, left]
    assert (changed.amax(0) + 1).tolist() == [bottom, right]


# Random numbers.


def test_the_ratio_has_the_moments_of_its_distribution() -> None:
    ratios = torch.tensor([blend_ratio(seeded_generator(seed)) for seed in range(2000)])
    assert ratios.mean().item() == pytest.approx(0.5, abs=0.006)
    assert ratios.std().item() == pytest.approx((1 / (4 * 65)) ** 0.5, rel=0.06)  # a = b = 32


def test_the_choice_has_the_given_probabilities_and_its_images_are_uniform() -> None:
    config = DataConfig(mosaic=0.5, mixup=0.2)
    mixes = [Mix.draw(config, 5, seeded_generator(seed)) for seed in range(2000)]
    mosaics = [mix.tiles for mix in mixes if mix.tiles]
    assert len(mosaics) / 2000 == pytest.approx(0.5, abs=0.05)
    assert sum(mix.partner is not None for mix in mixes) / 2000 == pytest.approx(0.2, abs=0.04)
    assert {len(tiles) for tiles in mosaics} == {3}
    drawn = torch.tensor(mosaics).flatten().bincount()
    assert len(drawn) == 5
    assert (drawn / drawn.sum()).sub(0.2).abs().max() < 0.03


def test_nothing_is_drawn_from_the_global_random_state() -> None:
    state = torch.random.get_rng_state()
    Mix.draw(DataConfig(mosaic=0.5), 5, seeded_generator(0))
    mosaic([flat_sample(10, (6, 8), [])] * 4, CANVAS, seeded_generator(0))
    assert torch.equal(torch.random.get_rng_state(), state)
