"""FCOS of torchvision, by composition of its public parts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import detection as host
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead

from detdistill.detectors.backbone import build_neck, group_norm
from detdistill.detectors.images import host_sizes
from detdistill.detectors.outputs import DenseParts, assemble, dense_layout, observe_dense, with_centerness
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
from detdistill.distributed import mean_over_processes
from detdistill.geometry import expected_distance, fcos_assign
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


class FCOS(nn.Module):
    """Adapter. columns: the host's class column of each class; they are sigmoids indexed by label, with no background.

    edge_bins: the regressor gives as many logits for each side, and what the host takes for a distance in strides is their expectation.
    """

    def __init__(
        self,
        model: host.FCOS,
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
        self.info = DetectorInfo(
            kind="fcos",
            classes=tuple(classes),
            strides=tuple(strides),
            channels={"neck": model.backbone.out_channels},
            activation="sigmoid",
            grid=GridInfo(anchors_per_cell=1, assigner="fcos", quality=True),
            towers=TowerInfo(self.towers.depth, model.backbone.out_channels),
            edges=None if edge_bins is None else EdgeInfo(edge_bins),
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Those of the body below the neck."""
        return list(self.model.backbone.body.parameters())

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`. Losses are torchvision's: focal, GIoU and centre-ness, each by the batch's positives."""
        pyramid = host_pyramid(self.model, batch, self.info.strides)
        layout = dense_layout(pyramid)
        anchors = flat_anchors(pyramid.anchors or ())
        valid = begun_inside(anchors, batch.sizes)
        levels = anchors.split(layout.counts)

        def predict(classification: Sequence[Tensor], regression: Sequence[Tensor]) -> Predictions:
            logits, deltas, edges, quality = self._rows(classification, regression)
            boxes = self.model.box_coder.decode(deltas, anchors.expand_as(deltas))
            return Predictions(logits, "sigmoid", boxes, valid, layout, quality=quality, edges=edges, deltas=deltas)

        def assign(wanted: Targets) -> Assignment:
            matched = [fcos_assign(levels, boxes, self.model.center_sampling_radius) for boxes in wanted.boxes]
            return with_centerness(assemble(matched, valid), anchors, wanted)

        def losses(stage: Predictions, assignment: Assignment, wanted: Targets) -> Mapping[str, Tensor]:
            outputs = {
                "cls_logits": stage.logits,
                "bbox_regression": stage.deltas,
                "bbox_ctrness": required(stage.quality)[..., None],
            }
            terms = self.model.head.compute_loss(
                host_targets(wanted), outputs, [anchors] * len(batch), list(assignment.matched)
            )
            # The host divides by the positives of this process; every process's share must weigh the same.
            local = assignment.positive.sum().float()
            rescale = local.clamp(min=1) / mean_over_processes(local)
            return {name: term * rescale for name, term in terms.items()}

        return observe_dense(pyramid, self.towers, DenseParts(predict, assign, losses), targets, need)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`. torchvision's own post-processing: score = sqrt(class * centre-ness)."""
        output = self.observe(batch, need=Need(predictions=True))
        stage = output.stages[0]
        counts = list(required(stage.layout).counts)
        rows = {
            "cls_logits": stage.logits,
            "bbox_regression": required(stage.deltas),
            "bbox_ctrness": required(stage.quality)[..., None],
        }
        split = {name: list(values.split(counts, 1)) for name, values in rows.items()}
        anchors = list(flat_anchors(output.pyramids["neck"].anchors or ()).split(counts))
        return to_detections(self.model.postprocess_detections(split, [anchors] * len(batch), host_sizes(batch.sizes)))

    def _rows(
        self, classification: Sequence[Tensor], regression: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Last tower features to logits (B, N, K), side distances in strides (B, N, 4), their distributions or None, centre-ness logits (B, N)."""
        scorer, regressor = self.model.head.classification_head, self.model.head.regression_head
        logits = [flatten_cells(scorer.cls_logits(level), scorer.num_classes) for level in classification]
        quality = torch.cat([flatten_cells(regressor.bbox_ctrness(level)) for level in regression], 1).float()
        chosen, bins = self.columns.select(torch.cat(logits, 1)).float(), self.edge_bins
        if bins:
            edges = torch.cat([flatten_cells(regressor.bbox_reg(level), 4, bins) for level in regression], 1).float()
            return chosen, expected_distance(edges), edges, quality
        deltas = [flatten_cells(regressor.bbox_reg(level).relu(), 4) for level in regression]
        return chosen, torch.cat(deltas, 1).float(), None, quality


def fcos(config: ModelConfig, backbone: str, classes: Sequence[str]) -> FCOS:
    """An FCOS on a timm backbone; one point a cell, towers with group norm unless told otherwise."""
    neck = build_neck(backbone, config.strides, config.channels, config.backbone_weights)
    generator = AnchorGenerator(tuple((stride,) for stride in config.strides), ((1.0,),) * len(config.strides))
    norm = nn.Identity if config.norm == "none" else group_norm
    head = FCOSHead(
        32, 1, len(classes), num_convs=1
    )  # the container; it can't be told the norm, so both branches are put in below
    head.classification_head = FCOSClassificationHead(
        config.channels, 1, len(classes), config.tower_depth, norm_layer=norm
    )
    head.regression_head = FCOSRegressionHead(config.channels, 1, config.tower_depth, norm_layer=norm)
    # The published head begins at exp(0), one stride to each side. torchvision cuts at 0 and begins there: one bad step and every
    # distance is 0, with no gradient to come back by. One of three small students died so in its first twenty steps.
    nn.init.ones_(required(head.regression_head.bbox_reg.bias))
    if config.edges:
        head.regression_head.bbox_reg = distributional(head.regression_head.bbox_reg, config.edge_bins)
    model = host.FCOS(
        neck,
        len(classes),
        anchor_generator=generator,
        head=head,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold or 0.5,
        detections_per_img=config.detections,
    )
    return FCOS(model, classes, config.strides, edge_bins=config.edge_bins if config.edges else None)
