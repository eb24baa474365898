"""What is known of a detector before a run."""

import pytest
import torch

from detdistill.detectors.statistics import IMAGENET
from detdistill.errors import UserError
from detdistill.evaluation.speed import cost
from detdistill.inspection.facts import model_facts
from tests.detectors.builders import CLASSES, tiny


def test_a_dense_detector() -> None:
    detector = tiny("gfl")
    facts = model_facts(detector, (64, 96))
    expected = cost(detector, (64, 96), "cpu", runs=1, seconds=0)
    assert (facts.parameters, facts.operations) == (expected["params"], expected["flops"])
    assert (facts.head, facts.strides, facts.channels, facts.classes) == ("gfl", (8, 16, 32), {"neck": 32}, CLASSES)
    assert (facts.tower_depth, facts.tower_channels, facts.edge_bins, facts.stages) == (2, 32, 17, 1)
    assert (facts.queries, facts.proposals) == (None, None)
    assert facts.predictions == 8 * 12 + 4 * 6 + 2 * 3
    assert (facts.mean, facts.std) == tuple(IMAGENET)
    assert facts.trained == facts.parameters


@pytest.mark.parametrize("head", ["rt_detr", "detr", "adamixer"])
def test_a_detector_with_queries(head: str) -> None:
    facts = model_facts(tiny(head), (64, 64))
    assert (facts.queries, facts.stages, facts.predictions) == (12, 2, 12)
    assert facts.tower_depth is None


def test_a_two_stage_detector() -> None:
    facts = model_facts(tiny("faster_rcnn"), (64, 64))
    assert facts.proposals > 0 and facts.stages == 2 and facts.queries is None


def test_an_image_that_is_too_small_is_one_line() -> None:
    with pytest.raises(UserError, match=r"deformable_detr .* larger --image-size"):
        model_facts(tiny("deformable_detr", strides=(16, 32, 64)), (64, 64))


def test_a_frozen_part_does_not_train() -> None:
    detector = tiny("gfl")
    weight = next(iter(detector.parameters())).requires_grad_(False)
    assert model_facts(detector, (64, 64)).trained == model_facts(tiny("gfl"), (64, 64)).parameters - weight.numel()
    assert torch.is_grad_enabled()
