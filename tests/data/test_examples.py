"""Single examples: what the cache keeps, and what each probability joins."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from detdistill.data import open_data
from detdistill.data.examples import Examples
from detdistill.data.records import Objects, Record
from detdistill.recipe import DataConfig


@dataclass(frozen=True)
class Painted:
    """A black image of 80 x 100 pixels with a rectangle of one gray value."""

    value: int
    box: tuple[int, int, int, int]

    def open(self) -> Image.Image:
        pixels = np.zeros((80, 100, 3), dtype=np.uint8)
        left, top, right, bottom = self.box
        pixels[top:bottom, left:right] = self.value
        return Image.fromarray(pixels)

    def record(self, index: int) -> Record:
        objects = Objects.empty()
        objects.add([float(side) for side in self.box], index)
        return objects.to_record(index, f"{index}.png", (80, 100), self)


@pytest.fixture(scope="module")
def records():
    return open_data(DataConfig(path="shapes:12")).split("train").records


def test_the_cache_stays_within_its_budget(records):
    examples = Examples(records, DataConfig(image_size=64), 0, budget=3 * 64 * 51 * 5)  # five of the twelve images
    first = [examples[(0, 0, index)].image.clone() for index in range(12)]
    assert len(examples.cache) == 5
    assert all(torch.equal(examples[(0, 0, index)].image, image) for index, image in enumerate(first))


@pytest.mark.parametrize("changes", [{"scale": (0.5, 1.5)}, {"multiscale": (0.5, 1.5)}])
def test_the_cache_keeps_the_pixels_of_the_file_if_the_size_is_random(records, changes):
    examples = Examples(records, DataConfig(image_size=32, **changes), 0)
    examples[(0, 0, 0)]
    assert examples.cache[0].shape[-2:] == (records[0].height, records[0].width)


def test_a_mosaic_joins_four_images_and_mixup_one_more(records):
    for mosaic, mixup, count in ((0, 0, 1), (1, 0, 4), (0, 1, 2), (1, 1, 5)):
        examples = Examples(records, DataConfig(image_size=64, mosaic=mosaic, mixup=mixup), 0)
        example = examples[(3, 1, 5)]
        names = example.name.split("+")
        assert len(names) == count
        assert names[0] == records[5].name
        assert (example.id, example.original) == (records[5].id, (records[5].height, records[5].width))
        assert mosaic == 0 or example.image.shape == (3, 64, 64)


def test_the_images_that_are_joined_depend_on_epoch_and_image_and_not_on_the_step(records):
    examples = Examples(records, DataConfig(image_size=64, mosaic=1.0), 0)
    first, other_step, other_epoch = [examples[key] for key in ((0, 0, 5), (0, 2, 5), (1, 0, 5))]
    assert first.name == other_step.name != other_epoch.name
    assert torch.equal(first.image, other_step.image)


def test_about_the_given_share_of_the_images_is_joined(records):
    examples = Examples(records, DataConfig(image_size=32, mosaic=0.25), 0)
    joined = sum("+" in examples[(epoch, 0, index)].name for epoch in range(25) for index in range(12))
    assert 45 <= joined <= 105  # 300 draws: 75, and four standard deviations of 7.5


def test_without_mosaic_and_mixup_the_example_is_that_of_a_plain_config(records):
    config = DataConfig(image_size=64, scale=(0.6, 1.6), photometric=True)
    closed = Examples(records, config.model_copy(update={"mosaic": 1.0, "mixup": 1.0}), 0, mixed_epochs=0)
    plain = Examples(records, config, 0)
    for index in range(4):
        assert torch.equal(closed[(2, 0, index)].image, plain[(2, 0, index)].image)
        assert torch.equal(closed[(2, 0, index)].boxes, plain[(2, 0, index)].boxes)


def test_scaled_cropped_and_joined_objects_stay_in_their_boxes():
    """A pixel is bright where a box says so. Resizing blurs the outermost pixel. Mixup is left out: it adds values."""
    boxes = [(10, 20, 50, 60), (60, 5, 95, 75), (0, 0, 100, 30), (40, 40, 70, 70), (5, 50, 45, 78), (20, 10, 90, 60)]
    records = [Painted(255, box).record(index) for index, box in enumerate(boxes)]
    config = DataConfig(image_size=96, scale=(0.5, 1.5), mosaic=0.5, multiscale=(0.7, 1.4))
    examples = Examples(records, config, 0)
    count = 0
    for epoch in range(30):
        for index in range(len(records)):
            example = examples[(epoch, index, index)]
            expected = torch.zeros(example.image.shape[-2:])
            certain = torch.zeros_like(expected)
            for left, top, right, bottom in example.boxes.tolist():
                expected[int(top) : -int(-bottom // 1), int(left) : -int(-right // 1)] = 1
                certain[int(top) + 2 : int(bottom) - 1, int(left) + 2 : int(right) - 1] = 1
                count += 1
            bright = example.image[0] > 200
            assert bright[certain.bool()].all()
            # An object whose center was cut off leaves bright pixels without a box, at the edge of a part only.
            if len(example.boxes) == example.name.count("+") + 1:
                assert not bright[~expected.bool()].any()
    assert count > 200
