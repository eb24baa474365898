"""Faster R-CNN of torchvision, composed of its public parts.

Ren et al., arXiv:1506.01497, with the feature pyramid of arXiv:1612.03144. An output has two stages, in this order:

* RPN: class-agnostic objectness, logits (B, N, 1) with a sigmoid, whatever the number of classes K. It is dense and
  has a layout. Deltas are (B, N, 4). If several levels have one stride, it has the rows of the first; see `visible`.
* RoI head (see `roi_head`): logits (B, P, K) and the background logit, with a softmax. Boxes are those of the most
  likely class, deltas (B, P, K, 4) those of all classes. Embeddings (B, P, D) are the input of the predictor. Row p
  belongs to `proposals.boxes[:, p]`.

With targets, the proposals are those on which the loss is computed: torchvision's number for training, with the ground
truth appended, then sampled. Without targets, they are those for testing. The choice depends only on the targets, not
on `training`. The `valid` rows of an assignment are the sampled ones.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models import detection as host
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from detdistill.detectors.backbone import Neck, neck_of
from detdistill.detectors.candidates import Candidates, best_first, best_pairs, clip, large_boxes, objectness, suppress
from detdistill.detectors.images import normalize
from detdistill.detectors.outputs import build_assignment
from detdistill.detectors.timm.simple_pyramid import pretrained_parameters
from detdistill.detectors.torchvision.roi_head import HostLevels, RoIColumns, RoIHead
from detdistill.detectors.torchvision.shared import (
    host_anchors,
    host_statistics,
    rescale_to_process_mean,
    split_anchors,
    unpadded_rows,
)
from detdistill.detectors.torchvision.visible import VisibleLevels
from detdistill.errors import UserError
from detdistill.recipe import ModelConfig
from detdistill.types import (
    Batch,
    Detections,
    DetectorInfo,
    DetectorOutput,
    GridInfo,
    Layout,
    Need,
    Predictions,
    ProposalInfo,
    Proposals,
    Pyramid,
    Targets,
    required,
)

MAX_CANDIDATES = 10_000  # (proposal, class) pairs of an image that enter the suppression
SMALLEST_BOX = 1e-2  # pixels; a detection with a smaller side is dropped, as in the host


class FasterRCNN(nn.Module):
    """Adapter of torchvision's FasterRCNN, `model`, whose weights and names it keeps.

    columns: the host's class column of each class. None: all columns but 0, the background. The probability of all
    remaining columns is added to the background, so that the scores of the classes equal the host's.
    strides: of the host's levels, fine to coarse. The host does not declare them. If some are equal, the pyramid has
    the first level of each stride.
    Raises UserError if classes, columns or strides do not fit the model.
    """

    def __init__(
        self,
        model: host.FasterRCNN,
        classes: Sequence[str],
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        columns: Sequence[int] | None = None,
        kind: str = "faster_rcnn",
    ):
        super().__init__()
        self.model = model
        predictor = model.roi_heads.box_predictor.cls_score
        num_columns = predictor.out_features
        columns = range(1, num_columns) if columns is None else columns
        _check_arguments(classes, columns, strides, num_columns, len(model.rpn.anchor_generator.sizes))
        self.columns = RoIColumns(columns, num_columns)
        self.roi_head = RoIHead(model, self.columns, strides)
        self.visible = VisibleLevels(tuple(strides))
        cell_anchors = tuple(
            tuple((x1 - x0, y1 - y0) for x0, y0, x1, y1 in cell.tolist())
            for cell in model.rpn.anchor_generator.cell_anchors
        )
        # The host pools from the finest levels. It may name more levels than there are.
        pooled_names = model.roi_heads.box_roi_pool.featmap_names
        laterals = getattr(getattr(model.backbone, "fpn", None), "inner_blocks", pooled_names)
        pooled_strides = strides[: min(len(pooled_names), len(laterals))]
        self.info = DetectorInfo(
            kind=kind,
            classes=tuple(classes),
            strides=self.visible.strides,
            channels={"neck": model.backbone.out_channels},
            activation="softmax",
            grid=GridInfo(
                anchors_per_cell=len(cell_anchors[0]), assigner="rpn", cell_anchors=self.visible.of(cell_anchors)
            ),
            proposals=ProposalInfo(
                strides=tuple(dict.fromkeys(pooled_strides)),
                code=tuple(model.roi_heads.box_coder.weights),
                embedding_channels=predictor.in_features,
            ),
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        """See `types.Detector`. Without an FPN, they are all parameters of the host's backbone."""
        backbone = self.model.backbone
        return pretrained_parameters(getattr(backbone, "body", backbone))

    def observe(self, batch: Batch, targets: Targets | None = None, need: Need = Need()) -> DetectorOutput:
        """See `types.Detector`.

        The losses are those of torchvision, without the prefix `loss_`: objectness, rpn_box_reg, classifier, box_reg.
        """
        levels, anchors, pyramid = self._pyramid(batch)
        pyramids = {"neck": pyramid}
        if targets is None and not need.head:
            return DetectorOutput(pyramids)
        classify = partial(self.roi_head.classify, levels)
        if targets is None and not (need.predictions or need.proposals):
            # Only `classify` is needed, on boxes of the caller, so the RPN does not run.
            no_boxes = anchors.new_zeros((batch.images.shape[0], 0, 4))
            return DetectorOutput(pyramids, proposals=Proposals(no_boxes, no_boxes.any(-1), classify))
        layout = self._layout(levels)
        rpn_stage = self._rpn_stage(levels, anchors, layout, batch.sizes)
        padded, valid = self._propose(rpn_stage, batch.sizes, training=targets is not None)
        boxes = [image_boxes[rows] for image_boxes, rows in zip(padded, valid, strict=True)]
        losses: dict[str, Tensor] = {}
        roi_stage = None
        if targets is not None:
            rpn_stage, losses = self._train_rpn(rpn_stage, anchors, targets)
            boxes, roi_stage, roi_losses = self.roi_head.train(levels, boxes, targets)
            losses |= roi_losses
        elif need.predictions:
            roi_stage = self.roi_head.predict(levels, boxes)
        return DetectorOutput(
            pyramids,
            stages=(self.visible.stage(rpn_stage), *([] if roi_stage is None else [roi_stage])),
            losses=losses,
            proposals=Proposals(pad_sequence(boxes, batch_first=True), unpadded_rows(boxes), classify),
            assign=lambda targets: self.visible.assignment(
                build_assignment(self._match_anchors(anchors, targets), rpn_stage.valid), layout
            ),
        )

    def candidates(self, batch: Batch) -> Candidates:
        """The candidates before suppression: every class of every proposal, with its own box.

        torchvision has no limit for their number. Here they are the best `MAX_CANDIDATES` of each image.
        """
        levels, anchors, _ = self._pyramid(batch)
        rpn_stage = self._rpn_stage(levels, anchors, self._layout(levels), batch.sizes)
        boxes, valid = self._propose(rpn_stage, batch.sizes, training=False)
        scores, deltas = self.roi_head.score(levels, boxes)  # (B, P, K), (B, P, K, 4)
        roi_heads = self.model.roi_heads
        boxes = boxes[:, :, None].expand_as(deltas)
        decoded = roi_heads.box_coder.decode_single(deltas.flatten(0, 2), boxes.flatten(0, 2)).view_as(deltas)
        decoded = clip(decoded.flatten(1, 2), batch.sizes)  # (B, P K, 4)
        is_box = valid.repeat_interleave(scores.shape[2], 1) & large_boxes(decoded, SMALLEST_BOX)
        pairs = torch.where(is_box, scores.flatten(1), 0.0)
        best, index = best_first(pairs, MAX_CANDIDATES)
        return Candidates(
            decoded.gather(1, index[..., None].expand(-1, -1, 4)),
            best,
            index % scores.shape[2],
            threshold=roi_heads.score_thresh,
            nms=roi_heads.nms_thresh,
            limit=roi_heads.detections_per_img,
            classes=scores.shape[2],
        )

    @torch.no_grad()
    def detect(self, batch: Batch) -> tuple[Detections, ...]:
        """See `types.Detector`. The result is that of torchvision's postprocessing."""
        return self.candidates(batch).detections()

    def _pyramid(self, batch: Batch) -> tuple[HostLevels, Tensor, Pyramid]:
        """The backbone's maps by the host's names, the host's anchors (N, 4), and both as a pyramid."""
        images = normalize(batch, self.model.transform.image_mean, self.model.transform.image_std)
        levels = self.model.backbone(images)
        levels = OrderedDict([("0", levels)]) if isinstance(levels, Tensor) else levels
        maps = tuple(levels.values())
        anchors = host_anchors(self.model.rpn.anchor_generator, images, maps)
        split, visible = split_anchors(anchors, maps), self.visible
        return levels, anchors, Pyramid(visible.of(maps), visible.strides, batch.sizes, visible.of(split))

    def _layout(self, levels: HostLevels) -> Layout:
        """The layout of the RPN's predictions."""
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels.values())
        return Layout(shapes, self.visible.host_strides, required(self.info.grid).anchors_per_cell)

    def _propose(self, stage: Predictions, sizes: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """The RPN's proposals, best first: boxes (B, P, 4), and valid (B, P), False for rows without a proposal.

        They are the host's: the best of each level, without small boxes, suppressed per level. training: use the host's
        numbers for training.
        """
        rpn = self.model.rpn
        mode = "training" if training else "testing"
        layout = required(stage.layout)
        boxes, logits, _ = best_pairs(stage.boxes.detach(), stage.logits.detach(), layout, rpn._pre_nms_top_n[mode])
        counts = [torch.sym_min(count, rpn._pre_nms_top_n[mode]) for count in layout.counts]
        labels = torch.cat([stage.valid.new_full((n,), level, dtype=torch.long) for level, n in enumerate(counts)])
        boxes, scores = clip(boxes, sizes), objectness(logits)
        scores = torch.where(large_boxes(boxes, rpn.min_size) & (scores >= rpn.score_thresh), scores, 0.0)
        scores = suppress(boxes, scores, labels.expand_as(scores), rpn.nms_thresh, len(counts))
        best, index = best_first(scores, rpn._post_nms_top_n[mode])
        return boxes.gather(1, index[..., None].expand(-1, -1, 4)), best > 0

    def _rpn_stage(self, levels: HostLevels, anchors: Tensor, layout: Layout, sizes: Tensor) -> Predictions:
        """The predictions of the RPN."""
        objectness, deltas = concat_box_prediction_layers(*self.model.rpn.head(list(levels.values())))
        objectness, deltas = objectness.float(), deltas.float()  # (B * N, 1), (B * N, 4)
        rows = (sizes.shape[0], anchors.shape[0])
        boxes = self.model.rpn.box_coder.decode_single(deltas, anchors.repeat(rows[0], 1))
        return Predictions(
            logits=objectness.view(*rows, 1),
            activation="sigmoid",
            boxes=boxes.reshape(*rows, 4),
            valid=layout.valid(sizes),
            layout=layout,
            deltas=deltas.view(*rows, 4),
        )

    def _match_anchors(self, anchors: Tensor, targets: Targets) -> list[Tensor]:
        """(N,) per image: index of the target that the host's matcher assigns, -1 for background, -2 for neither."""
        rpn = self.model.rpn
        unmatched = torch.full((len(anchors),), -1, device=anchors.device)
        return [
            rpn.proposal_matcher(rpn.box_similarity(boxes, anchors)) if len(boxes) else unmatched
            for boxes in targets.boxes
        ]

    def _train_rpn(
        self, stage: Predictions, anchors: Tensor, targets: Targets
    ) -> tuple[Predictions, dict[str, Tensor]]:
        """The host's two losses of the RPN, and `stage` with the assignment on which they were computed."""
        matched = self._match_anchors(anchors, targets)
        labels = [(matches >= 0).float().masked_fill(matches == -2, -1) for matches in matched]
        samples = self.model.rpn.fg_bg_sampler(labels)  # masks of positives and of negatives, per image
        # An image without targets needs some finite boxes here. They are not used, because only positives are
        # regressed.
        matched_boxes = [
            boxes[matches.clamp(min=0)] if len(boxes) else anchors
            for boxes, matches in zip(targets.boxes, matched, strict=True)
        ]
        codes = self.model.rpn.box_coder.encode(matched_boxes, [anchors] * len(matched_boxes))
        # The host draws samples inside its loss. Hand it these ones, so that the assignment can hold the same rows.
        host_rpn = copy.copy(self.model.rpn)
        host_rpn.fg_bg_sampler = lambda labels: samples
        sampled = torch.stack([(positive | negative).bool() for positive, negative in zip(*samples, strict=True)])
        count = int(sampled.sum())
        losses = dict.fromkeys(("objectness", "rpn_box_reg"), stage.logits.sum() * 0)
        rescale = rescale_to_process_mean(count, stage.logits)
        if count:
            deltas = required(stage.deltas).flatten(0, 1)
            terms = host_rpn.compute_loss(stage.logits, deltas, labels, list(codes))
            losses = {name: term * rescale for name, term in zip(losses, terms, strict=True)}
        matches_of_samples = [matches.masked_fill(~mask, -1) for matches, mask in zip(matched, sampled, strict=True)]
        assignment = build_assignment(matches_of_samples, sampled & stage.valid)
        target_deltas = torch.where(assignment.positive[..., None], torch.stack(list(codes)), 0.0)
        return replace(stage, assignment=replace(assignment, deltas=target_deltas)), losses


def faster_rcnn(config: ModelConfig, backbone: str, classes: Sequence[str]) -> FasterRCNN:
    """Build a Faster R-CNN on a timm backbone with an FPN or a PAFPN.

    Levels coarser than the backbone's are subsampled. RoIs are pooled from the other levels. Anchors have 32 pixels at
    the finest level, twice as many at each coarser level, and three aspect ratios per cell; they are the published
    anchors if the strides start at 4. The box head is 4 times as wide as the neck, which is the published 1024 at 256.
    Raises UserError if the backbone does not fit the strides.
    """
    neck = neck_of(config, backbone, pooled=True)
    return FasterRCNN(host.FasterRCNN(neck, **host_parts(config, neck, len(classes))), classes, config.strides)


def host_parts(config: ModelConfig, neck: Neck, classes: int) -> dict[str, Any]:
    """The arguments of torchvision's two-stage models for the RPN, the RoI head and the postprocessing."""
    level_names = [str(stride) for stride in neck.reductions]
    width = 4 * config.channels
    return {
        **host_statistics(config),
        "rpn_anchor_generator": host.rpn.AnchorGenerator(
            sizes=tuple((32 * 2**level,) for level in range(len(config.strides))),
            aspect_ratios=((0.5, 1.0, 2.0),) * len(config.strides),
        ),
        "box_roi_pool": MultiScaleRoIAlign(level_names, output_size=7, sampling_ratio=2),
        "box_head": host.faster_rcnn.TwoMLPHead(config.channels * 7 * 7, width),
        "box_predictor": host.faster_rcnn.FastRCNNPredictor(width, classes + 1),
        "box_score_thresh": config.score_threshold,
        "box_nms_thresh": 0.5 if config.nms_threshold is None else config.nms_threshold,
        "box_detections_per_img": config.detections,
        "box_batch_size_per_image": config.rois,
    }


def _check_arguments(
    classes: Sequence[str], columns: Sequence[int], strides: Sequence[int], num_columns: int, num_levels: int
) -> None:
    """Raises UserError if classes, columns or strides do not fit the model."""
    is_unique = len(set(columns)) == len(columns)
    if len(columns) != len(classes) or not is_unique or not set(columns) <= set(range(1, num_columns)):
        problem = f"{len(classes)} classes with columns {list(columns)} do not fit a predictor of {num_columns} columns"
        raise UserError(f"faster_rcnn: {problem}; give each class a column from 1 to {num_columns - 1}")
    if len(strides) != num_levels:
        problem = f"strides {tuple(strides)} do not fit a model with anchors for {num_levels} levels"
        raise UserError(f"faster_rcnn: {problem}; give {num_levels} strides")
