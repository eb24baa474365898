"""SSDLite: equal to torchvision's own forward on images of any size, and a neck in the frame of the batch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models import detection as host

from detdistill.detectors.torchvision.ssdlite import SSDLite, fit_tail
from detdistill.errors import UserError
from detdistill.run.pairing import build_methods
from detdistill.testing import check_detector
from detdistill.types import Batch, Need, Targets
from tests.detectors.builders import CLASSES, scene, tiny

WIDE, NARROW = 960, 480  # channels of the second map


def build(columns: int = len(CLASSES) + 1) -> host.ssd.SSD:
    """The model of torchvision with random weights, whose detections differ from each other."""
    torch.manual_seed(0)
    model = host.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=columns)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith(".1.weight") and parameter.ndim == 4:
                parameter.mul_(30)
    return model


def adapted() -> SSDLite:
    return SSDLite(build(), CLASSES, (16,))


def host_inputs(batch: Batch, targets: Targets) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The images without padding, and the targets, in the form of torchvision."""
    pairs = zip(batch.images, batch.sizes.tolist(), strict=True)
    images = [image[:, :height, :width].float() / 255 for image, (height, width) in pairs]
    objects = zip(targets.boxes, targets.labels, strict=True)
    return images, [{"boxes": boxes, "labels": labels + 1} for boxes, labels in objects]


def freeze_norms(detector: SSDLite) -> None:
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


@pytest.mark.parametrize("objects", [True, False])
def test_losses_equal_the_hosts(objects: bool):
    detector = adapted().train()
    freeze_norms(detector)
    batch, targets = scene(objects=objects)
    expected = detector.model(*host_inputs(batch, targets))
    losses = detector.observe(batch, targets).losses
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert bool(value > 0) == objects
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)


def test_detections_equal_the_hosts():
    detector = adapted().eval()
    batch, targets = scene()
    assert len({tuple(size) for size in batch.sizes.tolist()}) == 2  # so that one image has padding
    with torch.no_grad():
        expected = detector.model(host_inputs(batch, targets)[0])
    for image, host_image in zip(detector.detect(batch), expected, strict=True):
        assert len(image.boxes) > 5
        torch.testing.assert_close(image.boxes, host_image["boxes"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(image.scores, host_image["scores"], rtol=1e-5, atol=1e-6)
        assert torch.equal(image.labels, host_image["labels"] - 1)


def test_columns_select_classes_of_the_host_and_the_others_count_as_background():
    model = build(columns=91)
    detector = SSDLite(model, ("stop sign", "person"), (16,), columns=(13, 1)).eval()
    batch, _ = scene()
    with torch.no_grad():
        stage = detector.observe(batch, need=Need(predictions=True)).stages[0]
        logits = model.head(list(model.backbone(detector._stretched_images(batch)).values()))["cls_logits"]
        detections = detector.detect(batch)
    torch.testing.assert_close(stage.scores(), logits.softmax(-1)[..., [13, 1]])
    assert {label for image in detections for label in image.labels.tolist()} <= {0, 1}


def test_the_neck_is_the_finest_map_in_the_frame_of_the_batch():
    detector = adapted().eval()
    images = torch.rand(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    size = torch.tensor([[320, 320]])
    batch = Batch(images, size, size, torch.arange(1), ("a",))
    padded = replace(batch, images=torch.nn.functional.pad(images, (0, 64, 0, 32)))
    with torch.no_grad():
        expected = detector.model.backbone((images - 0.5) / 0.5)["0"]
        level = detector.observe(batch).pyramids["neck"].levels[0]
        padded_level = detector.observe(padded).pyramids["neck"].levels[0]
    assert expected.shape == (1, 672, 20, 20)
    torch.testing.assert_close(level, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    assert padded_level.shape == (1, 672, 22, 24)
    torch.testing.assert_close(padded_level[..., :20, :20], level)
    assert not padded_level[..., 20:, :].any()
    assert not padded_level[..., 20:].any()


def test_a_cell_of_the_neck_lies_where_its_pixels_are():
    """A plane that rises by 1 per pixel of the image, whatever its size: cell c of stride 16 has the value 16 c + 8."""
    detector = adapted()
    sizes = torch.tensor([[96, 160]])
    batch = Batch(torch.zeros(1, 3, 96, 160), sizes, sizes, torch.arange(1), ("a",))
    ramp = ((torch.arange(20) + 0.5) * 160 / 20).expand(1, 1, 20, 20)  # x of the centers of the host's cells
    level = detector._neck(ramp, batch).levels[0]
    torch.testing.assert_close(level, (torch.arange(10) * 16 + 8.0).expand(1, 1, 6, 10))


def test_the_detector_keeps_every_promise():
    check_detector(adapted())


def test_the_wide_tail_of_a_training_from_imagenet_weights_is_built():
    model = build()
    name = "head.classification_head.module_list.1.0.0.weight"
    assert model.state_dict()[name].shape[0] == NARROW
    fit_tail(model, {name: torch.zeros(NARROW, 1, 3, 3)})
    assert model.state_dict()[name].shape[0] == NARROW
    fit_tail(model, {name: torch.zeros(WIDE, 1, 3, 3)})
    assert model.state_dict()[name].shape[0] == WIDE
    check_detector(SSDLite(model, CLASSES, (16,)))


def test_methods_for_the_neck_serve_it_and_the_others_refuse_it():
    student, teacher = tiny("gfl").info, adapted().info
    for method in ("pkd", "mgd", "cwd", "fgd"):
        assert build_methods({method: {}}, student, teacher)
    for method in ("crosskd", "mimicking", "bckd", "gid", "frs", "dist"):
        with pytest.raises(UserError, match=rf"method {method}: the teacher \(ssdlite\) has no"):
            build_methods({method: {}}, student, teacher)
