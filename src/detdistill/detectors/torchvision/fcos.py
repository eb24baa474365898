"""FCOS of torchvision, composed of its public parts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import detection as host
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead

from detdistill.detectors.backbone import group_norm, neck_of
from detdistill.detectors.candidates import Candidates
from detdistill.detectors.outputs import DenseParts, build_assignment, dense_layout, observe_dense, with_centerness
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
    """Adapter of torchvision's FCOS, `model`, whose weights and names it keeps.

    columns: the host's class column of each class. None: the first columns in order. The columns are sigmoids and have
    no background.
    edge_bins: R, if the regressor predicts R logits per side. The host's distances, in strides, are then the expected
    distances.
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
        self.columns = ClassColumns(range(len(classes)) if columns is None else columns, head.num_classes)
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
        """See `types.Detector`."""
        return pretrained_parameters(self.model.backbone.body)

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`.

        The losses are those of torchvision: focal, GIoU and centerness, each divided by the number of positives in the
        batch.
        """
        pyramid = host_pyramid(self.model, batch, self.info.strides)
        layout = dense_layout(pyramid)
        anchors = flatten_anchors(pyramid.anchors or ())  # (N, 4)
        valid = valid_anchors(anchors, batch.sizes)
        level_anchors = anchors.split(layout.counts)

        def predict(classification: Sequence[Tensor], regression: Sequence[Tensor]) -> Predictions:
            logits, deltas, edges, quality = self._predict(classification, regression)
            boxes = self.model.box_coder.decode(deltas, anchors.expand_as(deltas))
            return Predictions(logits, "sigmoid", boxes, valid, layout, quality=quality, edges=edges, deltas=deltas)

        def assign(targets: Targets) -> Assignment:
            radius = self.model.center_sampling_radius
            matched = [fcos_assign(level_anchors, boxes, radius) for boxes in targets.boxes]
            return with_centerness(build_assignment(matched, valid), anchors, targets)

        def losses(stage: Predictions, assignment: Assignment, targets: Targets) -> Mapping[str, Tensor]:
            host_predictions = {
                "cls_logits": stage.logits,
                "bbox_regression": stage.deltas,
                "bbox_ctrness": required(stage.quality)[..., None],
            }
            image_anchors, matched = [anchors] * len(batch), list(assignment.matched)
            terms = self.model.head.compute_loss(host_targets(targets), host_predictions, image_anchors, matched)
            # The host divides by the positives of this process. Divide by their mean over the processes instead, so
            # that every process has the same weight.
            local = assignment.positive.sum().float()
            rescale = local.clamp(min=1) / mean_over_processes(local)
            return {name: term * rescale for name, term in terms.items()}

        return observe_dense(pyramid, self.towers, DenseParts(predict, assign, losses), targets, need)

    def candidates(self, batch: Batch) -> Candidates:
        """The candidates before suppression, with the thresholds and the score of torchvision."""
        stage = self.observe(batch, need=Need(predictions=True)).stages[0]
        scores = (stage.scores() * required(stage.quality).sigmoid()[..., None]).sqrt()
        return one_stage_candidates(self.model, stage, scores, batch)

    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`. The result is that of torchvision's postprocessing."""
        return self.candidates(batch).detections()

    def _predict(
        self, classification: Sequence[Tensor], regression: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Apply the predictors to the last features of both towers, per level.

        Returns logits (B, N, K), side distances in strides (B, N, 4), their distributions (B, N, 4, R) or None, and
        centerness logits (B, N).
        """
        classifier, regressor = self.model.head.classification_head, self.model.head.regression_head
        host_logits = [flatten_cells(classifier.cls_logits(level), classifier.num_classes) for level in classification]
        logits = self.columns.select(torch.cat(host_logits, 1)).float()
        quality = torch.cat([flatten_cells(regressor.bbox_ctrness(level)) for level in regression], 1).float()
        if self.edge_bins:
            edges = [flatten_cells(regressor.bbox_reg(level), 4, self.edge_bins) for level in regression]
            all_edges = torch.cat(edges, 1).float()
            return logits, expected_distance(all_edges), all_edges, quality
        deltas = [flatten_cells(regressor.bbox_reg(level).relu(), 4) for level in regression]
        return logits, torch.cat(deltas, 1).float(), None, quality


def fcos(config: ModelConfig, backbone: str, classes: Sequence[str]) -> FCOS:
    """Build an FCOS on a timm backbone, with one point per cell. The towers have group norm unless norm is `none`."""
    neck = neck_of(config, backbone)
    generator = AnchorGenerator(tuple((stride,) for stride in config.strides), ((1.0,),) * len(config.strides))
    norm = nn.Identity if config.norm == "none" else group_norm
    # FCOSHead has no argument for the norm. It is built small, and both of its branches are replaced.
    head = FCOSHead(32, 1, len(classes), num_convs=1)
    head.classification_head = FCOSClassificationHead(
        config.channels, 1, len(classes), config.tower_depth, norm_layer=norm
    )
    head.regression_head = FCOSRegressionHead(config.channels, 1, config.tower_depth, norm_layer=norm)
    if config.depthwise:
        for branch in (head.classification_head, head.regression_head):
            make_separable(branch, config)
    # Start with distances of one stride. The published head starts there too, at exp(0). torchvision applies a ReLU and
    # starts at 0, where one bad step can make every distance 0 with no gradient. This happened to one of three small
    # students within twenty steps.
    nn.init.ones_(required(head.regression_head.bbox_reg.bias))
    if config.edges:
        head.regression_head.bbox_reg = edge_predictor(head.regression_head.bbox_reg, config.edge_bins)
    model = host.FCOS(
        neck,
        len(classes),
        anchor_generator=generator,
        head=head,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold or 0.5,
        detections_per_img=config.detections,
        **host_statistics(config),
    )
    return FCOS(model, classes, config.strides, edge_bins=config.edge_bins if config.edges else None)
