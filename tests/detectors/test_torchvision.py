"""RetinaNet and FCOS equal torchvision's own forward: losses, detections, columns."""

import pytest
import torch

from detdistill.detectors.torchvision.fcos import FCOS
from detdistill.detectors.torchvision.retinanet import RetinaNet
from detdistill.types import Need
from tests.detectors.builders import scene, shake, tiny

HEADS = ("retinanet", "fcos")


def host_inputs():
    """The scene as torchvision wants it: images of their own size in 0..1, which its transform pads to the same tensor."""
    batch, targets = scene()
    images = [
        image[:, :height, :width].float() / 255
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True)
    ]
    return (
        batch,
        targets,
        images,
        [{"boxes": b, "labels": n} for b, n in zip(targets.boxes, targets.labels, strict=True)],
    )


def unresized(model: torch.nn.Module) -> torch.nn.Module:
    """torchvision's transform told to leave sizes alone."""
    model.transform.resize = lambda image, target: (image, target)
    return model


@pytest.mark.parametrize("head", HEADS)
def test_losses_equal_the_hosts_own(head: str):
    detector = shake(tiny(head, channels=64)).train()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch, targets, images, dicts = host_inputs()
    theirs = unresized(detector.model)(images, dicts)
    ours = detector.observe(batch, targets).losses
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value > 0
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("head", HEADS)
def test_detections_equal_the_hosts_own(head: str):
    detector = shake(tiny(head, channels=64, score_threshold=0.001)).eval()
    batch, _, images, _ = host_inputs()
    with torch.no_grad():
        theirs = unresized(detector.model)(images)
        ours = detector.detect(batch)
    for mine, host in zip(ours, theirs, strict=True):
        assert len(mine.boxes) > 5
        torch.testing.assert_close(mine.boxes, host["boxes"])
        torch.testing.assert_close(mine.scores, host["scores"])
        assert torch.equal(mine.labels, host["labels"])


@pytest.mark.parametrize(("head", "adapter"), [("retinanet", RetinaNet), ("fcos", FCOS)])
def test_columns_pick_the_hosts_classes(head: str, adapter: type):
    wide = shake(tiny(head)).eval()
    narrow = adapter(wide.model, ("cross", "disc"), wide.info.strides, columns=(2, 0))
    batch, _ = scene()
    with torch.no_grad():
        every, chosen = (d.observe(batch, need=Need(predictions=True)).stages[0] for d in (wide, narrow))
        torch.testing.assert_close(chosen.logits, every.logits[..., [2, 0]])
        labels = torch.cat([found.labels for found in narrow.detect(batch)])
    assert set(labels.tolist()) <= {0, 1}


@pytest.mark.parametrize("head", HEADS)
def test_declared_strides_are_nominal_and_anchors_the_hosts(head: str):
    detector = tiny(head)
    batch, _ = scene()
    neck = detector.observe(batch).pyramids["neck"]
    assert neck.strides == (8, 16, 32)
    assert [level.shape[:2] for level in neck.anchors] == [(8, 12), (4, 6), (2, 3)]
    centers = (neck.anchors[0][..., :2] + neck.anchors[0][..., 2:]) / 2
    step = centers[0, 1, 0] - centers[0, 0, 0]
    assert step.tolist() == [8.0, 0.0]


def test_fcos_begins_one_stride_to_each_side():
    # Where torchvision begins, at 0, its ReLU may never open again.
    detector = tiny("fcos").eval()
    stage = detector.observe(scene()[0], need=Need(predictions=True)).stages[0]
    torch.testing.assert_close(stage.deltas, torch.ones_like(stage.deltas), atol=0.5, rtol=0)
    sides = stage.boxes[..., 2:] - stage.boxes[..., :2]
    assert (sides > 0).all()
