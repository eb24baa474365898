"""Mask R-CNN of torchvision, arXiv:1703.06870, for its boxes.

Our data have no masks. The mask branch is therefore neither trained nor run: its weights are loaded, frozen and saved,
so that the state dict keeps all names of torchvision. Everything else is Faster R-CNN; see `faster_rcnn`.
"""

from collections.abc import Sequence

from torch import nn
from torchvision.models import detection as host
from torchvision.ops import MultiScaleRoIAlign

from detdistill.detectors.backbone import neck_of
from detdistill.detectors.torchvision.faster_rcnn import FasterRCNN, host_parts
from detdistill.recipe import ModelConfig


def adapt(
    model: nn.Module, classes: Sequence[str], strides: Sequence[int], columns: Sequence[int] | None = None
) -> FasterRCNN:
    """Adapt a MaskRCNN of torchvision as a detector of boxes, and freeze its mask branch.

    The arguments are the same as those of `FasterRCNN`.
    """
    assert isinstance(model, host.MaskRCNN)
    for part in (model.roi_heads.mask_head, model.roi_heads.mask_predictor):
        part.requires_grad_(False)
    return FasterRCNN(model, classes, strides, columns, kind="mask_rcnn")


def mask_rcnn(config: ModelConfig, backbone: str, classes: Sequence[str]) -> FasterRCNN:
    """Build a Mask R-CNN for boxes on a timm backbone with an FPN, as `faster_rcnn` does.

    Its mask branch has four convolutions with the neck's width on regions of 14 x 14, as published. It is neither
    trained nor run. Raises UserError if the backbone does not fit the strides.
    """
    neck = neck_of(config, backbone, pooled=True)
    model = host.MaskRCNN(
        neck,
        **host_parts(config, neck, len(classes)),
        mask_roi_pool=MultiScaleRoIAlign([str(stride) for stride in neck.reductions], output_size=14, sampling_ratio=2),
        mask_head=host.mask_rcnn.MaskRCNNHeads(config.channels, (config.channels,) * 4, 1),
        mask_predictor=host.mask_rcnn.MaskRCNNPredictor(config.channels, config.channels, len(classes) + 1),
    )
    return adapt(model, classes, config.strides)
