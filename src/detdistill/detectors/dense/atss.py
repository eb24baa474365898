"""ATSS, arXiv:1912.02424: one square anchor a cell, adaptive assignment, focal, GIoU and centre-ness losses."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import sigmoid_focal_loss

from detdistill.detectors.backbone import build_neck
from detdistill.detectors.dense.head import (
    BOX_WEIGHT,
    DenseHead,
    anchored_pyramid,
    assign_adaptively,
    dense_info,
    suppress,
)
from detdistill.detectors.outputs import (
    DenseParts,
    dense_layout,
    edge_boxes,
    matched_boxes,
    matched_labels,
    observe_dense,
    row_strides,
)
from detdistill.detectors.towers import TowerPair
from detdistill.distributed import mean_over_processes
from detdistill.geometry import centers
from detdistill.losses import giou_distance
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, Detections, DetectorOutput, Need, Predictions, Targets, required


class ATSS(nn.Module):
    """RetinaNet's design with one anchor a cell and centre-ness; deltas are scaled as in Faster R-CNN, by 0.1 and 0.2.

    With `model.edges` the sides' distances from the anchor's centre are distributions as in GFL, and there are no deltas; the losses stay.
    """

    def __init__(self, config: ModelConfig, backbone: str, classes: Sequence[str]):
        super().__init__()
        self.config = config
        self.neck = build_neck(backbone, config.strides, config.channels, config.backbone_weights)
        self.edge_bins = config.edge_bins if config.edges else None
        self.head = DenseHead(config, len(classes), regression=4 * (self.edge_bins or 1), quality=True)
        self.towers = TowerPair(self.head.classification_tower, self.head.regression_tower)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0), bbox_xform_clip=math.log(1000 / 16))
        self.info = dense_info("atss", config, classes, quality=True, edge_bins=self.edge_bins)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those of the body below the neck."""
        return list(self.neck.body.parameters())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`."""
        pyramid = anchored_pyramid(self.neck, batch, self.config)
        layout = dense_layout(pyramid)
        levels = [level.reshape(-1, 4) for level in pyramid.anchors or ()]
        anchors, valid = torch.cat(levels), layout.valid(batch.sizes)

        def predict(classification: Sequence[Tensor], regression: Sequence[Tensor]) -> Predictions:
            if self.edge_bins:
                logits, edges, quality = self.head.rows(classification, regression, 4, self.edge_bins)
                boxes = edge_boxes(edges, centers(anchors), row_strides(layout, anchors.device))
                return Predictions(logits, "sigmoid", boxes, valid, layout, quality=quality, edges=edges)
            logits, deltas, quality = self.head.rows(classification, regression, 4)
            boxes = self.coder.decode_single(deltas.flatten(0, 1), anchors.repeat(len(deltas), 1)).view_as(deltas)
            return Predictions(logits, "sigmoid", boxes, valid, layout, quality=quality, deltas=deltas)

        def assign(wanted: Targets) -> Assignment:
            return assign_adaptively(levels, valid, layout.counts, wanted)

        return observe_dense(pyramid, self.towers, DenseParts(predict, assign, atss_losses), targets, need)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`. Score: class times centre-ness."""
        stage = self.observe(batch, need=Need(predictions=True)).stages[0]
        return suppress(stage, batch, self.config, self.config.nms_threshold or 0.6)


def atss_losses(stage: Predictions, assignment: Assignment, targets: Targets) -> Mapping[str, Tensor]:
    """Focal (alpha 0.25, gamma 2) over valid anchors and centre-ness over positives, both by the number of positives; GIoU weighted by the
    centre-ness target, by its sum, times 2."""
    positive, quality = assignment.positive, required(assignment.quality)
    wanted = torch.zeros_like(stage.logits)
    wanted[positive] = F.one_hot(matched_labels(assignment, targets), wanted.shape[-1]).to(wanted)
    focal = sigmoid_focal_loss(stage.logits, wanted) * assignment.valid[..., None]
    weight = quality[positive]
    boxes = (
        giou_distance(stage.boxes[positive], matched_boxes(assignment, targets)) * weight
    ).sum() / mean_over_processes(weight.sum())
    center = F.binary_cross_entropy_with_logits(required(stage.quality)[positive], weight, reduction="sum")
    return {
        "classification": focal.sum() / assignment.num_positives,
        "box": BOX_WEIGHT * boxes,
        "centerness": center / assignment.num_positives,
    }
