"""GFL, arXiv:2006.04388: class scores that include the box quality, and side distances as distributions.

Each side's distance from its point is a distribution over R bins, each bin one stride.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from detdistill.geometry import centers, side_distances
from detdistill.losses import giou_distance, paired_iou, quality_focal
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, Detections, DetectorOutput, Need, Predictions, Targets, required

EDGE_WEIGHT = 0.25


class GFL(nn.Module):
    """Generalized focal loss detector: the anchors and the assignment of ATSS, without centerness."""

    def __init__(self, config: ModelConfig, backbone: str, classes: Sequence[str]):
        super().__init__()
        self.config = config
        self.neck = neck_of(config, backbone)
        self.head = DenseHead(config, len(classes), regression=4 * config.edge_bins, quality=False)
        self.towers = TowerPair(self.head.classification_tower, self.head.regression_tower)
        self.info = dense_info("gfl", config, classes, quality=False, edge_bins=config.edge_bins)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """See `types.Detector`."""
        return pretrained_parameters(self.neck.body)

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`. The losses are those of `gfl_losses`."""
        pyramid = anchored_pyramid(self.neck, batch, self.config)
        layout = dense_layout(pyramid)
        level_anchors = [level.reshape(-1, 4) for level in pyramid.anchors or ()]
        points = centers(torch.cat(level_anchors))  # (N, 2)
        valid = layout.valid(batch.sizes)
        strides = prediction_strides(layout, points.device)

        def predict(classification: Sequence[Tensor], regression: Sequence[Tensor]) -> Predictions:
            logits, edges, _ = self.head.predict(classification, regression, 4, self.config.edge_bins)
            boxes = edges_to_boxes(edges, points, strides)
            return Predictions(logits, "sigmoid", boxes, valid, layout, edges=edges)

        def assign(targets: Targets) -> Assignment:
            return assign_atss(level_anchors, valid, layout.counts, targets)

        def losses(stage: Predictions, assignment: Assignment, targets: Targets) -> Mapping[str, Tensor]:
            return gfl_losses(stage, assignment, targets, points, strides)

        return observe_dense(pyramid, self.towers, DenseParts(predict, assign, losses), targets, need)

    def candidates(self, batch: Batch) -> Candidates:
        """The candidates before suppression."""
        stage = self.observe(batch, need=Need(predictions=True)).stages[0]
        return dense_candidates(stage, batch, self.config, self.config.nms_threshold or 0.6)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`."""
        return self.candidates(batch).detections()


def distribution_focal(edges: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss: cross-entropy with the two bins around the distance, weighted linearly. GFL, equation 6.

    edges (..., R): logits. distances (...): in strides, 0..R-1. Returns (...), in nats. The minimum is the entropy of
    the two weights.
    """
    low = distances.floor().clamp(max=edges.shape[-1] - 2)
    weight_above = distances - low
    log_probabilities = edges.log_softmax(-1)
    below = log_probabilities.gather(-1, low.long()[..., None])[..., 0]
    above = log_probabilities.gather(-1, low.long()[..., None] + 1)[..., 0]
    return -(1 - weight_above) * below - weight_above * above


def gfl_losses(
    stage: Predictions, assignment: Assignment, targets: Targets, points: Tensor, strides: Tensor
) -> Mapping[str, Tensor]:
    """The loss terms of GFL, each a scalar. points (N, 2): in pixels. strides (N,): in pixels.

    classification: quality focal loss (beta 2) over valid predictions, divided by the number of positives. The target
    of a positive's class is the IoU of its box with the ground truth.
    box: 2 times GIoU loss. edges: 0.25 times distribution focal loss, mean of the four sides. Both are over positives,
    weighted by the best class score of the prediction and divided by the sum of these weights.
    """
    positive = assignment.positive
    truth = matched_boxes(assignment, targets)  # (P, 4)
    boxes = stage.boxes[positive]  # (P, 4)
    class_targets = torch.zeros_like(stage.logits)
    overlap = paired_iou(boxes.detach(), truth).to(class_targets.dtype)
    one_hot = F.one_hot(matched_labels(assignment, targets), class_targets.shape[-1])
    class_targets[positive] = one_hot * overlap[:, None]
    focal = quality_focal(stage.logits, class_targets, beta=2.0) * assignment.valid[..., None]
    weight = stage.logits[positive].detach().sigmoid().amax(-1)  # (P,)
    total_weight = mean_over_processes(weight.sum())
    edges = required(stage.edges)[positive]  # (P, 4, R)
    row = positive.nonzero()[:, 1]  # (P,)
    distances = side_distances(points[row], truth) / strides[row, None]
    # A distance ends 0.1 before the last bin, as published, so that it lies between two bins.
    distances = distances.clamp(0, edges.shape[-1] - 1 - 0.1)
    sides = distribution_focal(edges, distances).mean(-1)
    return {
        "classification": focal.sum() / assignment.num_positives,
        "box": BOX_WEIGHT * (giou_distance(boxes, truth) * weight).sum() / total_weight,
        "edges": EDGE_WEIGHT * (sides * weight).sum() / total_weight,
    }
