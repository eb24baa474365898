"""RetinaNet of torchvision, composed of its public parts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import detection as host
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from detdistill.detectors.backbone import group_norm, neck_of
from detdistill.detectors.candidates import Candidates
from detdistill.detectors.outputs import (
    DenseParts,
    build_assignment,
    dense_layout,
    edges_to_boxes,
    observe_dense,
    prediction_strides,
)
from detdistill.detectors.timm.simple_pyramid import pretrained_parameters
from detdistill.detectors.torchvision.shared import (
    ClassColumns,
    edge_predictor,
    flatten_anchors,
    host_pyramid,
    host_statistics,
    host_targets,
    make_separable,
    one_stage_candidates,
    valid_anchors,
)
from detdistill.detectors.towers import TowerPair, flatten_cells
from detdistill.errors import UserError
from detdistill.geometry import centers
from detdistill.recipe import ModelConfig
from detdistill.types import (
    Assignment,
    Batch,
    Detections,
    DetectorInfo,
    DetectorOutput,
    EdgeInfo,
    GridInfo,
    Need,
    Predictions,
    Targets,
    TowerInfo,
    required,
)

MAX_TOWER_DEPTH = 4  # torchvision builds towers of four convolutions
MIN_SIDE_DISTANCE = 0.01  # strides; the host's box code takes the logarithm of a box's size, which must not be 0


class RetinaNet(nn.Module):
    """Adapter of torchvision's RetinaNet, `model`, whose weights and names it keeps.

    columns: the host's class column of each class. None: the first columns in order. The columns are sigmoids and have
    no background.
    edge_bins: R, if the regressor predicts R logits for the distance of each side from the anchor's center, in strides.
    The host's loss and postprocessing then get the expected box, encoded as the host's deltas.
    """

    def __init__(
        self,
        model: host.RetinaNet,
        classes: Sequence[str],
        strides: Sequence[int],
        columns: Sequence[int] | None = None,
        edge_bins: int | None = None,
    ):
        super().__init__()
        self.model = model
        self.edge_bins = edge_bins
        head = model.head.classification_head
        self.columns = ClassColumns(range(len(classes)) if columns is None else columns, head.num_classes)
        self.towers = TowerPair(head.conv, model.head.regression_head.conv)
        cell_anchors = [cell.round().tolist() for cell in model.anchor_generator.cell_anchors]
        self.info = DetectorInfo(
            kind="retinanet",
            classes=tuple(classes),
            strides=tuple(strides),
            channels={"neck": model.backbone.out_channels},
            activation="sigmoid",
            grid=GridInfo(
                anchors_per_cell=head.num_anchors,
                assigner="max_iou",
                cell_anchors=tuple(tuple((x2 - x1, y2 - y1) for x1, y1, x2, y2 in level) for level in cell_anchors),
            ),
            towers=TowerInfo(self.towers.depth, model.backbone.out_channels),
            edges=None if edge_bins is None else EdgeInfo(edge_bins),
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        """See `types.Detector`."""
        return pretrained_parameters(self.model.backbone.body)

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`.

        The losses are those of torchvision: focal and L1. Each image's loss is divided by its number of positives, and
        the result is the mean over images.
        """
        pyramid = host_pyramid(self.model, batch, self.info.strides)
        layout = dense_layout(pyramid, required(self.info.grid).anchors_per_cell)
        anchors = flatten_anchors(pyramid.anchors or ())  # (N, 4)
        valid = valid_anchors(anchors, batch.sizes)

        def predict(classification: Sequence[Tensor], regression: Sequence[Tensor]) -> Predictions:
            logits, values = self._predict(classification, regression)
            batch_anchors = anchors.repeat(values.shape[0], 1)  # (B * N, 4)
            coder = self.model.box_coder
            if self.edge_bins:
                strides = prediction_strides(layout, anchors.device)
                boxes = edges_to_boxes(values, centers(anchors), strides, MIN_SIDE_DISTANCE)
                deltas = coder.encode_single(boxes.flatten(0, 1), batch_anchors).view_as(boxes)
                return Predictions(logits, "sigmoid", boxes, valid, layout, edges=values, deltas=deltas)
            boxes = coder.decode_single(values.flatten(0, 1), batch_anchors).view_as(values)
            return Predictions(logits, "sigmoid", boxes, valid, layout, deltas=values)

        def assign(targets: Targets) -> Assignment:
            return build_assignment([self._match(boxes, anchors) for boxes in targets.boxes], valid)

        def losses(stage: Predictions, assignment: Assignment, targets: Targets) -> Mapping[str, Tensor]:
            host_predictions = {"cls_logits": stage.logits, "bbox_regression": stage.deltas}
            image_anchors, matched = [anchors] * len(batch), list(assignment.matched)
            return self.model.head.compute_loss(host_targets(targets), host_predictions, image_anchors, matched)

        return observe_dense(pyramid, self.towers, DenseParts(predict, assign, losses), targets, need)

    def candidates(self, batch: Batch) -> Candidates:
        """The candidates before suppression, with torchvision's thresholds."""
        stage = self.observe(batch, need=Need(predictions=True)).stages[0]
        return one_stage_candidates(self.model, stage, stage.scores(), batch)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`. The result is that of torchvision's postprocessing."""
        return self.candidates(batch).detections()

    def _predict(self, classification: Sequence[Tensor], regression: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Apply the predictors to the last features of both towers, per level.

        Returns logits (B, N, K), and deltas (B, N, 4) or the logits of edge distributions (B, N, 4, R).
        """
        classifier, regressor = self.model.head.classification_head, self.model.head.regression_head
        logits = [flatten_cells(classifier.cls_logits(level), classifier.num_classes) for level in classification]
        shape = (4, self.edge_bins) if self.edge_bins else (4,)
        values = [flatten_cells(regressor.bbox_reg(level), *shape) for level in regression]
        return self.columns.select(torch.cat(logits, 1)).float(), torch.cat(values, 1).float()

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(N,): index of the box that the host's matcher assigns to each anchor.

        -1: the largest IoU is below the lower threshold. -2: it is between the two thresholds.
        """
        if len(boxes) == 0:
            return torch.full((len(anchors),), -1, device=anchors.device)
        return self.model.proposal_matcher(box_iou(boxes, anchors))


def retinanet(config: ModelConfig, backbone: str, classes: Sequence[str]) -> RetinaNet:
    """Build a RetinaNet on a timm backbone.

    Anchors are as published: 4 strides wide, three octaves and three aspect ratios per cell. The towers have no
    norm, as published, unless norm is `group` or their convolutions are separable. Raises UserError if `tower_depth` is
    above 4.
    """
    if config.tower_depth > MAX_TOWER_DEPTH:
        problem = f"torchvision's RetinaNet has at most {MAX_TOWER_DEPTH}"
        raise UserError(f"model.tower_depth {config.tower_depth}: {problem}; set it to {MAX_TOWER_DEPTH} or less")
    neck = neck_of(config, backbone)
    sizes = tuple(tuple(int(4 * stride * 2 ** (octave / 3)) for octave in range(3)) for stride in config.strides)
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    norm = group_norm if config.norm == "group" else None
    head = RetinaNetHead(config.channels, 9, len(classes), norm_layer=norm)
    for branch in (head.classification_head, head.regression_head):
        branch.conv = branch.conv[: config.tower_depth]
        if config.depthwise:
            make_separable(branch, config)
    if config.edges:
        head.regression_head.bbox_reg = edge_predictor(head.regression_head.bbox_reg, config.edge_bins)
    model = host.RetinaNet(
        neck,
        len(classes),
        anchor_generator=generator,
        head=head,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold or 0.5,
        detections_per_img=config.detections,
        **host_statistics(config),
    )
    return RetinaNet(model, classes, config.strides, edge_bins=config.edge_bins if config.edges else None)
