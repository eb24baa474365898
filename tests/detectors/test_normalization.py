"""The pixel statistics of detectors of every origin."""

import pytest

from detdistill.detectors.build import config_of
from detdistill.detectors.normalization import statistics_of
from detdistill.detectors.statistics import IMAGENET, UNCHANGED
from tests.detectors.builders import tiny

OTHER = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("head", ["gfl", "fcos", "faster_rcnn", "rt_detr", "adamixer"])
@pytest.mark.parametrize("is_built", [True, False])
def test_the_statistics_are_those_it_normalizes_with(head: str, is_built: bool) -> None:
    detector = tiny(head, mean=OTHER[0], std=OTHER[1])
    if not is_built:  # as one that comes from torchvision or transformers
        assert config_of(detector) is not None
        del detector.__dict__["built_from"]
        if head in ("gfl", "adamixer"):
            assert statistics_of(detector) is None or statistics_of(detector) == OTHER
            return
    assert statistics_of(detector) == OTHER


def test_the_default_is_that_of_the_backbone() -> None:
    assert statistics_of(tiny("gfl")) == IMAGENET
    assert statistics_of(tiny("rt_detr", backbone="native")) == UNCHANGED


def test_a_detector_that_does_not_say() -> None:
    class Silent:
        pass

    assert statistics_of(Silent()) is None
