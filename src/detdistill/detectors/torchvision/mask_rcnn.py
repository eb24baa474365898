"""torchvision's Mask R-CNN, arXiv:1703.06870, for its boxes.

Data here hold no masks, so the mask branch is neither trained nor run: its weights come from a file and stay in the state dict, frozen, and
all else is Faster R-CNN (see its file). A fresh one has the branch too, so that the host library's names stay whole.
"""

from collections.abc import Sequence

from torch import nn
from torchvision.models import detection as host
from torchvision.ops import MultiScaleRoIAlign

from detdistill.detectors.backbone import build_neck
from detdistill.detectors.torchvision.faster_rcnn import FasterRCNN, host_parts
from detdistill.recipe import ModelConfig


def adapt(
    model: nn.Module, classes: Sequence[str], strides: Sequence[int], columns: Sequence[int] | None = None
) -> FasterRCNN:
    """A torchvision MaskRCNN as a detector of boxes; its mask branch is frozen. The arguments are those of `FasterRCNN`."""
    assert isinstance(model, host.MaskRCNN)
    for part in (model.roi_heads.mask_head, model.roi_heads.mask_predictor):
        part.requires_grad_(False)
    return FasterRCNN(model, classes, strides, columns, kind="mask_rcnn")


def mask_rcnn(config: ModelConfig, backbone: str, classes: Sequence[str]) -> FasterRCNN:
    """Boxes only, as `faster_rcnn`, on a timm backbone with an FPN; the mask branch is there, and neither trained nor run.

    The mask branch is four convolutions of the neck's width, cut 14 x 14, as published. Raises UserError where the backbone can't serve.
    """
    neck = build_neck(backbone, config.strides, config.channels, config.backbone_weights, pooled=True)
    model = host.MaskRCNN(
        neck,
        **host_parts(config, neck, len(classes)),
        mask_roi_pool=MultiScaleRoIAlign([str(stride) for stride in neck.reductions], output_size=14, sampling_ratio=2),
        mask_head=host.mask_rcnn.MaskRCNNHeads(config.channels, (config.channels,) * 4, 1),
        mask_predictor=host.mask_rcnn.MaskRCNNPredictor(config.channels, config.channels, len(classes) + 1),
    )
    return adapt(model, classes, config.strides)
