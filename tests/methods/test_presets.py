"""The published weights, as the sources have them."""

import pytest

from detdistill.methods.presets import preset
from tests.detectors.builders import tiny


@pytest.mark.parametrize(("head", "alone", "beside"), [("gfl", 10, 6), ("retinanet", 10, 2), ("fcos", 10, 2), ("atss", 10, 1)])
def test_pkd_weighs_less_beside_crosskd(head: str, alone: float, beside: float):
    info = tiny(head).info
    assert preset("pkd", info, info)["weight"] == alone
    assert preset("pkd", info, info, beside=("pkd", "crosskd"))["weight"] == beside
    assert preset("crosskd", info, info, beside=("pkd", "crosskd")) == preset("crosskd", info, info)


def test_a_two_stage_teacher_weighs_six():
    assert preset("pkd", tiny("fcos").info, tiny("faster_rcnn").info) == {"weight": 6.0, "levels": 4}


def test_mimicking_goes_by_the_students_head():
    atss, gfl = tiny("atss").info, tiny("gfl").info
    assert preset("mimicking", atss, atss)["weight_quality"] == 1.0
    assert "weight_quality" not in preset("mimicking", atss, gfl)  # GFL has no centre-ness to copy
    assert preset("mimicking", gfl, atss)["box_normalizer"] == "trust"
