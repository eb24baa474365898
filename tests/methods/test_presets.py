"""The published weights, as in their sources."""

import pytest

from detdistill.methods.crosskd import CrossKDConfig
from detdistill.methods.mimicking import Mimicking
from detdistill.methods.presets import preset, published_values
from tests.detectors.builders import tiny


@pytest.mark.parametrize(
    ("head", "alone", "beside"), [("gfl", 10, 6), ("retinanet", 10, 2), ("fcos", 10, 2), ("atss", 10, 1)]
)
def test_pkd_has_a_smaller_weight_beside_crosskd(head: str, alone: float, beside: float):
    info = tiny(head).info
    assert preset("pkd", info, info)["weight"] == alone
    assert preset("pkd", info, info, beside=("pkd", "crosskd"))["weight"] == beside
    assert preset("crosskd", info, info, beside=("pkd", "crosskd")) == preset("crosskd", info, info)


def test_pkd_has_weight_6_with_a_two_stage_teacher():
    assert preset("pkd", tiny("fcos").info, tiny("faster_rcnn").info) == {"weight": 6.0, "levels": 4}


def test_the_students_head_selects_the_preset_of_mimicking():
    atss, gfl = tiny("atss").info, tiny("gfl").info
    assert preset("mimicking", atss, atss)["weight_quality"] == 1.0
    assert "weight_quality" not in preset("mimicking", atss, gfl)  # GFL has no centerness to copy
    assert preset("mimicking", gfl, gfl)["box_normalizer"] == "trust"
    assert preset("mimicking", gfl, atss) == {
        "box": "giou"
    }  # 4 is the weight of the KL, which needs both distributions
    assert preset("mimicking", gfl, tiny("atss", edges=True).info)["weight_box"] == 4.0


# The released options: weights of class, box and centerness, box distance, rows that count, divisors, and the depth in
# a tower of four convolutions.
RELEASED = {
    "gfl": (1.0, 4.0, 0.0, "auto", "valid", "valid", "positives", "trust", 3),
    "retinanet": (1.0, 1.0, 0.0, "giou", "valid", "valid", "positives", "positives", 3),
    "atss": (1.0, 1.0, 1.0, "giou", "valid", "valid", "positives", "positives", 3),
    "fcos": (0.4, 0.75, 0.0, "log_iou", "all", "all", "quality", "quality", 2),
}
OPTIONS = [
    "weight_class",
    "weight_box",
    "weight_quality",
    "box",
    "class_region",
    "box_region",
    "class_normalizer",
    "box_normalizer",
]


@pytest.mark.parametrize("head", RELEASED)
def test_crosskd_and_mimicking_are_as_released(head: str):
    info = tiny(head, tower_depth=4).info
    *values, depth = RELEASED[head]
    crossed = CrossKDConfig(**preset("crosskd", info, info))
    for config in (crossed, Mimicking.Config(**preset("mimicking", info, info))):
        assert [getattr(config, name) for name in OPTIONS] == values
        assert (config.beta, config.temperature, config.trust) == (1.0, 1.0, True)
    assert info.towers.depth + crossed.depth == depth
    assert (crossed.student_depth, crossed.align, crossed.tap) == (None, True, "post_relu")


@pytest.mark.parametrize("head", RELEASED)
def test_pkd_is_as_released(head: str):
    # Alone it compares the first four levels, beside CrossKD all five.
    info = tiny(head).info
    beside = {"gfl": 6.0, "retinanet": 2.0, "fcos": 2.0, "atss": 1.0}[head]
    assert preset("pkd", info, info) == {"weight": 10.0, "levels": 4}
    assert preset("pkd", info, info, beside=("crosskd",)) == {"weight": beside}


def test_the_teachers_head_selects_the_preset_of_crosskd():
    fcos, gfl = tiny("fcos").info, tiny("gfl").info
    assert preset("crosskd", fcos, gfl) == {"weight_box": 4.0, "box": "auto", "box_normalizer": "trust", "depth": -1}


def test_published_values_name_the_detectors_and_conditions_that_they_belong_to():
    assert published_values("cwd", "weight", 5.0, str) == "variant=mmrazor 10.0"
    assert published_values("ld", "weight_valuable", 0.0625, str) == "atss 0.0375; retinanet 0.15"
    weights = (
        "gfl, retinanet, atss, fcos 10.0; retinanet beside crosskd, fcos beside crosskd 2.0; atss beside crosskd 1.0"
    )
    assert published_values("pkd", "weight", 6.0, str) == weights
    assert published_values("bckd", "weight_box", 4.0, str) == ""
