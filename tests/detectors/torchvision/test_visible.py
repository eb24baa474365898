"""Faster R-CNN of torchvision on MobileNetV3, with two levels of stride 32: equal to the host, one of the two seen."""

import pytest
import torch
from torch import Tensor
from torchvision.models import detection as host

from detdistill.detectors.torchvision.faster_rcnn import FasterRCNN
from detdistill.detectors.torchvision.visible import VisibleLevels
from detdistill.detectors.weights import TORCHVISION
from detdistill.testing import check_detector
from detdistill.types import Assignment, Batch, Layout, Need, Targets
from tests.detectors.builders import CLASSES, scene, spread_scores

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
CELLS = 2 * 3 + 1 * 2  # of an image of 64 x 96 pixels at strides 32 and 64
ANCHORS = 15


def build() -> FasterRCNN:
    """The model of torchvision with random weights. Its transform keeps the size of images."""
    torch.manual_seed(0)
    options = {"rpn_score_thresh": 0.0, "box_score_thresh": 0.0}
    model = getattr(host, NAME)(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1, **options)
    model.transform.resize = lambda image, target: (image, target)
    spread_scores(model)
    return FasterRCNN(model, CLASSES, TORCHVISION[NAME].strides)


def host_inputs(batch: Batch, targets: Targets) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The images without padding, and the targets, in the form of torchvision."""
    pairs = zip(batch.images, batch.sizes.tolist(), strict=True)
    images = [image[:, :height, :width].float() / 255 for image, (height, width) in pairs]
    objects = zip(targets.boxes, targets.labels, strict=True)
    return images, [{"boxes": boxes, "labels": labels + 1} for boxes, labels in objects]


def test_losses_equal_the_hosts_which_count_all_levels():
    detector = build().train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch, targets = scene()
    torch.manual_seed(1)
    expected = detector.model(*host_inputs(batch, targets))
    torch.manual_seed(1)
    losses = detector.observe(batch, targets).losses
    assert {f"loss_{name}" for name in losses} == set(expected)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[f"loss_{name}"], rtol=1e-5, atol=0)


def test_detections_equal_the_hosts():
    detector = build().eval()
    batch, targets = scene()
    with torch.no_grad():
        expected = detector.model(host_inputs(batch, targets)[0])
        detections = detector.detect(batch)
    for image, host_image in zip(detections, expected, strict=True):
        assert len(image.boxes) > 5
        torch.testing.assert_close(image.boxes, host_image["boxes"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(image.scores, host_image["scores"], rtol=1e-5, atol=1e-6)
        assert torch.equal(image.labels, host_image["labels"] - 1)


def test_methods_see_one_level_of_each_stride():
    detector = build().eval()
    batch, targets = scene()
    with torch.no_grad():
        output = detector.observe(batch, targets, Need(predictions=True, proposals=True))
    assert detector.info.strides == output.pyramids["neck"].strides == (32, 64)
    assert detector.info.proposals.strides == (32,)
    rpn = output.stages[0]
    assert rpn.logits.shape == (2, CELLS * ANCHORS, 1)
    assert rpn.assignment.matched.shape == rpn.assignment.valid.shape == (2, CELLS * ANCHORS)
    assert output.assign(targets).matched.shape == (2, CELLS * ANCHORS)


def test_the_detector_keeps_every_promise():
    check_detector(build())


@pytest.mark.parametrize(("strides", "expected"), [((32, 32, 64), [0, 1, 4]), ((8, 32, 64), [0, 1, 2, 3, 4])])
def test_the_first_level_of_each_stride_is_visible(strides: tuple[int, ...], expected: list[int]):
    layout = Layout(((1, 2), (1, 2), (1, 1)), strides)
    visible = VisibleLevels(strides)
    assert visible.rows(torch.arange(5)[None], layout).tolist() == [expected]
    assignment = Assignment(torch.tensor([[-1, -1, 0, 0, -1]]), torch.ones(1, 5, dtype=torch.bool), torch.tensor(2.0))
    seen = visible.assignment(assignment, layout)
    assert seen.matched.tolist() == [[[-1, -1, 0, 0, -1][row] for row in expected]]
    assert seen.num_positives == (1 if len(expected) < 5 else 2)  # at least 1, of the rows that are seen
