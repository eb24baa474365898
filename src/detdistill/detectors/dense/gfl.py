"""GFL, arXiv:2006.04388: joint quality scores, and each side's distance as a distribution over R bins of one stride."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from detdistill.geometry import centers, side_distances
from detdistill.losses import giou_distance, paired_iou, quality_focal
from detdistill.recipe import ModelConfig
from detdistill.types import Assignment, Batch, Detections, DetectorOutput, Need, Predictions, Targets, required

EDGE_WEIGHT = 0.25


class GFL(nn.Module):
    """Generalised focal loss detector: ATSS's anchors and assignment, no centre-ness."""

    def __init__(self, config: ModelConfig, backbone: str, classes: Sequence[str]):
        super().__init__()
        self.config = config
        self.neck = build_neck(backbone, config.strides, config.channels, config.backbone_weights)
        self.head = DenseHead(config, len(classes), regression=4 * config.edge_bins, quality=False)
        self.towers = TowerPair(self.head.classification_tower, self.head.regression_tower)
        self.info = dense_info("gfl", config, classes, quality=False, edge_bins=config.edge_bins)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those of the body below the neck."""
        return list(self.neck.body.parameters())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`."""
        pyramid = anchored_pyramid(self.neck, batch, self.config)
        layout = dense_layout(pyramid)
        levels = [level.reshape(-1, 4) for level in pyramid.anchors or ()]
        points, valid = centers(torch.cat(levels)), layout.valid(batch.sizes)
        strides = row_strides(layout, points.device)

        def predict(classification: Sequence[Tensor], regression: Sequence[Tensor]) -> Predictions:
            logits, edges, _ = self.head.rows(classification, regression, 4, self.config.edge_bins)
            return Predictions(logits, "sigmoid", edge_boxes(edges, points, strides), valid, layout, edges=edges)

        def assign(wanted: Targets) -> Assignment:
            return assign_adaptively(levels, valid, layout.counts, wanted)

        def losses(stage: Predictions, assignment: Assignment, wanted: Targets) -> Mapping[str, Tensor]:
            return gfl_losses(stage, assignment, wanted, points, strides)

        return observe_dense(pyramid, self.towers, DenseParts(predict, assign, losses), targets, need)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`."""
        stage = self.observe(batch, need=Need(predictions=True)).stages[0]
        return suppress(stage, batch, self.config, self.config.nms_threshold or 0.6)


def distribution_focal(edges: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy to the two bins around the distance, weighted linearly. edges (..., R) logits, distances (...) in 0..R-1, strides;
    returns (...). GFL, equation 6. Minimum: the entropy of the two weights."""
    low = distances.floor().clamp(max=edges.shape[-1] - 2)
    share = distances - low
    spread = edges.log_softmax(-1)
    below = spread.gather(-1, low.long()[..., None])[..., 0]
    above = spread.gather(-1, low.long()[..., None] + 1)[..., 0]
    return -(1 - share) * below - share * above


def gfl_losses(
    stage: Predictions, assignment: Assignment, targets: Targets, points: Tensor, strides: Tensor
) -> Mapping[str, Tensor]:
    """Quality focal (beta 2) over valid anchors by the number of positives; GIoU times 2 and distribution focal times 0.25 (mean of four
    sides), both weighted by the best score of the prediction, by the sum of these weights. points (N, 2), strides (N,)."""
    positive = assignment.positive
    truth = matched_boxes(assignment, targets)
    boxes = stage.boxes[positive]
    wanted = torch.zeros_like(stage.logits)
    overlap = paired_iou(boxes.detach(), truth).to(wanted.dtype)
    wanted[positive] = F.one_hot(matched_labels(assignment, targets), wanted.shape[-1]) * overlap[:, None]
    focal = quality_focal(stage.logits, wanted, beta=2.0) * assignment.valid[..., None]
    trust = stage.logits[positive].detach().sigmoid().amax(-1)
    total = mean_over_processes(trust.sum())
    edges = required(stage.edges)[positive]  # (P, 4, R)
    place = positive.nonzero()[:, 1]
    distances = (side_distances(points[place], truth) / strides[place, None]).clamp(0, edges.shape[-1] - 1 - 0.1)
    sides = distribution_focal(edges, distances).mean(-1)
    return {
        "classification": focal.sum() / assignment.num_positives,
        "box": BOX_WEIGHT * (giou_distance(boxes, truth) * trust).sum() / total,
        "edges": EDGE_WEIGHT * (sides * trust).sum() / total,
    }
