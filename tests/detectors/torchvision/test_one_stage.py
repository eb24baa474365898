"""RetinaNet and FCOS equal torchvision's own forward: losses, detections, class columns, anchors."""

import pytest
import torch
from torch import Tensor

from detdistill.detectors.torchvision.fcos import FCOS
from detdistill.detectors.torchvision.retinanet import RetinaNet
from detdistill.detectors.torchvision.shared import rescale_to_process_mean, scatter_rows, unpadded_rows
from detdistill.types import Batch, Need, Targets
from tests.detectors.builders import scene, shake, tiny

HEADS = ("retinanet", "fcos")
SMALL = {"depthwise": True, "neck": "pafpn"}


def host_images(batch: Batch) -> list[Tensor]:
    """The images in 0..1, each without padding. torchvision's transform pads them to the same tensor as the batch."""
    pairs = zip(batch.images, batch.sizes.tolist(), strict=True)
    return [image[:, :height, :width].float() / 255 for image, (height, width) in pairs]


def host_targets(targets: Targets) -> list[dict[str, Tensor]]:
    pairs = zip(targets.boxes, targets.labels, strict=True)
    return [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]


def without_resizing(model: torch.nn.Module) -> torch.nn.Module:
    """The model of torchvision, whose transform then keeps the size of images."""
    model.transform.resize = lambda image, target: (image, target)
    return model


@pytest.mark.parametrize("options", [{}, SMALL])
@pytest.mark.parametrize("head", HEADS)
def test_losses_equal_the_hosts(head: str, options: dict):
    detector = shake(tiny(head, channels=64, **options)).train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch, targets = scene()
    expected = without_resizing(detector.model)(host_images(batch), host_targets(targets))
    losses = detector.observe(batch, targets).losses
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert value > 0
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{}, SMALL])
@pytest.mark.parametrize("head", HEADS)
def test_detections_equal_the_hosts(head: str, options: dict):
    detector = shake(tiny(head, channels=64, score_threshold=0.001, **options)).eval()
    batch, _ = scene()
    with torch.no_grad():
        expected = without_resizing(detector.model)(host_images(batch))
        detections = detector.detect(batch)
    for image, host_image in zip(detections, expected, strict=True):
        assert len(image.boxes) > 5
        torch.testing.assert_close(image.boxes, host_image["boxes"])
        torch.testing.assert_close(image.scores, host_image["scores"])
        assert torch.equal(image.labels, host_image["labels"])


@pytest.mark.parametrize(("head", "adapter"), [("retinanet", RetinaNet), ("fcos", FCOS)])
def test_columns_select_classes_of_the_host(head: str, adapter: type):
    all_classes = shake(tiny(head)).eval()
    two_classes = adapter(all_classes.model, ("cross", "disc"), all_classes.info.strides, columns=(2, 0))
    batch, _ = scene()
    with torch.no_grad():
        expected = all_classes.observe(batch, need=Need(predictions=True)).stages[0].logits[..., [2, 0]]
        logits = two_classes.observe(batch, need=Need(predictions=True)).stages[0].logits
        torch.testing.assert_close(logits, expected)
        labels = torch.cat([image.labels for image in two_classes.detect(batch)])
    assert set(labels.tolist()) <= {0, 1}


@pytest.mark.parametrize("head", HEADS)
def test_strides_are_nominal_and_anchors_are_the_hosts(head: str):
    detector = tiny(head)
    batch, _ = scene()
    neck = detector.observe(batch).pyramids["neck"]
    assert neck.strides == (8, 16, 32)
    assert [level.shape[:2] for level in neck.anchors] == [(8, 12), (4, 6), (2, 3)]
    centers = (neck.anchors[0][..., :2] + neck.anchors[0][..., 2:]) / 2
    step = centers[0, 1, 0] - centers[0, 0, 0]
    assert step.tolist() == [8.0, 0.0]


def test_fcos_starts_with_distances_of_one_stride():
    # torchvision starts at 0, where its ReLU may stop every gradient.
    detector = tiny("fcos").eval()
    stage = detector.observe(scene()[0], need=Need(predictions=True)).stages[0]
    torch.testing.assert_close(stage.deltas, torch.ones_like(stage.deltas), atol=0.5, rtol=0)
    sides = stage.boxes[..., 2:] - stage.boxes[..., :2]
    assert (sides > 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_a_separable_head_starts_with_the_scores_and_biases_of_the_plain_one(head: str):
    plain, separable = (tiny(head, depthwise=depthwise).model.head for depthwise in (False, True))
    for branch, plain_branch in (
        (separable.classification_head, plain.classification_head),
        (separable.regression_head, plain.regression_head),
    ):
        predictors = {name: layer for name, layer in branch.named_children() if name != "conv"}
        assert predictors.keys() == dict(plain_branch.named_children()).keys() - {"conv"}
        for name, layer in predictors.items():
            assert layer.kernel_size == (1, 1)
            assert torch.equal(layer.bias, getattr(plain_branch, name).bias)
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.3)


def test_separable_towers_of_a_retinanet_have_norms_unless_none_is_asked_for():
    for norm, count in (("default", 4), ("group", 4), ("none", 0)):
        head = tiny("retinanet", depthwise=True, norm=norm).model.head
        assert sum(isinstance(layer, torch.nn.GroupNorm) for layer in head.modules()) == count
    head = tiny("retinanet").model.head
    assert not any(isinstance(layer, torch.nn.GroupNorm) for layer in head.modules())


def test_rows_are_padded_and_scattered_per_image():
    first, second = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])
    valid = unpadded_rows([first, second])
    assert valid.tolist() == [[True, True], [True, False]]
    assert scatter_rows(torch.cat([first, second]), valid).tolist() == [[[1.0], [2.0]], [[3.0], [0.0]]]


def test_a_single_process_keeps_its_mean():
    assert rescale_to_process_mean(4, torch.zeros(1)) == 1.0
    assert rescale_to_process_mean(0, torch.zeros(1)) == 0.0
