"""RetinaNet of torchvision, by composition of its public parts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import detection as host
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from detdistill.detectors.backbone import build_neck, group_norm
from detdistill.detectors.images import host_sizes
from detdistill.detectors.outputs import DenseParts, assemble, dense_layout, edge_boxes, observe_dense, row_strides
from detdistill.detectors.torchvision.shared import (
    Columns,
    begun_inside,
    distributional,
    flat_anchors,
    host_pyramid,
    host_targets,
    to_detections,
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

HOST_DEPTH = 4  # torchvision builds towers of four convolutions
LEAST = 0.01  # strides from an anchor's centre to a side, where distances are distributions: the host's code takes the logarithm of a size


class RetinaNet(nn.Module):
    """Adapter. columns: the host's class column of each class; they are sigmoids indexed by label, with no background.

    edge_bins: the regressor gives as many logits for the distance of each side from the anchor's centre, in strides. The expected box,
    in the host's code, is what the host's loss and post-processing see.
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
        self.columns = Columns(range(len(classes)) if columns is None else columns, head.num_classes)
        self.towers = TowerPair(head.conv, model.head.regression_head.conv)
        cells = [cell.round().tolist() for cell in model.anchor_generator.cell_anchors]
        self.info = DetectorInfo(
            kind="retinanet",
            classes=tuple(classes),
            strides=tuple(strides),
            channels={"neck": model.backbone.out_channels},
            activation="sigmoid",
            grid=GridInfo(
                anchors_per_cell=head.num_anchors,
                assigner="max_iou",
                cell_anchors=tuple(tuple((x2 - x1, y2 - y1) for x1, y1, x2, y2 in level) for level in cells),
            ),
            towers=TowerInfo(self.towers.depth, model.backbone.out_channels),
            edges=None if edge_bins is None else EdgeInfo(edge_bins),
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those of the body below the neck."""
        return list(self.model.backbone.body.parameters())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`. Losses are torchvision's: focal and L1, each image by its own positives, mean over images."""
        pyramid = host_pyramid(self.model, batch, self.info.strides)
        layout = dense_layout(pyramid, required(self.info.grid).anchors_per_cell)
        anchors = flat_anchors(pyramid.anchors or ())
        valid = begun_inside(anchors, batch.sizes)

        def predict(classification: Sequence[Tensor], regression: Sequence[Tensor]) -> Predictions:
            logits, deltas = self._rows(classification, regression)
            if self.edge_bins:
                edges, rows = deltas, anchors.repeat(len(deltas), 1)
                boxes = edge_boxes(edges, centers(anchors), row_strides(layout, anchors.device), least=LEAST)
                deltas = self.model.box_coder.encode_single(boxes.flatten(0, 1), rows).view_as(boxes)
                return Predictions(logits, "sigmoid", boxes, valid, layout, edges=edges, deltas=deltas)
            boxes = self.model.box_coder.decode_single(deltas.flatten(0, 1), anchors.repeat(len(deltas), 1)).view_as(
                deltas
            )
            return Predictions(logits, "sigmoid", boxes, valid, layout, deltas=deltas)

        def assign(wanted: Targets) -> Assignment:
            return assemble([self._match(boxes, anchors) for boxes in wanted.boxes], valid)

        def losses(stage: Predictions, assignment: Assignment, wanted: Targets) -> Mapping[str, Tensor]:
            outputs = {"cls_logits": stage.logits, "bbox_regression": stage.deltas}
            return self.model.head.compute_loss(
                host_targets(wanted), outputs, [anchors] * len(batch), list(assignment.matched)
            )

        return observe_dense(pyramid, self.towers, DenseParts(predict, assign, losses), targets, need)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`. torchvision's own post-processing."""
        output = self.observe(batch, need=Need(predictions=True))
        stage = output.stages[0]
        counts = list(required(stage.layout).counts)
        split = {
            "cls_logits": list(stage.logits.split(counts, 1)),
            "bbox_regression": list(required(stage.deltas).split(counts, 1)),
        }
        anchors = list(flat_anchors(output.pyramids["neck"].anchors or ()).split(counts))
        found = self.model.postprocess_detections(split, [anchors] * len(batch), host_sizes(batch.sizes))
        return to_detections(found)

    def _rows(self, classification: Sequence[Tensor], regression: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Last tower features to logits (B, N, K) and deltas (B, N, 4), or edges (B, N, 4, R)."""
        scorer, regressor = self.model.head.classification_head, self.model.head.regression_head
        logits = [flatten_cells(scorer.cls_logits(level), scorer.num_classes) for level in classification]
        values = (4, self.edge_bins) if self.edge_bins else (4,)
        deltas = [flatten_cells(regressor.bbox_reg(level), *values) for level in regression]
        return self.columns.select(torch.cat(logits, 1)).float(), torch.cat(deltas, 1).float()

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(N,) by the host's matcher: -1 below the lower threshold, -2 between the two."""
        if len(boxes) == 0:
            return torch.full((len(anchors),), -1, device=anchors.device)
        return self.model.proposal_matcher(box_iou(boxes, anchors))


def retinanet(config: ModelConfig, backbone: str, classes: Sequence[str]) -> RetinaNet:
    """A RetinaNet on a timm backbone. Anchors as published: 4 strides wide, three octaves, three shapes."""
    if config.tower_depth > HOST_DEPTH:
        raise UserError(f"model.tower_depth {config.tower_depth}: torchvision's RetinaNet has at most {HOST_DEPTH}")
    neck = build_neck(backbone, config.strides, config.channels, config.backbone_weights)
    sizes = tuple(tuple(int(4 * stride * 2 ** (octave / 3)) for octave in range(3)) for stride in config.strides)
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    norm = group_norm if config.norm == "group" else None
    head = RetinaNetHead(config.channels, 9, len(classes), norm_layer=norm)
    for branch in (head.classification_head, head.regression_head):
        branch.conv = branch.conv[: config.tower_depth]
    if config.edges:
        head.regression_head.bbox_reg = distributional(head.regression_head.bbox_reg, config.edge_bins)
    model = host.RetinaNet(
        neck,
        len(classes),
        anchor_generator=generator,
        head=head,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold or 0.5,
        detections_per_img=config.detections,
    )
    return RetinaNet(model, classes, config.strides, edge_bins=config.edge_bins if config.edges else None)
