"""ATSS, arXiv:1912.02424: one square anchor per cell, adaptive assignment; focal, GIoU and centerness losses."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import sigmoid_focal_loss

from detdistill.detectors.backbone import neck_of
from detdistill.detectors.candidates import Candidates
from detdistill.detectors.dense.head import (
    BOX_WEIGHT,
    DenseHead,
    anchored_pyramid,
    assign_atss,
    dense_candidates,
    dense_info,
)
from detdistill.detectors.outputs import (
    DenseParts,
    dense_layout,
    edges_to_boxes,
    matched_boxes,
    matched_labels,
    observe_dense,
    prediction_strides,
)
from detdistill.detectors.timm.simple_pyramid import pretrained_parameters
from detdistill.detectors.towers import TowerPair
from detdistill.distributed import mean_over_processes
from detdistill.geometry import centers
from detdistill.losses import giou_distance
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, Detections, DetectorOutput, Need, Predictions, Targets, required


class ATSS(nn.Module):
    """RetinaNet's design with one anchor per cell and centerness.

    Deltas are scaled as in Faster R-CNN, by 0.1 for centers and 0.2 for sides. With `model.edges`, the head predicts
    the distances of the sides from the anchor's center as distributions, as GFL does, and no deltas. The losses stay
    the same.
    """

    def __init__(self, config: ModelConfig, backbone: str, classes: Sequence[str]):
        super().__init__()
        self.config = config
        self.neck = neck_of(config, backbone)
        self.edge_bins = config.edge_bins if config.edges else None
        self.head = DenseHead(config, len(classes), regression=4 * (self.edge_bins or 1), quality=True)
        self.towers = TowerPair(self.head.classification_tower, self.head.regression_tower)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0), bbox_xform_clip=math.log(1000 / 16))
        self.info = dense_info("atss", config, classes, quality=True, edge_bins=self.edge_bins)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """See `types.Detector`."""
        return pretrained_parameters(self.neck.body)

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`. The losses are those of `atss_losses`."""
        pyramid = anchored_pyramid(self.neck, batch, self.config)
        layout = dense_layout(pyramid)
        level_anchors = [level.reshape(-1, 4) for level in pyramid.anchors or ()]
        anchors = torch.cat(level_anchors)  # (N, 4)
        valid = layout.valid(batch.sizes)

        def predict(classification: Sequence[Tensor], regression: Sequence[Tensor]) -> Predictions:
            if self.edge_bins:
                logits, edges, quality = self.head.predict(classification, regression, 4, self.edge_bins)
                boxes = edges_to_boxes(edges, centers(anchors), prediction_strides(layout, anchors.device))
                return Predictions(logits, "sigmoid", boxes, valid, layout, quality=quality, edges=edges)
            logits, deltas, quality = self.head.predict(classification, regression, 4)
            boxes = self.coder.decode_single(deltas.flatten(0, 1), anchors.repeat(deltas.shape[0], 1)).view_as(deltas)
            return Predictions(logits, "sigmoid", boxes, valid, layout, quality=quality, deltas=deltas)

        def assign(targets: Targets) -> Assignment:
            return assign_atss(level_anchors, valid, layout.counts, targets)

        return observe_dense(pyramid, self.towers, DenseParts(predict, assign, atss_losses), targets, need)

    def candidates(self, batch: Batch) -> Candidates:
        """The candidates before suppression. The score is the class score times the centerness."""
        stage = self.observe(batch, need=Need(predictions=True)).stages[0]
        return dense_candidates(stage, batch, self.config, self.config.nms_threshold or 0.6)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`."""
        return self.candidates(batch).detections()


def atss_losses(stage: Predictions, assignment: Assignment, targets: Targets) -> Mapping[str, Tensor]:
    """The loss terms of ATSS, each a scalar.

    classification: focal loss (alpha 0.25, gamma 2) over valid anchors, divided by the number of positives.
    box: 2 times GIoU loss over positives, weighted by their centerness targets and divided by the sum of these weights.
    centerness: binary cross-entropy over positives, divided by their number.
    """
    positive, quality = assignment.positive, required(assignment.quality)
    class_targets = torch.zeros_like(stage.logits)
    class_targets[positive] = F.one_hot(matched_labels(assignment, targets), class_targets.shape[-1]).to(class_targets)
    focal = sigmoid_focal_loss(stage.logits, class_targets) * assignment.valid[..., None]
    weight = quality[positive]  # (P,)
    distances = giou_distance(stage.boxes[positive], matched_boxes(assignment, targets))
    box = (distances * weight).sum() / mean_over_processes(weight.sum())
    center = F.binary_cross_entropy_with_logits(required(stage.quality)[positive], weight, reduction="sum")
    return {
        "classification": focal.sum() / assignment.num_positives,
        "box": BOX_WEIGHT * box,
        "centerness": center / assignment.num_positives,
    }
