"""Mask R-CNN for its boxes: Faster R-CNN in all but the frozen mask branch; torchvision's weights load whole and classify."""

from pathlib import Path

import pytest
import torch
import torchvision.models.detection as host
from torchvision.models.detection import MaskRCNN

from detdistill.detectors.weights import TORCHVISION, load_teacher
from detdistill.engine.optim import parameter_groups
from detdistill.errors import UserError
from detdistill.recipe import TrainConfig
from detdistill.types import Need, Pyramid
from tests.detectors.builders import CLASSES, scene, tiny


def test_the_mask_branch_is_there_and_sleeps():
    detector = tiny("mask_rcnn")
    assert isinstance(detector.model, MaskRCNN)
    assert detector.info.kind == "mask_rcnn"
    assert detector.info.proposals is not None
    branch = {name for name, _ in detector.named_parameters() if ".mask_" in name}
    assert len(branch) == 12
    assert branch == {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    called = []
    detector.model.roi_heads.mask_head.register_forward_hook(lambda *_: called.append(1))
    detector.model.roi_heads.mask_roi_pool.register_forward_hook(lambda *_: called.append(1))
    sum(detector.observe(*scene()).losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)
    detector.eval().detect(scene()[0])
    assert not called


def test_boxes_and_losses_are_faster_rcnns():
    masked, plain = tiny("mask_rcnn").eval(), tiny("faster_rcnn").eval()
    state = masked.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    for objects in (True, False):
        batch, targets = scene(objects=objects)
        losses = []
        for detector in (masked, plain):
            torch.manual_seed(0)  # the host draws its samples
            losses.append(detector.observe(batch, targets).losses)
        assert losses[0].keys() == losses[1].keys()
        assert all(torch.equal(term, losses[1][name]) for name, term in losses[0].items())
    for one, two in zip(masked.detect(batch), plain.detect(batch), strict=True):
        assert torch.equal(one.boxes, two.boxes)


def test_the_optimizer_leaves_the_branch_out():
    class Taught(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = tiny("mask_rcnn")

    taught = Taught()
    groups = parameter_groups(taught, TrainConfig())
    learned = sum(len(group["params"]) for group in groups)
    assert learned == len(list(taught.parameters())) - 12


@pytest.mark.parametrize("name", [name for name in TORCHVISION if "rcnn" in name])
def test_torchvisions_own_weights_teach_and_classify_other_pyramids(name: str, tmp_path: Path):
    torch.manual_seed(0)
    model = getattr(host, name)(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1)
    file = tmp_path / "weights.pt"
    torch.save(model.state_dict(), file)
    teacher, report = load_teacher(f"torchvision:{name}={file}", CLASSES)
    assert report.complete
    assert report.matched == len(model.state_dict())
    assert teacher.info.kind == ("mask_rcnn" if "mask" in name else "faster_rcnn")
    batch, targets = scene()
    with torch.no_grad():
        output = teacher.eval().observe(batch, need=Need(proposals=True))
        pyramid = output.pyramids["neck"]
        assert pyramid.strides == (4, 8, 16, 32, 64)
        boxes = torch.stack([targets.boxes[0]] * 2)
        own = output.proposals.classify(boxes)
        other = output.proposals.classify(
            boxes, Pyramid(tuple(level + 1 for level in pyramid.levels), pyramid.strides, pyramid.sizes)
        )
    assert own.logits.shape == (2, 3, len(CLASSES))
    assert not torch.allclose(own.logits, other.logits)
    del (state := model.state_dict())[next(key for key in model.state_dict() if "roi_heads" in key)]
    torch.save(state, file)
    with pytest.raises(UserError, match="1 missing"):
        load_teacher(f"torchvision:{name}={file}", CLASSES)
