"""Sizes of images and boxes, by hand."""

import numpy as np
import pytest

from detdistill.inspection.sizes import ClassSizes, Level, box_sizes, image_sizes, padding_share, size_findings
from detdistill.recipe import DataConfig

from .made import Box, members_of, record


def test_sizes_of_images() -> None:
    members = members_of(record("a", size=(100, 200)), record("b", size=(100, 200)), record("c", size=(300, 200)))
    sizes = image_sizes(members, DataConfig(image_size=(100, 100)), batch_size=8)
    assert sizes.height == (100, 100, 300)
    assert sizes.aspect == pytest.approx((2 / 3, 2, 2))
    assert sizes.scale == pytest.approx((1 / 3, 0.5, 0.5), abs=0.01)
    assert sizes.different == 2
    assert sizes.common == ((100, 200, 2), (300, 200, 1))


def test_the_share_of_padding() -> None:
    # A batch of 64 x 64 and 32 x 64 has 2 * 64 * 64 pixels, and 64 * 64 + 32 * 64 of them are images.
    assert padding_share(np.array([[64, 64], [32, 64]]), 2) == pytest.approx(0.25)
    assert padding_share(np.array([[64, 64], [32, 64]]), 1) == 0
    assert padding_share(np.array([[48, 64]]), 1) == pytest.approx(0.25)  # to a multiple of 32


def test_another_image_size_with_less_padding_is_proposed() -> None:
    upright = [record(f"{index}", size=(200, 100)) for index in range(9)]
    mixed = members_of(*upright, record("lying", size=(100, 200)))
    config = DataConfig(image_size=(128, 256))
    sizes = image_sizes(mixed, config, batch_size=10)
    assert sizes.better is not None
    assert sizes.better[:2] == (256, 128)
    boxes = box_sizes(mixed, config, (8,), ())
    (finding,) = size_findings(sizes, boxes)
    # 9 of 128 x 64 and 1 of 128 x 256 in 10 of 128 x 256
    assert finding.text == "68 % of the pixels of a batch are padding at 128x256"
    # 9 of 256 x 128 and 1 of 64 x 128 in 10 of 256 x 128
    assert finding.remedy == "--image-size 256,128 would have 7 %"
    assert image_sizes(mixed, DataConfig(image_size=(256, 128)), batch_size=10).better is None


BOXES: list[Box] = [(0, 0, 0, 31, 31), (0, 0, 0, 32, 32), (1, 0, 0, 100, 100), (0, 0, 0, 10, 160)]


def test_boxes_against_the_strides() -> None:
    members = members_of(record("a", BOXES, (400, 400)))
    sizes = box_sizes(members, DataConfig(image_size=200), (4, 8), ())
    assert sizes.in_file == (1, 2, 1)  # 961, 1024, 10000 and 1600 square pixels
    assert sizes.resized == (3, 1, 0)
    # Half as large, they have sides of 15.5, 16, 50 and 20. The anchors have 32 and 64: 50 is nearer to 64.
    # The shorter sides are 15.5, 16, 50 and 5.
    assert sizes.levels == (Level(4, nearest=3, narrower=0), Level(8, nearest=1, narrower=1))
    assert sizes.classes == {"cat": ClassSizes(3, 16.0, 0), "dog": ClassSizes(1, 50.0, 0)}
    assert sizes.dropped == 0


def test_narrow_and_dropped_boxes_are_findings_with_the_class_and_the_remedy() -> None:
    slim: list[Box] = [(0, 0, 0, 10, 60)] * 6 + [(1, 0, 0, 60, 60)] * 6 + [(1, 0, 0, 3, 60)]
    members = members_of(record("a", slim, (400, 400)))
    config = DataConfig(image_size=100)
    sizes = image_sizes(members, config, 1)
    findings = {finding.kind: finding for finding in size_findings(sizes, box_sizes(members, config, (4, 8, 16), ()))}
    assert findings["dropped"].text == "1 box with a side below one pixel at 100x100; training leaves such boxes out"
    assert findings["narrow"].text == "6 boxes of 1 class are narrower than one cell of stride 4 at 100x100"
    assert findings["narrow"].examples == ("cat: 100 % (6 of 6)",)
    assert findings["narrow"].remedy == "a larger --image-size, or --model.strides 2,4,8"
    larger = DataConfig(image_size=384)
    assert size_findings(image_sizes(members, larger, 1), box_sizes(members, larger, (2, 4, 8), ())) == []


def test_boxes_without_a_cell_are_a_finding() -> None:
    between: list[Box] = [(0, 9, 9, 15, 15)] * 5
    members = members_of(
        record("a", between, (64, 64)), *[record(f"{index}", [(0, 9, 9, 40, 40)], (64, 64)) for index in range(5)]
    )
    config = DataConfig(image_size=64)
    boxes = box_sizes(members, config, (8,), ("fcos",))
    finding = next(
        each for each in size_findings(image_sizes(members, config, 1), boxes) if each.kind == "uncovered-fcos"
    )
    assert finding.text.startswith("50 % of the boxes (5 of 10) get no positive cell at 64x64 with fcos")
