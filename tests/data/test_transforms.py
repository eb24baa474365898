import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from detdistill.data.transforms import augment, fitted, kept, recolored, resize_image, seeded, view
from detdistill.recipe import DataConfig

SIDES = st.integers(1, 300)


def shown(height, width, boxes, into=None):
    image = tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8))
    resized = resize_image(image, into) if into else image
    return view(
        resized, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(len(boxes)), (height, width)
    )


def test_fitted_by_hand():
    assert fitted((480, 640), (160, 160)) == (120, 160)
    assert fitted((640, 480), (160, 160)) == (160, 120)
    assert fitted((10, 20), (128, 160)) == (80, 160)  # smaller images grow
    assert fitted((480, 640), (160, 160), 0.5) == (60, 80)
    assert fitted((1, 1000), (100, 100)) == (1, 100)


@given(SIDES, SIDES, SIDES, SIDES)
def test_a_fitted_image_fills_one_side_and_keeps_its_ratio(height, width, rows, columns):
    high, wide = fitted((height, width), (rows, columns))
    assert high <= rows
    assert wide <= columns
    assert high == rows or wide == columns
    assert abs(high * width - wide * height) <= max(height, width)  # each side is rounded


def test_resize_and_flip_boxes_by_hand():
    half = shown(100, 200, [[20, 10, 60, 50]], into=(50, 100))
    assert half.boxes.tolist() == [[10, 5, 30, 25]]
    flipped = augment(half, DataConfig(flip=1.0), seeded(0))
    assert flipped.boxes.tolist() == [[70, 5, 90, 25]]
    assert flipped.labels.tolist() == [0]


def test_pixels_go_with_the_boxes():
    """A white rectangle stays exactly in its box through a flip."""
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 5:15, 10:30] = 255
    out = augment(
        view(tv_tensors.Image(image), torch.tensor([[10.0, 5, 30, 15]]), torch.tensor([0]), (40, 60)),
        DataConfig(flip=1.0),
        seeded(0),
    )
    left, top, right, bottom = out.boxes[0].int().tolist()
    assert (left, right) == (30, 50)
    assert out.image[:, top:bottom, left:right].eq(255).all()
    assert out.image.eq(255).sum() == 3 * 200


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
def test_augmented_boxes_stay_in_the_image_and_never_grow_in_share(height, width, found, seed, low, high):
    corners = [[x * width, y * height, min(x + w, 1) * width, min(y + h, 1) * height] for x, y, w, h in found]
    config = DataConfig(image_size=(64, 80), scale=(low, high), flip=0.5)
    into = fitted((height, width), (64, 80)) if low == high == 1 else None  # the loader fits what no scale will
    out = kept(augment(shown(height, width, corners, into), config, seeded(seed)))
    rows, columns = out.image.shape[-2:]
    assert rows <= 64
    assert columns <= 80
    assert len(out.boxes) == len(out.labels)
    for box, label in zip(out.boxes, out.labels.tolist(), strict=True):
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= columns
        assert box[3] <= rows
        assert (box[2:] - box[:2]).min() >= 1
        x, y, right, bottom = corners[label]
        size = max(64 / height, 80 / width) * high * 1.1  # the most that anything is enlarged, rounding included
        assert (box[2] - box[0]) <= (right - x) * size + 1
        assert (box[3] - box[1]) <= (bottom - y) * size + 1


def test_a_crop_keeps_the_boxes_whose_centre_stays():
    corners = [[0.0, 0, 10, 10], [45, 45, 55, 55], [90, 90, 100, 100]]
    for seed in range(30):
        out = augment(shown(100, 100, corners), DataConfig(image_size=100, scale=(2.0, 2.0), flip=0.0), seeded(seed))
        assert tuple(out.image.shape[-2:]) == (100, 100)
        assert set(out.labels.tolist()) <= {0, 1, 2}
        assert not {0, 2} <= set(
            out.labels.tolist()
        )  # the corners of a 200 x 200 image are never in one crop of 100 x 100


def test_a_smaller_scale_gives_a_smaller_image():
    out = augment(shown(100, 100, [[0, 0, 50, 100]]), DataConfig(image_size=100, scale=(0.5, 0.5), flip=0.0), seeded(0))
    assert tuple(out.image.shape[-2:]) == (50, 50)
    assert out.boxes.tolist() == [[0, 0, 25, 50]]


def test_boxes_under_a_pixel_are_dropped():
    out = kept(shown(100, 100, [[0, 0, 9, 50], [0, 0, 10, 50]], into=(10, 10)))
    assert out.labels.tolist() == [1]


def test_colours_change_and_depend_on_the_generator_alone():
    image = tv_tensors.Image(
        torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    state = torch.random.get_rng_state()
    one, again, other = (recolored(image, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, image)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("parts", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1), (1, 0, "order")])
def test_seeds_differ_by_every_part(parts):
    assert seeded(*parts).initial_seed() != seeded(0, 0, 0).initial_seed()
    assert seeded(*parts).initial_seed() == seeded(*parts).initial_seed()
