"""Transforms by hand, and properties of augmented boxes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from detdistill.data.transforms import (
    augment,
    change_colors,
    drop_small_boxes,
    fitted_size,
    make_sample,
    resize_image,
    seeded_generator,
)
from detdistill.recipe import DataConfig

SIDES = st.integers(1, 300)


def black_sample(height, width, boxes, size=None):
    """A black image of this height and width with boxes in its pixels, resized to `size`. The labels are 0, 1, ..."""
    image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
    resized = resize_image(image, size) if size else image
    box_tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return make_sample(resized, box_tensor, torch.arange(len(boxes)), (height, width))


def test_fitted_size_by_hand():
    assert fitted_size((480, 640), (160, 160)) == (120, 160)
    assert fitted_size((640, 480), (160, 160)) == (160, 120)
    assert fitted_size((10, 20), (128, 160)) == (80, 160)  # smaller images are enlarged
    assert fitted_size((480, 640), (160, 160), 0.5) == (60, 80)
    assert fitted_size((1, 1000), (100, 100)) == (1, 100)


@given(SIDES, SIDES, SIDES, SIDES)
def test_a_fitted_image_fills_one_side_and_keeps_its_ratio(height, width, rows, columns):
    fitted_height, fitted_width = fitted_size((height, width), (rows, columns))
    assert fitted_height <= rows
    assert fitted_width <= columns
    assert fitted_height == rows or fitted_width == columns
    assert abs(fitted_height * width - fitted_width * height) <= max(height, width)  # each side is rounded


def test_resize_and_flip_boxes_by_hand():
    half = black_sample(100, 200, [[20, 10, 60, 50]], size=(50, 100))
    assert half.boxes.tolist() == [[10, 5, 30, 25]]
    flipped = augment(half, DataConfig(flip=1.0), seeded_generator(0))
    assert flipped.boxes.tolist() == [[70, 5, 90, 25]]
    assert flipped.labels.tolist() == [0]


def test_a_flip_moves_pixels_and_boxes_together():
    """A white rectangle stays exactly inside its box."""
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 5:15, 10:30] = 255
    sample = make_sample(tv_tensors.Image(image), torch.tensor([[10.0, 5, 30, 15]]), torch.tensor([0]), (40, 60))
    flipped = augment(sample, DataConfig(flip=1.0), seeded_generator(0))
    left, top, right, bottom = flipped.boxes[0].int().tolist()
    assert (left, right) == (30, 50)
    assert flipped.image[:, top:bottom, left:right].eq(255).all()
    assert flipped.image.eq(255).sum() == 3 * 200


boxes = st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.05, 1), st.floats(0.05, 1))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.lists(boxes, max_size=4),
    st.integers(0, 2**31),
    st.floats(0.3, 1),
    st.floats(1, 2.5),
)
def test_augmented_boxes_stay_in_the_image_and_grow_by_at_most_the_scale(height, width, relative, seed, low, high):
    corners = [[x * width, y * height, min(x + w, 1) * width, min(y + h, 1) * height] for x, y, w, h in relative]
    config = DataConfig(image_size=(64, 80), scale=(low, high), flip=0.5)
    size = fitted_size((height, width), (64, 80)) if low == high == 1 else None  # as the loader does without scaling
    sample = augment(black_sample(height, width, corners, size), config, seeded_generator(seed))
    sample = drop_small_boxes(sample)
    rows, columns = sample.image.shape[-2:]
    assert rows <= 64
    assert columns <= 80
    assert len(sample.boxes) == len(sample.labels)
    for box, label in zip(sample.boxes, sample.labels.tolist(), strict=True):
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= columns
        assert box[3] <= rows
        assert (box[2:] - box[:2]).min() >= 1
        x, y, right, bottom = corners[label]
        factor = max(64 / height, 80 / width) * high * 1.1  # the largest possible enlargement, with rounding
        assert (box[2] - box[0]) <= (right - x) * factor + 1
        assert (box[3] - box[1]) <= (bottom - y) * factor + 1


def test_a_crop_keeps_the_boxes_whose_center_is_inside():
    corners = [[0.0, 0, 10, 10], [45, 45, 55, 55], [90, 90, 100, 100]]
    for seed in range(30):
        config = DataConfig(image_size=100, scale=(2.0, 2.0), flip=0.0)
        cropped = augment(black_sample(100, 100, corners), config, seeded_generator(seed))
        assert tuple(cropped.image.shape[-2:]) == (100, 100)
        labels = set(cropped.labels.tolist())
        assert labels <= {0, 1, 2}
        assert not {0, 2} <= labels  # a crop of 100 x 100 can't have two opposite corners of a 200 x 200 image


def test_a_smaller_scale_gives_a_smaller_image():
    config = DataConfig(image_size=100, scale=(0.5, 0.5), flip=0.0)
    smaller = augment(black_sample(100, 100, [[0, 0, 50, 100]]), config, seeded_generator(0))
    assert tuple(smaller.image.shape[-2:]) == (50, 50)
    assert smaller.boxes.tolist() == [[0, 0, 25, 50]]


def test_boxes_under_a_pixel_are_dropped():
    sample = drop_small_boxes(black_sample(100, 100, [[0, 0, 9, 50], [0, 0, 10, 50]], size=(10, 10)))
    assert sample.labels.tolist() == [1]


def test_color_changes_depend_on_the_generator_only():
    image = tv_tensors.Image(
        torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    state = torch.random.get_rng_state()
    changed, repeated, other_seed = [change_colors(image, seeded_generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(changed, repeated)
    assert not torch.equal(changed, other_seed)
    assert not torch.equal(changed, image)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("parts", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1), (1, 0, "order")])
def test_every_part_changes_the_seed(parts):
    assert seeded_generator(*parts).initial_seed() != seeded_generator(0, 0, 0).initial_seed()
    assert seeded_generator(*parts).initial_seed() == seeded_generator(*parts).initial_seed()
