"""Mask R-CNN for its boxes: Faster R-CNN with a frozen mask branch. torchvision's weights are loaded whole."""

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


def test_the_mask_branch_exists_and_is_neither_trained_nor_run():
    detector = tiny("mask_rcnn")
    assert isinstance(detector.model, MaskRCNN)
    assert detector.info.kind == "mask_rcnn"
    assert detector.info.proposals is not None
    branch = {name for name, _ in detector.named_parameters() if ".mask_" in name}
    assert len(branch) == 12
    assert branch == {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    calls = []
    detector.model.roi_heads.mask_head.register_forward_hook(lambda *_: calls.append(1))
    detector.model.roi_heads.mask_roi_pool.register_forward_hook(lambda *_: calls.append(1))
    sum(detector.observe(*scene()).losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.parameters() if parameter.requires_grad)
    detector.eval().detect(scene()[0])
    assert not calls


def test_boxes_and_losses_equal_those_of_faster_rcnn():
    mask_rcnn, faster_rcnn = tiny("mask_rcnn").eval(), tiny("faster_rcnn").eval()
    state = mask_rcnn.state_dict()
    faster_rcnn.load_state_dict({name: state[name] for name in faster_rcnn.state_dict()})
    for objects in (True, False):
        batch, targets = scene(objects=objects)
        losses = []
        for detector in (mask_rcnn, faster_rcnn):
            torch.manual_seed(0)  # the host samples proposals at random
            losses.append(detector.observe(batch, targets).losses)
        assert losses[0].keys() == losses[1].keys()
        assert all(torch.equal(term, losses[1][name]) for name, term in losses[0].items())
    for image, expected in zip(mask_rcnn.detect(batch), faster_rcnn.detect(batch), strict=True):
        assert torch.equal(image.boxes, expected.boxes)


def test_the_optimizer_leaves_out_the_mask_branch():
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = tiny("mask_rcnn")

    model = Model()
    groups = parameter_groups(model, TrainConfig())
    num_trained = sum(len(group["params"]) for group in groups)
    assert num_trained == len(list(model.parameters())) - 12


@pytest.mark.parametrize("name", [name for name in TORCHVISION if "rcnn" in name])
def test_weights_of_torchvision_are_loaded_and_classify_on_other_pyramids(name: str, tmp_path: Path):
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
        assert pyramid.strides == tuple(dict.fromkeys(TORCHVISION[name].strides))
        boxes = torch.stack([targets.boxes[0]] * 2)
        stage = output.proposals.classify(boxes)
        changed_levels = tuple(level + 1 for level in pyramid.levels)
        changed_pyramid = Pyramid(changed_levels, pyramid.strides, pyramid.sizes)
        changed_stage = output.proposals.classify(boxes, changed_pyramid)
    assert stage.logits.shape == (2, 3, len(CLASSES))
    assert not torch.allclose(stage.logits, changed_stage.logits)
    state = model.state_dict()
    del state[next(name for name in state if "roi_heads" in name)]
    torch.save(state, file)
    with pytest.raises(UserError, match="1 missing"):
        load_teacher(f"torchvision:{name}={file}", CLASSES)
